"""The flat names by which W&B compares runs, after those of ``result.json``; ``experiments.dashboard`` draws them."""

from collections.abc import Mapping
from typing import Any


def config_fields(values: Mapping[str, Any]) -> dict[str, object]:
    """What a run is, from its resolved configuration, which follows whole under ``config``.

    ``rank`` and ``num_tokens`` are there for the methods that have one; a peft method's ``r`` is its rank.
    """
    method = values["method"]
    sizes = {"rank": method.get("rank", method.get("options", {}).get("r")), "num_tokens": method.get("num_tokens")}
    return {
        **{section: values[section]["name"] for section in ("dataset", "method", "backbone", "protocol")},
        "benchmark": values["dataset"]["benchmark"],
        "kind": method["kind"],
        "phase": values["phase"],
        "seed": values["seed"],
        "lr": values["optim"]["lr"],
        "weight_decay": values["optim"]["weight_decay"],
        **{name: size for name, size in sizes.items() if size is not None},
        "config": values,
    }


def summary_fields(record: Mapping[str, object]) -> dict[str, object]:
    """A record of one level, sections joined to their keys as W&B groups them: ``{"cost": {"x": 1}}`` → ``{"cost/x": 1}``."""
    flat: dict[str, object] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
