"""BitFit: only biases are trained (Ben Zaken, Goldberg, Ravfogel, arXiv 2106.10199): ``y = x ωᵀ + b`` with ω frozen."""

from dataclasses import dataclass

from torch import nn

from gift_vit.errors import ConfigError
from gift_vit.methods.registry import register_method

SCOPES = ("linear", "all")


@dataclass
class BitFitConfig:
    """Which biases.

    Attributes:
        scope: ``linear``: those of the ``nn.Linear`` layers in the blocks, as in the GIFT paper's baseline; ``all``: every bias
            of the backbone, with the norms', the patch embedding's, and those that BEiT and EVA keep beside their layers.
    """

    scope: str = "linear"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ConfigError(f"unknown method.scope {self.scope!r} (known: {', '.join(SCOPES)})")


def merge_bitfit(model: nn.Module, cfg: BitFitConfig) -> None:
    """Nothing to fold in: the backbone's own biases were trained."""
    del model, cfg


@register_method("bitfit", BitFitConfig, merge=merge_bitfit)
def apply_bitfit(model: nn.Module, cfg: BitFitConfig) -> None:
    """Make the biases trainable."""
    if cfg.scope == "linear":
        layers = [layer for layer in model.get_submodule("blocks").modules() if isinstance(layer, nn.Linear)]
        biases = [layer.bias for layer in layers if layer.bias is not None]
    else:
        biases = [p for name, p in model.named_parameters() if name.endswith("bias") and not name.startswith("head")]
    if not biases:
        where = "linear layers in the blocks have" if cfg.scope == "linear" else "backbone has"
        raise ConfigError(f"method 'bitfit' finds nothing to train: the {where} no bias; choose another method")
    for bias in biases:
        bias.requires_grad_(True)
