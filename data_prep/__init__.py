"""Preparing datasets: download, verify, and write the form that :mod:`gift_vit.data` reads."""
