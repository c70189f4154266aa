"""Backbones: any timm ViT by name, with weights from the hub, from a local file, or shipped (vit_mini)."""

from gift_vit.backbones.build import BackboneConfig, build_backbone, input_statistics, weights_source

__all__ = ["BackboneConfig", "build_backbone", "input_statistics", "weights_source"]
