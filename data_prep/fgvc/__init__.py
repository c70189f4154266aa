"""The five FGVC datasets: images, the paper's or the official splits, bounding boxes; ``python -m data_prep.fgvc <name>``."""
