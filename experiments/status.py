"""How far sweeps are: ``python -m experiments.status``; :mod:`gift_vit.sweeps.status` is behind it."""

from gift_vit.sweeps.status import main

if __name__ == "__main__":
    main()
