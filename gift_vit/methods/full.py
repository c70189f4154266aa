"""Full fine-tuning: every parameter is trained."""

from torch import nn

from gift_vit.methods.config import FullConfig, merge_nothing, register_method


@register_method("full", FullConfig, merge=merge_nothing)
def apply_full(model: nn.Module, cfg: FullConfig) -> None:
    """Make every parameter trainable."""
    del cfg
    model.requires_grad_(True)
