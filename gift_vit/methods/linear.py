"""Linear probing: only the classification head is trained."""

from torch import nn

from gift_vit.methods.config import LinearConfig, merge_nothing, register_method


@register_method("linear", LinearConfig, merge=merge_nothing)
def apply_linear(model: nn.Module, cfg: LinearConfig) -> None:
    """Leave the backbone frozen."""
    del model, cfg
