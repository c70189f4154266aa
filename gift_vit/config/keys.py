"""Configs as flat dotted keys, which of the keys make a run another run, and what its folder is called after them."""

import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import Any

from omegaconf import OmegaConf

from gift_vit.config.compose import flatten
from gift_vit.methods.config import CONFIGS

# Keys that place, watch or speed up a run without moving its numbers but for rounding. Two configs that differ in nothing else
# are the same run; what lies under dataset.root is compared by the data's fingerprint.
PLACEMENT_KEYS = (
    *("paths", "tracker", "run_name", "trainer.workers", "trainer.device"),
    *("trainer.cls_last_block", "trainer.memory", "trainer.step_graph", "trainer.deterministic"),
    *("dataset.root", "dataset.prepare", "dataset.cache"),
)
# With trainer.speed=auto the machine chooses these.
SETTLED_BY_SPEED = ("trainer.precision", "trainer.compile")
SPEED = "trainer.speed"

_LONGEST_NAME = 150
_IN_EVERY_NAME = {"optim.lr", "optim.weight_decay", "seed"}
_IN_THE_PATH = {"phase", "dataset.name"}


def identifying(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config without :data:`PLACEMENT_KEYS`, and with ``trainer.speed`` or what it settles, whichever was given.

    An option that a run's method did not have when it was trained has its default.
    """
    method = values.get("method", {})
    flat = dict(flatten({**values, "method": {**_defaults(method.get("kind")), **method}} if method else values))
    left_out = SETTLED_BY_SPEED if flat.get(SPEED) == "auto" else (SPEED,)
    return {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in (*PLACEMENT_KEYS, *left_out))
    }


@cache
def _defaults(kind: str | None) -> Mapping[str, Any]:
    """The options of a kind of method that have a default, with it; nothing for a kind that is no longer known."""
    if kind not in CONFIGS:
        return {}
    options: Any = OmegaConf.to_container(OmegaConf.structured(CONFIGS[kind]))
    return {name: value for name, value in options.items() if value != "???"}


def config_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Identifying keys whose values differ between two resolved configs, as ``{key: (first, second)}``."""
    left, right = identifying(first), identifying(second)
    if SPEED in left | right:
        left, right = ({SPEED: "exact"} | side for side in (left, right))
        left, right = ({key: value for key, value in side.items() if key not in SETTLED_BY_SPEED} for side in (left, right))
    return {key: (left.get(key), right.get(key)) for key in sorted(left | right) if left.get(key) != right.get(key)}


def value_order(value: object) -> tuple[int, float, str]:
    """A sort key for values of the configuration: numbers by size, then lists by length, then everything else by its text."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return (1, float(len(value)), str(value)) if isinstance(value, list) else (2, 0.0, str(value))


def default_run_name(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Protocol, learning rate, weight decay, seed, and every other value that differs from the composed defaults.

    A name too long for a folder is cut and ends in a hash of the whole.
    """
    optim = values["optim"]
    parts = [values["protocol"]["name"], f"lr{optim['lr']:g}", f"wd{optim['weight_decay']:g}", f"seed{values['seed']}"]
    for key, (_, value) in config_difference(baseline, values).items():
        if key not in _IN_EVERY_NAME | _IN_THE_PATH:
            parts.append(f"{_slug(key.rsplit('.', 1)[-1])}{_slug(value)}")
    name = "_".join(parts)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def _slug(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return "-".join(_slug(item) for item in value)
    text = f"{value:g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")
