"""SSF on test_vit: two values per output channel of patch embedding, norms and linear layers."""

from gift_vit.methods.ssf import SsfConfig
from tests.methods.method_examples import Example, yaml_config

NAMES = r"(patch_embed\.proj|norm|blocks\.\d\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.ssf\.(scale|shift)"
SIZE = 2 * (64 + 6 * (64 + 192 + 64 + 64 + 192 + 64) + 64)

EXAMPLES = {
    "ssf": Example(yaml_config("ssf"), NAMES, SIZE, unchanged=False),
    "ssf_identity": Example(SsfConfig(init_std=0), NAMES, SIZE),
}
