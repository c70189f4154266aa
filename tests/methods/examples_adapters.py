"""Adapters in and around blocks, and the layers of RepAdapter, APLA, FacT, TOAST and LoRA's relatives, on test_vit.

The counts are the closed formulas of the papers with d 64, L 6 blocks, MLPs of n = 3 times that width.
"""

from gift_vit.methods.config import (
    AdapterConfig,
    AplaConfig,
    ConvpassConfig,
    FactConfig,
    GiftConfig,
    LoraConfig,
    RepAdapterConfig,
)
from tests.methods.method_examples import Example, yaml_config

D, L, N = 64, 6, 3
PROJ = r"blocks\.\d\.attn\.proj\."
PAIR = r"lora_[AB]\.default\.weight"
ADAPTER = r"blocks\.\d\.adapter\."
TWO_LAYERS = r"(down|up)\.(weight|bias)"


def bottleneck(r: int) -> int:
    return 2 * D * r + r + D


EXAMPLES = {
    "repadapter": Example(
        yaml_config("repadapter"),
        r"blocks\.\d\.(attn\.qkv|mlp\.fc1)\.repadapter\." + TWO_LAYERS,
        2 * L * (D * 8 + 8 + D * 8 // 2 + D),
    ),
    "repadapter_attn": Example(
        yaml_config("repadapter_attn"), r"blocks\.\d\.attn\.qkv\.repadapter\." + TWO_LAYERS, L * (D * 8 + 8 + D * 8 // 2 + D)
    ),
    "repadapter_four_groups": Example(
        RepAdapterConfig(8, 4, 2.0, 0.0, ["mlp.fc2"], [1]), r"blocks\.1\.mlp\.fc2\.repadapter\..*", 192 * 8 + 8 + 192 * 2 + 192
    ),
    "apla": Example(yaml_config("apla"), PROJ + r"apla_(weight|bias)", L * 8 * (D + 1), state=PROJ + r"apla_rows"),
    "apla_full": Example(yaml_config("apla_full"), PROJ + r"(weight|bias)", L * D * (D + 1)),
    "apla_of_mlp": Example(
        AplaConfig(192, 3, ["mlp.fc1"], [0]), r"blocks\.0\.mlp\.fc1\.apla_(weight|bias)", 192 * 65, state=r".*apla_rows"
    ),
    "fact_tt": Example(yaml_config("fact_tt"), r"fact\.(u|v|sigma)", 2 * D * 16 + L * (4 + 2 * N) * 16**2),
    "fact_tk": Example(yaml_config("fact_tk"), r"fact\.(u|v|core|p)", 2 * D * 32 + 32**3 + L * (4 + 2 * N) * 32),
    "fact_tk_paper": Example(
        FactConfig("tk", 4, 3.0, 0.0, "paper"), r"fact\.(u|v|core|p)", 2 * D * 4 + 4**3 + L * (4 + 2 * N) * 4
    ),
    "adapter_plus": Example(
        yaml_config("adapter_plus"), ADAPTER + f"({TWO_LAYERS}|scale)", L * (bottleneck(8) + D), unchanged=False
    ),
    "adapter_houlsby": Example(
        yaml_config("adapter_houlsby"),
        rf"(blocks\.\d\.adapter(_attn)?\.{TWO_LAYERS}|(blocks\.\d\.norm[12]|norm)\.(weight|bias))",
        2 * L * bottleneck(4) + 2 * D * (2 * L + 1),
        unchanged=False,
    ),
    "adapter_pfeiffer": Example(
        yaml_config("adapter_pfeiffer"),
        ADAPTER + r"(down|up|norm)\.(weight|bias)",
        L * (bottleneck(8) + 2 * D),
        unchanged=False,
    ),
    **{
        f"adapter_{position}": Example(
            AdapterConfig(position, 4, bias=False, scale="scalar", init="lora", drop_path=0.0),
            ADAPTER + r"((down|up)\.weight|scale)",
            L * (2 * D * 4 + 1),
        )
        for position in ("pre", "intermediate", "parallel")
    },
    "convpass": Example(
        yaml_config("convpass"),
        r"blocks\.\d\.convpass_(attn|mlp)\.(down|conv|up)\.(weight|bias)",
        2 * L * (17 * D + 9 * 8**2 + 2 * 8),
    ),
    "convpass_attn": Example(
        yaml_config("convpass_attn"), r"blocks\.\d\.convpass_attn\..*\.(weight|bias)", L * (17 * D + 9 * 8**2 + 2 * 8)
    ),
    "convpass_mlp": Example(
        ConvpassConfig(4, 10.0, 0.0, ["mlp"], "xavier", [1]), r"blocks\.1\.convpass_mlp\..*", 9 * D + 9 * 4**2 + 2 * 4
    ),
    "toast": Example(
        yaml_config("toast"), r"toast\.(prior|decoders\.\d\.(down|out)\.weight)", 2 * L * D**2 + D, r"toast\.transform", False
    ),
    "toast_lite": Example(
        yaml_config("toast_lite"),
        r"toast\.(prior|transform|decoders\.\d\.(down|out)\.lora_[AB])",
        4 * L * D * 4 + D + D**2,
        r"toast\.decoders\.\d\.(down|out)\.weight",
        False,
    ),
    "lora_rs": Example(yaml_config("lora_rs"), PROJ + PAIR, L * 8 * 2 * D),
    "lora_fa": Example(yaml_config("lora_fa"), PROJ + r"lora_B\.default\.weight", L * 8 * D, PROJ + r"lora_A\.default\.weight"),
    "lora_plus": Example(yaml_config("lora_plus"), PROJ + PAIR, L * 8 * 2 * D),
    "lora_eva": Example(yaml_config("lora_eva"), PROJ + PAIR, L * 8 * 2 * D),
    "pissa": Example(yaml_config("pissa"), PROJ + PAIR, L * 8 * 2 * D, PROJ + r"pissa_[AB]0"),
    "pissa_qv": Example(
        LoraConfig(4, 2, ["attn.q", "attn.v"], [0], rank_stabilized=True, init="pissa"),
        r"blocks\.0\.attn\.qkv\.lora_[AB]\.[qv]\.weight",
        2 * 4 * 2 * D,
        r"blocks\.0\.attn\.qkv\.pissa_[AB]0_[qv]",
    ),
    "lora_gaussian": Example(
        LoraConfig(4, target_modules=["attn.k", "attn.proj"], init="gaussian"),
        r".*lora_[AB]\.(k|default)\.weight",
        2 * L * 4 * 2 * D,
    ),
    "gift_wegeft": Example(yaml_config("gift_wegeft"), r"gift\.attn\.proj\.(phi|psi)", 2 * D * 16),
    "wegeft_of_slices": Example(
        GiftConfig(4, ["attn.q", "mlp.fc1"], psi_bias=True, init="wegeft", alpha=8),
        r"gift\.(attn\.q|mlp\.fc1)\.(phi|psi|psi_bias)",
        2 * (2 * D * 4 + D),
    ),
}
