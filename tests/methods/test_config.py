"""Options that make no sense, of every kind: one line that names key, value and what is expected."""

from typing import Any

import pytest

from gift_vit.methods.config import AdaptFormerConfig, BitFitConfig, GiftConfig, LoraConfig, PeftConfig, SsfConfig, VptConfig
from tests.methods.checks import refused

ERRORS: list[tuple[type, dict[str, Any], str]] = [
    (GiftConfig, {"rank": 0}, "method.rank=0: expected a whole number from 1 to the layer's d_in"),
    (GiftConfig, {"schema": "linaer"}, "unknown method.schema 'linaer'; did you mean linear? (known: linear, gelu, sigmoid, "),
    (GiftConfig, {"schema": "mlp", "norm": "layer"}, "unknown method.norm 'layer' (known: l2, none)"),
    (GiftConfig, {"schema": "mlp", "pos_embed": "sincos"}, "unknown method.pos_embed 'sincos' (known: none, learned)"),
    (
        GiftConfig,
        {"schema": "paca_attn", "cluster_activation": "gelu"},
        "unknown method.cluster_activation 'gelu' (known: sigmoid, hsigmoid, softmax)",
    ),
    (GiftConfig, {"schema": "transformer", "num_heads": 3}, "method.num_heads=3: expected a divisor of method.rank=16"),
    (GiftConfig, {"schema": "transformer", "num_heads": 0}, "method.num_heads=0: expected 1 or more"),
    (GiftConfig, {"schema": "mlp", "num_blocks": 0}, "method.num_blocks=0: expected"),
    (GiftConfig, {"schema": "paca_attn", "num_clusters": 0}, "method.num_clusters=0: expected"),
    (GiftConfig, {"schema": "mlp_mixer", "num_mixed_tokens": 0}, "method.num_mixed_tokens=0: expected"),
    (GiftConfig, {"schema": "mlp", "mlp_ratio": 0.05}, "method.mlp_ratio=0.05: expected a hidden width of 1 or more at rank"),
    (GiftConfig, {"schema": "mlp_mixer", "channel_ratio": -1.0}, "method.channel_ratio=-1.0: expected a hidden width"),
    (
        GiftConfig,
        {"num_blocks": 2},
        "method.num_blocks=2 has no effect with method.schema=linear; it belongs to transformer, paca_transformer, paca_attn, ",
    ),
    (GiftConfig, {"schema": "paca_attn", "mlp_ratio": 4.0}, "method.mlp_ratio=4.0 has no effect with method.schema=paca_attn"),
    (GiftConfig, {"schema": "gelu", "norm": "none"}, "method.norm=none has no effect with method.schema=gelu"),
    (LoraConfig, {"rank": 0}, "method.rank=0: expected 1 or more"),
    (LoraConfig, {"alpha": 0.0}, "method.alpha=0.0: expected a number above 0"),
    (LoraConfig, {"dropout": 1.0}, "method.dropout=1.0: expected a number in [0, 1)"),
    (
        PeftConfig,
        {"peft_type": "VERA", "target_modules": ["attn.proj", "attn.v"]},
        "method.target_modules: this method adapts whole layers and not attn.v; name attn.qkv, or take kind gift or lora",
    ),
    (VptConfig, {"num_tokens": 0}, "method.num_tokens=0: expected 1 or more"),
    (VptConfig, {"dropout": -0.1}, "method.dropout=-0.1: expected a number in [0, 1)"),
    (BitFitConfig, {"scope": "norm"}, "unknown method.scope 'norm' (known: linear, all)"),
    (AdaptFormerConfig, {"bottleneck": 0}, "method.bottleneck=0: expected 1 or more"),
    (AdaptFormerConfig, {"scale": 0.0}, "method.scale=0.0: expected another number than 0, which switches the adapter off"),
    (AdaptFormerConfig, {"dropout": 1.0}, "method.dropout=1.0: expected a number in [0, 1)"),
    (SsfConfig, {"init_std": -0.1}, "method.init_std=-0.1: expected 0 or more"),
]


@pytest.mark.parametrize(("cls", "options", "message"), ERRORS)
def test_options_that_make_no_sense_are_one_line(cls: type, options: dict[str, Any], message: str) -> None:
    with refused(message):
        cls(**options)
