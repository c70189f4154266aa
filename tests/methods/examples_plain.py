"""The methods without parameters of their own."""

from tests.methods.method_examples import Example, yaml_config

EXAMPLES = {
    "linear": Example(yaml_config("linear"), r"(?!)", 0),
    "full": Example(yaml_config("full"), r"(?!head\.).+", 306_240),
}
