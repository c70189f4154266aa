"""Under which conditions a run's step time and memory were measured; runs of others are not compared, or it is said."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gift_vit.config.compose import flatten
from gift_vit.config.keys import difference
from gift_vit.runs.result import Result

# What does not change how long a step takes or what it needs; the rest of these sections counts.
_NO_MATTER = {"env": {"acceleration", "parallel_runs", "platform"}, "trainer": {"epochs", "eval_every", "device"}}
# Ways to compute that a method may rule out, as one that mixes tokens does: part of what it costs, and said.
_RULED_OUT = (
    *("cls_last_block", "drop_path_on_kept", "onednn_products", "frozen_in_bf16"),
    *("step_graph", "compiled_by_block", "patches_by_product"),
)


def conditions(result: Result) -> Mapping[str, object]:
    """What a run's step time and memory depend on besides its method, by name; what is None the run is too old to tell."""
    env, accelerated = result.env, _accelerated(result)
    config = dict(flatten({key: result.run.config.get(key) or {} for key in ("trainer", "dataset")}))
    found: dict[str, object] = {key: value for key, value in env.items() if key not in _NO_MATTER["env"]}
    found |= {key: value for key, value in accelerated.items() if key not in _RULED_OUT}
    found |= {
        key: value for key, value in config.items() if key.startswith("trainer.") and key[8:] not in _NO_MATTER["trainer"]
    }
    found |= {
        "dataset": result.run.dataset,
        "dataset.cache": config.get("dataset.cache"),
        "backbone": result.backbone.get("architecture"),
        "image size": result.backbone.get("input_size"),
        "processes": env.get("processes", 1),  # not recorded before a run could have several
    }
    if env.get("fused_attention") is not None:  # older versions wrote down what timm prefers, not what was used
        found["fused_attention"] = bool(env["fused_attention"]) and not accelerated.get("plain_attention")
    return {key: value for key, value in found.items() if value is not None and value is not False}


class Reference:
    """Runs that the time and the memory of others are compared with, by their conditions."""

    def __init__(self, runs: Iterable[Result]) -> None:
        self._by_conditions: dict[str, list[Result]] = defaultdict(list)
        for run in runs:
            self._by_conditions[_key(run)].append(run)

    def like(self, run: Result) -> Sequence[Result]:
        """Those measured under the same conditions."""
        return self._by_conditions.get(_key(run), ())

    def nearest(self, run: Result) -> Result | None:
        """One on the same dataset, with the fewest differences; None: there is none."""
        same = [runs[0] for runs in self._by_conditions.values() if runs[0].run.dataset == run.run.dataset]
        return min(same, key=lambda other: len(difference(conditions(run), conditions(other))), default=None)


def cost_notes(rows: Mapping[str, Sequence[Result]], reference: Reference, name: str) -> tuple[str, ...]:
    """What a reader must know of the multiples in a table: which runs have none and why, and what was computed otherwise.

    Args:
        rows: The runs of each row, by what it is called.
        reference: What they are multiples of.
        name: What that is called.
    """
    apart: dict[str, dict[str, None]] = defaultdict(dict)
    unlike: dict[str, dict[str, None]] = defaultdict(dict)
    for row, runs in rows.items():
        for run in runs:
            if same := reference.like(run):
                changed = _changes(_ruled_out(run), _ruled_out(same[0]), name)
                unlike[changed][row] = None
            elif nearest := reference.nearest(run):
                apart[_changes(conditions(run), conditions(nearest), name)][row] = None
    unlike.pop("", None)
    notes = [f"Not compared in step time and memory: {', '.join(rows)}, with {changed}." for changed, rows in apart.items()]
    notes += [f"Computed in another way: {', '.join(rows)}, with {changed}." for changed, rows in unlike.items()]
    return tuple(notes)


def mixed_note(runs: Iterable[Result], what: str) -> tuple[str, ...]:
    """A sentence where runs whose ``what`` stands in one table were made under several conditions."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    found = [{**conditions(run), "dataset": None} for run in runs]
    for key in sorted({key for own in found for key in own}):
        for own in found:
            values[key][_text(own.get(key))] = None
    mixed = [f"{key} {', '.join(sorted(texts))}" for key, texts in values.items() if len(texts) > 1]
    return (f"{what}: of runs under several conditions ({'; '.join(mixed)}).",) if mixed else ()


def _key(run: Result) -> str:
    return json.dumps(conditions(run), sort_keys=True, default=str)


def _accelerated(result: Result) -> dict[str, Any]:
    found = result.env.get("acceleration")
    return found if isinstance(found, dict) else {}


def _ruled_out(result: Result) -> dict[str, object]:
    return {key: value for key in _RULED_OUT if (value := _accelerated(result).get(key))}


def _changes(own: Mapping[str, object], others: Mapping[str, object], name: str) -> str:
    """``precision bf16 (linear probing: fp32)``."""
    found = difference(own, others).items()
    return "; ".join(f"{key} {_text(mine)} ({name}: {_text(theirs)})" for key, (mine, theirs) in found)


def _text(value: object) -> str:
    if value is None:
        return "off or unknown"
    return "on" if value is True else value if isinstance(value, str) else json.dumps(value, default=str)
