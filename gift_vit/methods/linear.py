"""Linear probing: only the classification head is trained."""

from torch import nn

from gift_vit.methods.config import LinearConfig, register_method


def merge_linear(model: nn.Module, cfg: LinearConfig) -> None:
    """Nothing to fold in: the backbone was never changed."""
    del model, cfg


@register_method("linear", LinearConfig, merge=merge_linear)
def apply_linear(model: nn.Module, cfg: LinearConfig) -> None:
    """Leave the backbone frozen."""
    del model, cfg
