"""LoRA through peft on whole layers and ours on slices, alone and together."""

from gift_vit.methods.lora import LoraConfig
from tests.methods.method_examples import Example, yaml_config

EXAMPLES = {
    "lora": Example(yaml_config("lora"), r"blocks\.\d\.attn\.proj\.lora_[AB]\.default\.weight", 6 * 8 * (64 + 64)),
    "lora_qv": Example(yaml_config("lora_qv"), r"blocks\.\d\.attn\.qkv\.lora_[AB]\.[qv]\.weight", 6 * 2 * 8 * (64 + 64)),
    "lora_mixed": Example(
        LoraConfig(rank=4, alpha=8, target_modules=["attn.k", "mlp.fc1", "mlp.fc2"], blocks=[0, 1], dropout=0.1),
        r"blocks\.[01]\.(attn\.qkv\.lora_[AB]\.k|mlp\.fc[12]\.lora_[AB]\.default)\.weight",
        2 * 4 * ((64 + 64) + 2 * (64 + 192)),
    ),
    "lora_whole_qkv": Example(
        LoraConfig(rank=4, target_modules=["attn.qkv"]),
        r"blocks\.\d\.attn\.qkv\.lora_[AB]\.default\.weight",
        6 * 4 * (64 + 192),
    ),
}
