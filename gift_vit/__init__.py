"""Parameter-efficient fine-tuning of Vision Transformers, built around GIFT."""

__version__ = "0.2.0"
