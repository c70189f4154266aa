"""What a backbone is told. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common.checks import Options, at_least, folder_name, matches, one_of

POOLINGS = ("token", "avg", "map")


@dataclass
class BackboneConfig(Options, section="backbone"):
    """A timm ViT and where its weights come from.

    Attributes:
        name: Label in run folders and tables; the YAML's own name.
        model: timm name with the weights' tag, such as ``vit_base_patch16_224.augreg_in21k``.
        weights: A local ``.safetensors``, ``.pth`` or original ``.npz`` file of these weights; None: timm's source (the hub,
            or the package for vit_mini). Either way mean, std, input size and interpolation are those of ``model``'s tag.
        pretrained: False leaves the weights random, for tests.
        img_size: Input size in pixels where it differs from the weights' own; the position embedding is resampled.
        global_pool: What the head reads: ``token``, the class token; ``avg``, the mean of the patches; ``map``, what an
            attention pool that the weights bring makes of all tokens. None: as timm builds the model for these weights, which
            the backbone's YAML says in words.
    """

    name: Annotated[str, folder_name]
    model: Annotated[str, matches(r"[\w.:/-]+", "a name of timm's")]
    weights: str | None = None
    pretrained: bool = True
    img_size: Annotated[int | None, at_least(1)] = None
    global_pool: Annotated[str | None, one_of(POOLINGS)] = None
