"""BitFit: only biases are trained (Ben Zaken, Goldberg, Ravfogel, arXiv 2106.10199): ``y = x ωᵀ + b`` with ω frozen."""

import logging

from torch import nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import BitFitConfig, merge_nothing, register_method
from gift_vit.methods.targets import block_of

log = logging.getLogger(__name__)


@register_method("bitfit", BitFitConfig, merge=merge_nothing)
def apply_bitfit(model: nn.Module, cfg: BitFitConfig) -> None:
    """Make the biases trainable."""
    if cfg.scope == "linear":
        layers = {name: m for name, m in model.named_modules() if block_of(name) and isinstance(m, nn.Linear)}
        biases = [layer.bias for layer in layers.values() if layer.bias is not None]
        without = dict.fromkeys(block[1] for name in layers if layers[name].bias is None and (block := block_of(name)))
        if without and biases:
            log.info(
                "bitfit trains fewer biases than on a plain ViT: %s of the blocks have none of their own", ", ".join(without)
            )
    else:
        biases = [p for name, p in model.named_parameters() if name.endswith("bias") and not name.startswith("head")]
    if not biases:
        where = "linear layers in the blocks have" if cfg.scope == "linear" else "backbone has"
        raise ConfigError(f"method 'bitfit' finds nothing to train: the {where} no bias; choose another method")
    for bias in biases:
        bias.requires_grad_(True)
