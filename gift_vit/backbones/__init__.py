"""Backbones: any timm ViT by name, with weights from the hub, from a local file, or shipped (vit_mini)."""
