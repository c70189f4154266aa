"""peft's methods: every YAML of kind peft, and forms that take other paths through its layers."""

import torch

from gift_vit.methods.hf_peft import PeftConfig
from tests.methods.method_examples import Example, yaml_config

PROJ = r"blocks\.\d\.attn\.proj\."

EXAMPLES = {
    "dora": Example(
        yaml_config("dora"),
        PROJ + r"(lora_[AB]|lora_magnitude_vector)\.default\.weight",
        6 * (8 * (64 + 64) + 64),
    ),
    "vera": Example(
        yaml_config("vera"),
        PROJ + r"vera_lambda_[bd]\.default",
        6 * (64 + 256),
        state=r"blocks\.0\.attn\.proj\.vera_[AB]\.default",
    ),
    "adalora": Example(
        yaml_config("adalora"),
        PROJ + r"lora_[ABE]\.default",
        6 * 8 * (64 + 64 + 1),
        state=PROJ + r"ranknum\.default",
    ),
    "ia3": Example(yaml_config("ia3"), r"blocks\.\d\.(attn\.qkv|mlp\.fc2)\.ia3_l\.default", 6 * (3 * 64 + 192)),
    "oft": Example(yaml_config("oft"), PROJ + r"oft_R\.default\.weight", 6 * 64 // 32 * 32 * 31 // 2),
    "boft": Example(yaml_config("boft"), PROJ + r"boft_[Rs]\.default", 6 * (64 // 8 * 8 * 8 + 64)),
    # pairs of reflections cancel up to rounding
    "hra": Example(yaml_config("hra"), PROJ + r"hra_u\.default", 6 * 8 * 64, unchanged=False),
    "fourierft": Example(yaml_config("fourierft"), PROJ + r"fourierft_spectrum\.default", 6 * 3000),
    "ln_tuning": Example(
        yaml_config("ln_tuning"),
        r"(blocks\.\d\.norm[12]|norm)\.ln_tuning_layers\.default\.(weight|bias)",
        (2 * 6 + 1) * 2 * 64,
    ),
    "loha": Example(yaml_config("loha"), PROJ + r"hada_w[12]_[ab]\.default", 6 * 2 * 8 * (64 + 64)),
    "lokr": Example(yaml_config("lokr"), PROJ + r"lokr_w[12]\.default", 6 * (8 * 8 + 8 * 8)),
    "miss": Example(yaml_config("miss"), PROJ + r"miss_block\.default", 6 * 16 * 64),
    "randlora": Example(
        yaml_config("randlora"),
        PROJ + r"randlora_(lambda|gamma)\.default",
        6 * (64 // 32) * (32 + 64),
        state=r"blocks\.0\.attn\.proj\.randlora_[AB]\.default",
    ),
    "road": Example(yaml_config("road"), PROJ + r"road_(theta|alpha)\.default", 6 * (64 // 2 + 64 // 2)),
    # its vectors are drawn and mixed from the first step on
    "vblora": Example(
        yaml_config("vblora"),
        r"blocks\.(\d\.attn\.proj\.vblora_logits_[AB]|0\.attn\.proj\.vblora_vector_bank)\.default",
        6 * 2 * (64 // 64) * 4 * 256 + 256 * 64,
        unchanged=False,
    ),
    "c3a": Example(yaml_config("c3a"), PROJ + r"c3a_kernel\.default", 6 * 64 * 64 // 64, merged_in=torch.float32),
    "delora": Example(
        yaml_config("delora"),
        PROJ + r"delora_(A|B|lambda)\.default",
        6 * (8 * (64 + 64) + 1),
        state=PROJ + r"delora_w_norm\.default",
    ),
    "hira": Example(yaml_config("hira"), PROJ + r"hira_[AB]\.default", 6 * 8 * (64 + 64)),
    "gralora": Example(yaml_config("gralora"), PROJ + r"gralora_[AB]\.default", 6 * 8 * (64 + 64)),
    "glora": Example(
        yaml_config("glora"),
        PROJ + r"(glora_[ABC]\.default\.X[du]|glora_[DE]\.default\.X)",
        6 * (2 * 8 * (64 + 64) + 8 * (64 + 1) + 2),
        unreached=r".*glora_D.*",  # it scales the frozen bias, which is zero in a freshly drawn model
    ),
    "tinylora": Example(
        yaml_config("tinylora"),
        r"blocks\.0\.attn\.proj\.tinylora_v\.default\.\d",  # the layers share the dictionary, and each has its entry
        6 * 64,
        state=PROJ + r"tinylora_[ABP]\.default",
    ),
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
