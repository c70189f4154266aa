"""VPT, deep and shallow: 5 or 2 prompts of width 64, for 6 blocks or one."""

from gift_vit.methods.vpt import VptConfig
from tests.methods.method_examples import Example, yaml_config

EXAMPLES = {
    "vpt_deep": Example(yaml_config("vpt_deep"), r"vpt\.prompts", 6 * 5 * 64, unchanged=False),
    "vpt_shallow": Example(yaml_config("vpt_shallow"), r"vpt\.prompts", 5 * 64, unchanged=False),
    "vpt_dropout": Example(VptConfig(num_tokens=2, dropout=0.1), r"vpt\.prompts", 6 * 2 * 64, unchanged=False),
}
