"""Datasets: options in ``config.py``, one file per kind in ``kinds/``, and how their images reach a model."""
