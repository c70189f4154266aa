"""GIFT as a method of peft, on models of transformers: :mod:`gift_vit.hf` has the layers, this file puts them in place."""

import re

from torch import nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import GiftHfConfig, register_method
from gift_vit.methods.hf_peft import inject_config, merge_peft
from gift_vit.methods.targets import find_targets


@register_method("gift_hf", GiftHfConfig, merge=merge_peft)
def apply_gift_hf(model: nn.Module, cfg: GiftHfConfig) -> None:
    """Let peft wrap the target layers; what lies outside the blocks is none.

    Raises:
        ConfigError: If a target matches no linear layer, or the rank is larger than a layer's input width.
    """
    from gift_vit.hf import GiftConfig  # transformers

    found = find_targets(model, cfg.target_modules)
    layers = [layer for several in found.values() for layer in several]
    narrowest = min(layer.module.in_features for layer in layers)
    if cfg.rank > narrowest:
        raise ConfigError(f"method.rank={cfg.rank}: expected 1 to {narrowest}, the input width of the layers")
    adapted = {layer.name for layer in layers}
    others = [
        name  # of the head or an attention pool: to peft they look like targets
        for name, _ in model.named_modules()
        if name not in adapted and any(f".{name}".endswith(f".{target}") for target in cfg.target_modules)
    ]
    config = GiftConfig(
        r=cfg.rank,
        target_modules=list(cfg.target_modules),
        exclude_modules="|".join(map(re.escape, others)) or None,
        share=cfg.share,
        alpha=cfg.alpha,
        init_weights=cfg.init == "gift" or "wegeft",
        compute=cfg.compute,  # pyright: ignore[reportArgumentType] - the config has checked it
    )
    inject_config(model, config, sorted(adapted))
