"""The kinds with few forms on test_vit: 6 blocks of qkv 192, proj 64, fc1 192, fc2 64 and two norms; patches and last norm."""

from gift_vit.methods.config import AdaptFormerConfig, LoraConfig, SsfConfig, VptConfig
from tests.methods.method_examples import Example, yaml_config

BOTTLENECKS = r"blocks\.\d\.adaptformer\.(down|up)\.(weight|bias)"
BIASES = 6 * (192 + 64 + 192 + 64)
SSF = r"(patch_embed\.proj|norm|blocks\.\d\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.ssf\.(scale|shift)"
SSF_SIZE = 2 * (64 + 6 * (64 + 192 + 64 + 64 + 192 + 64) + 64)

EXAMPLES = {
    "linear": Example(yaml_config("linear"), r"(?!)", 0),
    "full": Example(yaml_config("full"), r"(?!head\.).+", 306_240),
    "adaptformer": Example(yaml_config("adaptformer"), BOTTLENECKS, 6 * (2 * 64 * 64 + 64 + 64)),
    "adaptformer_narrow": Example(AdaptFormerConfig(3, scale=1, dropout=0), BOTTLENECKS, 6 * (2 * 64 * 3 + 3 + 64)),
    "bitfit": Example(yaml_config("bitfit"), r"blocks\.\d\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))\.bias", BIASES),
    "bitfit_all": Example(yaml_config("bitfit_all"), r".*\.bias", BIASES + 6 * 2 * 64 + 64 + 64),
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
    "ssf": Example(yaml_config("ssf"), SSF, SSF_SIZE, unchanged=False),
    "ssf_identity": Example(SsfConfig(init_std=0), SSF, SSF_SIZE),
    "vpt_deep": Example(yaml_config("vpt_deep"), r"vpt\.prompts", 6 * 5 * 64, unchanged=False),
    "vpt_shallow": Example(yaml_config("vpt_shallow"), r"vpt\.prompts", 5 * 64, unchanged=False),
    "vpt_dropout": Example(VptConfig(num_tokens=2, dropout=0.1), r"vpt\.prompts", 6 * 2 * 64, unchanged=False),
}
