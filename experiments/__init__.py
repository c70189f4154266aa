"""Drivers that use ``gift_vit``: pretraining the small backbone, the demo, tables."""
