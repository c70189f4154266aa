"""A finished run for the Hugging Face Hub: its record without its machine, and a model card. ``python -m gift_vit.push``."""
