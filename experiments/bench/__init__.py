"""Speed and memory of fine-tuning a ViT, measured side by side: ``python -m experiments.bench``."""
