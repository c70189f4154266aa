"""BitFit: only biases are trained (Ben Zaken, Goldberg, Ravfogel, arXiv 2106.10199): ``y = x ωᵀ + b`` with ω frozen."""

from torch import nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import BitFitConfig, register_method
from gift_vit.methods.targets import block_of


def merge_bitfit(model: nn.Module, cfg: BitFitConfig) -> None:
    """Nothing to fold in: the backbone's own biases were trained."""
    del model, cfg


@register_method("bitfit", BitFitConfig, merge=merge_bitfit, for_text=True)
def apply_bitfit(model: nn.Module, cfg: BitFitConfig) -> None:
    """Make the biases trainable."""
    if cfg.scope == "linear":
        layers = [layer for name, layer in model.named_modules() if block_of(name) and isinstance(layer, nn.Linear)]
        biases = [layer.bias for layer in layers if layer.bias is not None]
    else:
        biases = [p for name, p in model.named_parameters() if name.endswith("bias") and not name.startswith("head")]
    if not biases:
        where = "linear layers in the blocks have" if cfg.scope == "linear" else "backbone has"
        raise ConfigError(f"method 'bitfit' finds nothing to train: the {where} no bias; choose another method")
    for bias in biases:
        bias.requires_grad_(True)
