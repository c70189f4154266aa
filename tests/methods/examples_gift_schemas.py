"""GIFT's schemas: every one as its YAML has it, and together with slices, sharing, biases, positions and several blocks."""

from gift_vit.methods import GiftConfig
from tests.methods.method_examples import Example, yaml_config

PAIR = r"gift\.attn\.proj\.(phi|psi"
ATTN = r"|schema\.blocks\.0\.attn\.(qkv|proj)\.(weight|bias)"
PACA = r"|schema\.blocks\.0\.attn\.(assign|q|k|v|proj)\.(weight|bias)"
MLP = r"|schema\.blocks\.0\.mlp\.(fc1|fc2)\.(weight|bias)"
MIXER = r"|schema\.blocks\.0\.(token_mlp|channel_mlp)\.(fc1|fc2)\.(weight|bias)"
# softmax(q (k + b)ᵀ) does not depend on b: keys have a bias, as in the authors' code, and it gets no gradient but rounding
KEY_BIAS = r".*\.attn\.k\.bias"


def mlp(rank: int) -> int:
    """Parameters of an MLP of ratio 2, r → 2r → r."""
    return 4 * rank**2 + 3 * rank


def attn(rank: int) -> int:
    """Parameters of four projections r → r."""
    return 4 * (rank**2 + rank)


def paca(rank: int, num_clusters: int) -> int:
    """Parameters of four projections and of the assignment r → M."""
    return attn(rank) + num_clusters * (rank + 1)


EXAMPLES = {
    "gift_v1": Example(yaml_config("gift_v1"), f"{PAIR}{PACA}{MLP})", 2 * 64 * 16 + paca(16, 96) + mlp(16), unreached=KEY_BIAS),
    "gift_gelu": Example(yaml_config("gift_gelu"), f"{PAIR})", 2 * 64 * 16),
    "gift_sigmoid": Example(yaml_config("gift_sigmoid"), f"{PAIR})", 2 * 64 * 16),
    "gift_transformer": Example(yaml_config("gift_transformer"), f"{PAIR}{ATTN}{MLP})", 2 * 64 * 16 + attn(16) + mlp(16)),
    "gift_paca_attn": Example(yaml_config("gift_paca_attn"), f"{PAIR}{PACA})", 2 * 64 * 16 + paca(16, 64), unreached=KEY_BIAS),
    "gift_mlp": Example(yaml_config("gift_mlp"), f"{PAIR}{MLP})", 2 * 64 * 16 + mlp(16)),
    "gift_mlp_mixer": Example(yaml_config("gift_mlp_mixer"), f"{PAIR}{MIXER})", 2 * 64 * 16 + 2 * 64 * 64 + 64 + 64 + mlp(16)),
    # five targets of different heights and widths, each with a schema of its own; both biases of the pair
    "gift_schema_targets": Example(
        GiftConfig(
            rank=4,
            target_modules=["attn.q", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"],
            schema="transformer",
            num_heads=2,
            phi_bias=True,
            psi_bias=True,
        ),
        rf"gift\.(attn\.q|attn\.v|attn\.proj|mlp\.fc1|mlp\.fc2)\.(phi|psi|phi_bias{ATTN}{MLP})"
        r"|gift\.(attn\.q|attn\.v|mlp\.fc1)\.psi_bias",
        4 * 2 * 64 * 4 + 3 * 64 + 2 * 192 * 4 + 5 * (4 + attn(4) + mlp(4)),
        state=r"gift\.(attn\.proj|mlp\.fc2)\.psi_bias",
    ),
    # one schema for layers of 64 and of 192 rows, two blocks deep
    "gift_schema_share": Example(
        GiftConfig(
            rank=4,
            target_modules=["attn.proj", "attn.k", "mlp.fc1"],
            share=True,
            schema="paca_transformer",
            num_blocks=2,
            num_clusters=3,
            cluster_activation="softmax",
            norm="none",
            mlp_ratio=1.5,
        ),
        r"gift\.shared\.(phi|psi" + PACA.replace("0", "(0|1)") + MLP.replace("0", "(0|1)") + ")",
        2 * 64 * 4 + 2 * (paca(4, 3) + 4 * 6 + 6 + 6 * 4 + 4),
        unreached=KEY_BIAS,
    ),
    # what depends on the number of rows, shared by targets that have 64 each
    "gift_schema_positions": Example(
        GiftConfig(
            rank=4, target_modules=["attn.proj", "attn.k"], share=True, schema="paca_attn", num_clusters=5, pos_embed="learned"
        ),
        rf"gift\.shared\.(phi|psi|schema\.pos_embed{PACA})",
        2 * 64 * 4 + 64 * 4 + paca(4, 5),
        unreached=KEY_BIAS,
    ),
    "gift_schema_mixer_share": Example(
        GiftConfig(
            rank=4, target_modules=["attn.proj", "attn.v"], blocks=[0, 1], share=True, schema="mlp_mixer", num_mixed_tokens=7
        ),
        rf"gift\.shared\.(phi|psi{MIXER})",
        2 * 64 * 4 + 2 * 64 * 7 + 7 + 64 + mlp(4),
    ),
}
