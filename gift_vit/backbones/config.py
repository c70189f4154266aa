"""What a backbone is told. Imports no torch."""

from dataclasses import dataclass


@dataclass
class BackboneConfig:
    """A timm ViT and where its weights come from.

    Attributes:
        name: Label in run folders and tables; the YAML's own name.
        model: timm name with the weights' tag, such as ``vit_base_patch16_224.augreg_in21k``.
        weights: A local ``.safetensors``, ``.pth`` or original ``.npz`` file of these weights; None: timm's source (the hub,
            or the package for vit_mini). Either way mean, std, input size and interpolation are those of ``model``'s tag.
        pretrained: False leaves the weights random, for tests.
        img_size: Input size in pixels where it differs from the weights' own; the position embedding is resampled.
    """

    name: str
    model: str
    weights: str | None
    pretrained: bool
    img_size: int | None
