"""Full fine-tuning: every parameter is trained."""

from torch import nn

from gift_vit.methods.config import FullConfig, register_method


def merge_full(model: nn.Module, cfg: FullConfig) -> None:
    """Nothing to fold in: the backbone itself was trained."""
    del model, cfg


@register_method("full", FullConfig, merge=merge_full)
def apply_full(model: nn.Module, cfg: FullConfig) -> None:
    """Make every parameter trainable."""
    del cfg
    model.requires_grad_(True)
