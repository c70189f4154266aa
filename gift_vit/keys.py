"""Configs as flat dotted keys, and which of the keys make a run another run."""

from collections.abc import Iterator, Mapping
from typing import Any

# Keys that place, watch or speed up a run without moving its numbers but for rounding. Two configs that differ in nothing else
# are the same run; what lies under dataset.root is compared by the data's fingerprint.
PLACEMENT_KEYS = (
    *("paths", "tracker", "run_name", "trainer.workers", "trainer.device"),
    *("trainer.cls_last_block", "trainer.memory"),
    *("dataset.root", "dataset.prepare", "dataset.cache"),
)
# With trainer.speed=auto the machine chooses these.
SETTLED_BY_SPEED = ("trainer.precision", "trainer.compile")
SPEED = "trainer.speed"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty section is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identifying(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config without :data:`PLACEMENT_KEYS`, and with ``trainer.speed`` or what it settles, whichever was given."""
    flat = dict(flatten(values))
    left_out = SETTLED_BY_SPEED if flat.get(SPEED) == "auto" else (SPEED,)
    return {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in (*PLACEMENT_KEYS, *left_out))
    }


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
