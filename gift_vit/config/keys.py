"""Configs as flat dotted keys, which of the keys make a run another run, and what its folder is called after them."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from hashlib import sha256
from typing import Any

from gift_vit.backbones.config import BackboneConfig
from gift_vit.config.compose import defaults_of, flatten
from gift_vit.data.config import BENCHMARKS
from gift_vit.data.config import CONFIGS as DATASETS
from gift_vit.engine.config import OptimConfig
from gift_vit.methods.config import CONFIGS as METHODS

# Keys that place, watch or speed up a run without moving its numbers but for rounding. Two configs that differ in nothing else
# are the same run; what lies under dataset.root is compared by the data's fingerprint.
PLACEMENT_KEYS = (
    *("paths", "tracker", "run_name", "trainer.workers", "trainer.device"),
    *("trainer.cls_last_block", "trainer.memory", "trainer.step_graph", "trainer.deterministic"),
    "trainer.keep_predictions",
    *("dataset.root", "dataset.prepare", "dataset.cache", "dataset.cache_features"),
    *("dataset.check_duplicates", "dataset.transform.max_pixels"),
    "protocol.seeds",  # which others are run
)
# With trainer.speed=auto a GPU chooses these, and config.yaml holds what it chose. On a CPU the run is recorded as exact.
SETTLED_BY_SPEED = ("trainer.precision", "trainer.compile")
SPEED = "trainer.speed"

BY_BENCHMARK = ("final_train", "search_epochs", "resize")  # keys of the protocol
_OF_THE_MODEL = ("pretrained", "img_size", "global_pool", "pooling", "dtype")  # options of a backbone
_OF_ONE_CLASS = {"backbone": BackboneConfig, "optim": OptimConfig}
_KINDS: dict[str, Mapping[str, type[Any]]] = {"dataset": DATASETS, "method": METHODS}
_LONGEST_NAME = 150
_IN_EVERY_NAME = {"optim.lr", "optim.weight_decay", "seed"}
_IN_THE_PATH = {"phase", "dataset.name"}


def identifying(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's flat config without :data:`PLACEMENT_KEYS`, and with ``trainer.speed`` or else what it settles.

    An option that the run's dataset or method did not have yet has its default, which is what was done without it.
    """
    flat = _placed_anywhere(values)
    return _without(flat, _irrelevant(flat))


def own_backbone(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's backbone was told beside its weights, as ``{"backbone.img_size": 384}``: a recipe holds for that alone."""
    defaults = flatten({"backbone": defaults_of(BackboneConfig)})
    usual = {key: value for key, value in defaults if key.removeprefix("backbone.") in _OF_THE_MODEL}
    flat = identifying(values)
    return {key: flat[key] for key, value in usual.items() if flat.get(key, value) != value}


def config_difference(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys in which the config of a run's folder and the one that is given now make different runs, with both values.

    A run that was computed exactly answers for ``trainer.speed=auto`` too.
    """
    left, right = _placed_anywhere(recorded), _placed_anywhere(given)
    return difference(_without(left, _irrelevant(left)), _without(right, _irrelevant(left)))


def _irrelevant(flat: Mapping[str, Any]) -> tuple[str, ...]:
    return SETTLED_BY_SPEED if flat.get(SPEED) == "auto" else (SPEED,)


def _placed_anywhere(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config without what moves nothing: :data:`PLACEMENT_KEYS`, and what the protocol says of other benchmarks."""
    flat = flatten({**values, **_completed(values)})
    benchmark = dict(flatten(values)).get("dataset.benchmark")
    elsewhere = [f"protocol.{key}.{name}" for key in BY_BENCHMARK for name in BENCHMARKS if name != benchmark]
    moved = tuple(f"{key}." for key in (elsewhere if benchmark in BENCHMARKS else ()))
    return {k: value for k, value in flat if not (is_placement(k) or f"{k}.".startswith(moved) or value == "???")}


def is_placement(key: str) -> bool:
    """Whether a key is one of :data:`PLACEMENT_KEYS`, or below one."""
    return f"{key}.".startswith(tuple(f"{placement}." for placement in PLACEMENT_KEYS))


def _completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that have options of one class, and those that have them by kind, where their kind is still known."""
    sections = {name: values[name] for name in _KINDS if isinstance(values.get(name), Mapping)}
    classes = {name: _KINDS[name].get(str(section.get("kind"))) for name, section in sections.items()}
    for name, cls in _OF_ONE_CLASS.items():
        if isinstance(values.get(name), Mapping):
            sections[name], classes[name] = values[name], cls
    return {name: with_defaults(cls, sections[name]) for name, cls in classes.items() if cls is not None}


def with_defaults(cls: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the defaults of the options that it leaves out, and ``???`` where there is none."""
    defaults = deepcopy(defaults_of(cls))
    sections = {field.name for field in fields(cls) if is_dataclass(field.type)}
    within = {key: {**defaults[key], **options[key]} for key in sections if isinstance(options.get(key), Mapping)}
    return {**defaults, **options, **within}


def _without(flat: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key not in keys}


def difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two flat mappings differ, with both values; None where one has none."""
    return {key: (left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)}


def value_order(value: object) -> tuple[int, float, str]:
    """A sort key for values of the configuration: numbers by size, then lists by length, then everything else by its text."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return (1, float(len(value)), str(value)) if isinstance(value, list) else (2, 0.0, str(value))


def one_form(value: Any) -> Any:
    """1 for 1.0, which are one value, whichever way it was typed; in lists too."""
    if isinstance(value, list):
        return [one_form(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_word(key: str, value: Any) -> str:
    """``key=value`` as it is typed on the command line."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value).replace(' ', '')}"


def tie_order(config: Mapping[str, Any]) -> tuple[tuple[object, ...], ...]:
    """A sort key for flat configurations that scored the same: the first one is chosen, wherever something is.

    The smaller learning rate, then the smaller weight decay, then the smaller value of every other key by name; the seed last.
    """
    first = [key for key in ("optim.lr", "optim.weight_decay") if key in config]
    others = sorted(config.keys() - {*first, "seed"})
    return tuple((key, *value_order(config[key])) for key in (*first, *others, *(["seed"] if "seed" in config else [])))


def score_order(top1: float) -> float:
    """A sort key for scores, the highest first; equal ones must not differ by the rounding of a mean."""
    return -round(top1, 6)


def best_of(settings: Sequence[Mapping[str, Any]], top1: Sequence[float]) -> int:
    """The index of the setting with the highest score; of equal ones that of the first in :func:`tie_order`."""
    return min(range(len(settings)), key=lambda index: (score_order(top1[index]), tie_order(settings[index])))


def default_run_name(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Protocol, learning rate, weight decay, seed, and every other value that differs from the composed defaults.

    A name too long for a folder is cut and ends in a hash of the whole.
    """
    rate, decay = (_slug(values["optim"][key]) for key in ("lr", "weight_decay"))
    parts = [values["protocol"]["name"], f"lr{rate}", f"wd{decay}", f"seed{values['seed']}"]
    for key, (_, value) in difference(_placed_anywhere(baseline), _placed_anywhere(values)).items():
        if key not in _IN_EVERY_NAME | _IN_THE_PATH:
            parts.append(f"{_slug(key.rsplit('.', 1)[-1])}{_slug(value)}")
    name = "_".join(parts)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def _slug(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return "-".join(_slug(item) for item in value)
    text = f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value).rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")
