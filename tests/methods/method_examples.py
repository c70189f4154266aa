"""The configs that the contract is checked on: every YAML of conf/method, and the examples beside this file.

``examples_*.py`` hold ``EXAMPLES``: label → :class:`Example`. A label that a YAML has too says what that method must have.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gift_vit.config.compose import conf_dir
from gift_vit.methods.adapter import method_config
from gift_vit.methods.config import spec_of
from tests.conf.files import entire

# one label of each kind, and those that take another way through its code
SELECTED = (
    *("gift", "gift_v1", "lora", "lora_qv", "dora", "vera", "vpt_deep", "vpt_shallow"),
    *("bitfit", "adaptformer", "ssf", "linear", "full", "repadapter", "apla", "fact_tk"),
    *("adapter_plus", "adapter_houlsby", "convpass", "toast", "toast_lite", "pissa"),
)


@dataclass(frozen=True)
class Example:
    """A config and what applying it to timm's test_vit (width 64, depth 6, 2 heads, MLP 192, 10 classes) must give.

    Attributes:
        config: The method's config.
        adapter: Pattern that exactly the names of the adapter's parameters match; None: not declared.
        size: Their number by the closed formula; None: not declared.
        state: Pattern of the names of the other tensors that the adapter file must hold, such as frozen random projections.
        unchanged: Whether the outputs at the start are those of the plain model.
        unmergeable: What the error says when merging, for a config that cannot be merged though its kind can; None: it can.
        merged_in: The precision that merging computes in, where it is not the model's; None: the model's.
        unreached: Pattern of parameters that two steps need not reach, such as those that stay frozen until later.
    """

    config: Any
    adapter: str
    size: int
    state: str = r"(?!)"
    unchanged: bool = True
    unmergeable: str | None = None
    merged_in: torch.dtype | None = None
    unreached: str = r"(?!)"


@cache
def yaml_configs() -> dict[str, Any]:
    """The configs of ``conf/method`` by label."""
    configs = {}
    of_texts = {"gift_qv", "lora_text", "gift_qv_llm", "gift_proj", "gift_qkvud", "wegeft_qkvud", "lora_qkvud"}
    labels = {file.stem for file in (conf_dir() / "method").glob("*.yaml")} - of_texts
    for label in sorted(labels):
        values: Any = OmegaConf.to_container(entire(conf_dir() / "method" / f"{label}.yaml"))
        assert values.pop("name") == label
        del values["grid"]  # of sweeps, not of the method
        configs[label] = method_config(values)
    return configs


def yaml_config(label: str) -> Any:
    """The config of ``conf/method/<label>.yaml``."""
    return yaml_configs()[label]


@cache
def all_examples() -> dict[str, Example]:
    """Examples by label, of the methods that are trained by gradient; test_probes.py has the others."""
    examples: dict[str, Example] = {}
    for file in sorted(Path(__file__).parent.glob("examples_*.py")):
        own: dict[str, Example] = import_module(f"tests.methods.{file.stem}").EXAMPLES
        assert not set(own) & set(examples), f"{file.name} repeats a label"
        examples |= own
    assert {label for label, config in yaml_configs().items() if spec_of(config).fit is None} <= set(examples)
    return examples


def one_of_a_kind(*more: str) -> pytest.MarkDecorator:
    """``label``: of every kind, and ``more``, in the default suite; all others in the slow one."""
    fast = dict.fromkeys([*SELECTED, *more])
    slow = [pytest.param(label, marks=pytest.mark.slow) for label in all_examples() if label not in fast]
    return pytest.mark.parametrize("label", [*fast, *slow])


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern matches the whole name."""
    return re.fullmatch(pattern, name) is not None
