"""Computing a fine-tuned timm ViT with less work or memory and the same numbers; see :func:`accelerate`."""

from gift_vit.acceleration.accelerate import accelerate, all_tokens
from gift_vit.acceleration.speed import settle_speed

__all__ = ["accelerate", "all_tokens", "settle_speed"]
