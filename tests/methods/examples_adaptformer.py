"""AdaptFormer on test_vit: 6 bottlenecks, two matrices and two biases each."""

from gift_vit.methods.adaptformer import AdaptFormerConfig
from tests.methods.method_examples import Example, yaml_config

NAMES = r"blocks\.\d\.adaptformer\.(down|up)\.(weight|bias)"

EXAMPLES = {
    "adaptformer": Example(yaml_config("adaptformer"), NAMES, 6 * (2 * 64 * 64 + 64 + 64)),
    "adaptformer_narrow": Example(AdaptFormerConfig(bottleneck=3, scale=1, dropout=0), NAMES, 6 * (2 * 64 * 3 + 3 + 64)),
}
