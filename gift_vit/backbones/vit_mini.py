"""vit_mini: the small demonstration ViT that ships with the project, registered as a timm model.

64×64 pixels, patch 8, width 192, depth 6, 3 heads (2.7 M parameters), pretrained by ``experiments/pretrain_mini.py``
on 164 classes of Tiny-ImageNet. The model card lies beside the weights.
"""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

NUM_UPSTREAM_CLASSES = 164
WEIGHTS_FILE = Path(__file__).parent / "weights" / "vit_mini.safetensors"

default_cfgs = generate_default_cfgs(
    {
        "vit_mini_patch8_64.tiny_imagenet": {
            "file": str(WEIGHTS_FILE),
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
    }
)


@register_model
def vit_mini_patch8_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of width 192, depth 6, 3 heads on 64×64 images in 8×8 patches."""
    args: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3} | kwargs
    return build_model_with_cfg(
        VisionTransformer, "vit_mini_patch8_64", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **args
    )
