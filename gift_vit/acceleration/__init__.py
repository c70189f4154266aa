"""Computing a fine-tuned timm ViT with less work or memory and the same numbers; see ``accelerate.py``."""
