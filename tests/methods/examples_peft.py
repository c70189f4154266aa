"""peft's methods: every YAML of kind peft, and forms that take other paths through its layers."""

from typing import Any

import torch

from gift_vit.methods.config import PeftConfig
from tests.methods.method_examples import Example, yaml_config

PROJ = r"blocks\.\d\.attn\.proj\."

# label of conf/method → names of the trained parameters, their number
YAMLS = {
    "dora": (PROJ + r"(lora_[AB]|lora_magnitude_vector)\.default\.weight", 6 * (8 * (64 + 64) + 64)),
    "vera": (PROJ + r"vera_lambda_[bd]\.default", 6 * (64 + 256)),
    "adalora": (PROJ + r"lora_[ABE]\.default", 6 * 8 * (64 + 64 + 1)),
    "ia3": (r"blocks\.\d\.(attn\.qkv|mlp\.fc2)\.ia3_l\.default", 6 * (3 * 64 + 192)),
    "oft": (PROJ + r"oft_R\.default\.weight", 6 * 64 // 32 * 32 * 31 // 2),
    "boft": (PROJ + r"boft_[Rs]\.default", 6 * (64 // 8 * 8 * 8 + 64)),
    "hra": (PROJ + r"hra_u\.default", 6 * 8 * 64),
    "fourierft": (PROJ + r"fourierft_spectrum\.default", 6 * 3000),
    "ln_tuning": (r"(blocks\.\d\.norm[12]|norm)\.ln_tuning_layers\.default\.(weight|bias)", (2 * 6 + 1) * 2 * 64),
    "loha": (PROJ + r"hada_w[12]_[ab]\.default", 6 * 2 * 8 * (64 + 64)),
    "lokr": (PROJ + r"lokr_w[12]\.default", 6 * (8 * 8 + 8 * 8)),
    "miss": (PROJ + r"miss_block\.default", 6 * 16 * 64),
    "randlora": (PROJ + r"randlora_(lambda|gamma)\.default", 6 * (64 // 32) * (32 + 64)),
    "road": (PROJ + r"road_(theta|alpha)\.default", 6 * (64 // 2 + 64 // 2)),
    "vblora": (
        r"blocks\.(\d\.attn\.proj\.vblora_logits_[AB]|0\.attn\.proj\.vblora_vector_bank)\.default",
        6 * 2 * (64 // 64) * 4 * 256 + 256 * 64,
    ),
    "c3a": (PROJ + r"c3a_kernel\.default", 6 * 64 * 64 // 64),
    "delora": (PROJ + r"delora_(A|B|lambda)\.default", 6 * (8 * (64 + 64) + 1)),
    "hira": (PROJ + r"hira_[AB]\.default", 6 * 8 * (64 + 64)),
    "gralora": (PROJ + r"gralora_[AB]\.default", 6 * 8 * (64 + 64)),
    "glora": (PROJ + r"(glora_[ABC]\.default\.X[du]|glora_[DE]\.default\.X)", 6 * (2 * 8 * (64 + 64) + 8 * (64 + 1) + 2)),
    "tinylora": (r"blocks\.0\.attn\.proj\.tinylora_v\.default\.\d", 6 * 64),  # the layers share the dictionary
}
MORE: dict[str, dict[str, Any]] = {
    "vera": {"state": r"blocks\.0\.attn\.proj\.vera_[AB]\.default"},
    "randlora": {"state": r"blocks\.0\.attn\.proj\.randlora_[AB]\.default"},
    "tinylora": {"state": PROJ + r"tinylora_[ABP]\.default"},
    "adalora": {"state": PROJ + r"ranknum\.default"},
    "delora": {"state": PROJ + r"delora_w_norm\.default"},
    "hra": {"unchanged": False},  # pairs of reflections cancel up to rounding
    "vblora": {"unchanged": False},  # its vectors are drawn and mixed from the first step on
    "c3a": {"merged_in": torch.float32},
    "glora": {"unreached": r".*glora_D.*"},  # it scales the frozen bias, which is zero in a freshly drawn model
}

EXAMPLES = {
    **{label: Example(yaml_config(label), *declared, **MORE.get(label, {})) for label, declared in YAMLS.items()},
    "vera_of_two_widths_drawn_again": Example(
        PeftConfig("VERA", ["attn.qkv", "mlp.fc1", "mlp.fc2"], [0, 1], {"r": 16, "save_projection": False}),
        r"blocks\.[01]\.(attn\.qkv|mlp\.fc[12])\.vera_lambda_[bd]\.default",
        2 * (2 * (192 + 16) + (64 + 16)),
    ),
    "rslora_with_biases": Example(
        PeftConfig("LORA", ["mlp.fc1"], options={"r": 4, "use_rslora": True, "bias": "lora_only"}),
        r"blocks\.\d\.mlp\.fc1\.(lora_[AB]\.default\.weight|base_layer\.bias)",
        6 * (4 * (64 + 192) + 192),
    ),
    "lily": Example(
        PeftConfig("LILY", options={"r": 4, "stride_A": 2, "num_B": 3}),
        PROJ + r"lily_(A|B|router)\.default\.weight",
        3 * 4 * 64 + 3 * 4 * 64 + 6 * 3 * 4,
        unmergeable="lily of peft cannot be merged into the backbone; keep the adapter beside it",
    ),
}
