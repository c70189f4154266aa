"""BitFit on test_vit: per block qkv 192, proj 64, fc1 192, fc2 64; beside them two norms per block, patches and last norm."""

from tests.methods.method_examples import Example, yaml_config

LINEAR = 6 * (192 + 64 + 192 + 64)

EXAMPLES = {
    "bitfit": Example(yaml_config("bitfit"), r"blocks\.\d\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))\.bias", LINEAR),
    "bitfit_all": Example(yaml_config("bitfit_all"), r".*\.bias", LINEAR + 6 * 2 * 64 + 64 + 64),
}
