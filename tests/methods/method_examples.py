"""The configs that the contract is checked on: every YAML of conf/method, and the examples beside this file.

``examples_<kind>.py`` holds ``EXAMPLES``: label → :class:`Example`. A label that a YAML has too says what that
method must have.
"""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from gift_vit.methods.adapter import method_config
from gift_vit.paths import conf_dir


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
        uncompiled: Why ``torch.compile`` cannot take it as one graph; None: it can.
        unreached: Pattern of parameters that two steps need not reach, such as those that stay frozen until later.
    """

    config: Any
    adapter: str | None = None
    size: int | None = None
    state: str = r"(?!)"
    unchanged: bool = True
    unmergeable: str | None = None
    merged_in: torch.dtype | None = None
    uncompiled: str | None = None
    unreached: str = r"(?!)"


def yaml_config(label: str) -> Any:
    """The config of ``conf/method/<label>.yaml``."""
    values: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "method" / f"{label}.yaml"))
    assert values.pop("name") == label
    del values["grid"]  # of sweeps, not of the method
    return method_config(values)


def all_examples() -> dict[str, Example]:
    """Examples by label."""
    examples: dict[str, Example] = {}
    for file in sorted(Path(__file__).parent.glob("examples_*.py")):
        own: dict[str, Example] = import_module(f"tests.methods.{file.stem}").EXAMPLES
        assert not set(own) & set(examples), f"{file.name} repeats a label"
        examples |= own
    for file in sorted((conf_dir() / "method").glob("*.yaml")):
        examples.setdefault(file.stem, Example(yaml_config(file.stem)))
    return examples


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern matches the whole name."""
    return re.fullmatch(pattern, name) is not None
