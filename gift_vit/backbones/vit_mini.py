"""vit_mini: the small demonstration ViT that ships with the project, registered as a timm model.

64×64 pixels, patch 8, width 192, depth 6, 3 heads (2.7 M parameters), pretrained by ``experiments/pretrain_mini.py``
on 164 classes of Tiny-ImageNet. The model cards lie beside the weights. ``tiny_imagenet_v2`` are
those of today; ``tiny_imagenet`` those that runs of version 0.1 were trained on.
"""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

NUM_UPSTREAM_CLASSES = 164
WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_FILE = WEIGHTS / "vit_mini_v2.safetensors"
"""Those of today."""


def _pretrained_cfg(file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "num_classes": NUM_UPSTREAM_CLASSES,
        "input_size": (3, 64, 64),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "vit_mini_patch8_64.tiny_imagenet_v2": _pretrained_cfg(WEIGHTS_FILE),
        "vit_mini_patch8_64.tiny_imagenet": _pretrained_cfg(WEIGHTS / "vit_mini.safetensors"),  # for runs of version 0.1
    }
)


@register_model
def vit_mini_patch8_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of width 192, depth 6, 3 heads on 64×64 images in 8×8 patches."""
    args: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3} | kwargs
    return build_model_with_cfg(
        VisionTransformer, "vit_mini_patch8_64", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **args
    )
