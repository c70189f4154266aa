"""A run from the Hugging Face Hub as a folder: ``python -m gift_vit.pull``."""
