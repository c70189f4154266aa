"""The choice of hyper-parameters: ``python -m experiments.select``; :mod:`gift_vit.sweeps.select` is behind it."""

from gift_vit.sweeps.select import main

if __name__ == "__main__":
    main()
