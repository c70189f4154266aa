"""GIFT's linear schema in many forms; whole-layer and sliced targets take different paths."""

from gift_vit.methods import GiftConfig
from tests.methods.method_examples import Example, yaml_config

EXAMPLES = {
    "gift": Example(yaml_config("gift"), r"gift\.attn\.proj\.(phi|psi)", 2 * 64 * 16),
    "gift_several": Example(
        GiftConfig(rank=4, target_modules=["attn.q", "attn.v", "mlp.fc1", "mlp.fc2"]),
        r"gift\.(attn\.q|attn\.v|mlp\.fc1|mlp\.fc2)\.(phi|psi)",
        3 * 2 * 64 * 4 + 2 * 192 * 4,
    ),
    "gift_share": Example(
        GiftConfig(rank=4, target_modules=["attn.proj", "attn.k", "mlp.fc1"], share=True),
        r"gift\.shared\.(phi|psi)",
        2 * 64 * 4,
    ),
    "gift_one_block": Example(GiftConfig(rank=4, blocks=[1]), r"gift\.attn\.proj\.(phi|psi)", 2 * 64 * 4),
    "gift_biases": Example(
        GiftConfig(rank=4, phi_bias=True, psi_bias=True),
        r"gift\.attn\.proj\.(phi|psi)",
        2 * 64 * 4,
        state=r"gift\.attn\.proj\.(phi|psi)_bias",  # have no effect there
    ),
    "gift_sliced_biases": Example(
        GiftConfig(rank=4, target_modules=["attn.k"], phi_bias=True, psi_bias=True),
        r"gift\.attn\.k\.(phi|psi|phi_bias|psi_bias)",
        2 * 64 * 4 + 4 + 64,
    ),
    "gift_whole_qkv": Example(GiftConfig(rank=4, target_modules=["attn.qkv"]), r"gift\.attn\.qkv\.(phi|psi)", 2 * 64 * 4),
    "gift_all_targets": Example(
        GiftConfig(rank=4, target_modules=["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),
        r"gift\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(phi|psi)",
        3 * 2 * 64 * 4 + 2 * 192 * 4,
    ),
}
