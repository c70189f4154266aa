"""One strict loader from composed YAML to typed configs: every mistake becomes one line.

YAML holds the values, the rooms' dataclasses hold names, types and checks; :func:`load_config` joins them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.acceleration.config import ComputeConfig
from gift_vit.backbones.config import BackboneConfig
from gift_vit.common.checks import one_of
from gift_vit.common.errors import ConfigError, unknown_key
from gift_vit.config.compose import conf_dir, flatten
from gift_vit.config.keys import SETTLED_BY_SPEED, SPEED, default_run_name
from gift_vit.config.run_config import PHASES, TRAIN_SPLITS, PathsConfig, Phase, ProtocolConfig, RunConfig
from gift_vit.data.config import DatasetConfig, LoadingConfig
from gift_vit.data.config import config_class as dataset_class
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.methods.config import config_class as method_class
from gift_vit.tracking.config import TrackerConfig

T = TypeVar("T")

# Each section of the YAML, and the configs that its keys are dealt to.
_SECTIONS: dict[str, dict[str, type[Any]]] = {
    "backbone": {"backbone": BackboneConfig},
    "optim": {"optim": OptimConfig},
    "trainer": {"trainer": TrainerConfig, "loading": LoadingConfig, "compute": ComputeConfig},
    "protocol": {"protocol": ProtocolConfig},
    "tracker": {"tracker": TrackerConfig},
    "paths": {"paths": PathsConfig},
}
_SCALARS = ("seed", "phase", "run_name")
_PATHS = (
    *(("paths", key) for key in ("output_root", "data_root", "cache_root")),
    *(("dataset", "root"), ("backbone", "weights"), ("method", "weights")),
)
# Written by versions before 0.2 into config.yaml; and what the runs of versions without a key had in its place.
_DROPPED = (("trainer", "parallel_runs"),)
_ADDED = {
    "trainer": {"cls_last_block": "auto", "memory": "fast", "speed": "exact", "step_graph": "auto", "deterministic": False}
}


def load_config(cfg: DictConfig, baseline: Callable[[], DictConfig] | None = None) -> RunConfig:
    """Check a composed config and turn it into dataclasses.

    Args:
        cfg: What Hydra composed, or a run's ``config.yaml``.
        baseline: Composes the same groups without value overrides; where ``run_name`` is null, the name lists what differs
            from it.

    Raises:
        ConfigError: For an unknown or missing key, a value of the wrong type, or values that contradict each other.
    """
    values = _resolve(cfg)
    recipe = values.pop("recipe", None)
    missing = [key for key, value in flatten(values) if value == "???"]
    if missing:
        raise ConfigError(f"{missing[0]} is required; give {missing[0]}=<value>")
    _check_keys("", values, [*_SECTIONS, *_SCALARS, "dataset", "method"])
    _make_absolute(values)
    configs = {name: config for section in _SECTIONS for name, config in _build_section(section, values[section]).items()}
    dataset = _build_dataset(values["dataset"])
    values["dataset"]["name"] = dataset.name
    method, method_name = _build_method(values["method"])
    phase, seed = str(values["phase"]), values["seed"]
    one_of(PHASES)("phase", phase)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected a whole number of 0 or more")
    for named, split in configs["protocol"].final_train.items():
        one_of(TRAIN_SPLITS)(f"protocol.final_train.{named}", split)
    _check_benchmark(dataset, configs["protocol"])
    accumulated, batch_size = configs["trainer"].grad_accumulation, configs["trainer"].batch_size
    if accumulated > batch_size:
        raise ConfigError(f"trainer.grad_accumulation={accumulated} exceeds trainer.batch_size={batch_size}; lower it")
    if configs["backbone"].weights is not None and not configs["backbone"].pretrained:
        raise ConfigError("backbone.weights and backbone.pretrained=false contradict each other; drop one")
    if configs["optim"].warmup_epochs >= configs["trainer"].epochs:
        raise ConfigError(
            f"optim.warmup_epochs={configs['optim'].warmup_epochs} leaves nothing of "
            f"trainer.epochs={configs['trainer'].epochs}; lower it"
        )
    if values["run_name"] is None:
        values["run_name"] = default_run_name(values, _resolve(baseline()) if baseline is not None else values)
    values["run_name"] = run_name = str(values["run_name"])
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", run_name):
        raise ConfigError(f"run_name={run_name!r}: expected lower-case letters, digits, '.', '_' and '-'")
    protocol, benchmark = configs["protocol"], dataset.benchmark
    cut = protocol.search_epochs[benchmark] if phase == "search" else None
    run = RunConfig(
        dataset=dataset,
        method=method,
        method_name=method_name,
        seed=seed,
        phase=cast(Phase, phase),
        run_name=run_name,
        folder=Path(configs["paths"].output_root, phase, dataset.name, method_name, configs["backbone"].name, run_name),
        values=values,
        train_split="train" if phase == "search" else protocol.final_train[benchmark],
        stop_epoch=None if cut is None else min(cut, configs["trainer"].epochs),
        **configs,
    )
    if recipe is not None:
        _check_recipe(recipe, run)
    return run


def check_present(run: RunConfig) -> None:
    """Refuse data or weights that are not there, before anything heavy is imported."""
    run.dataset.check_present()
    if run.backbone.weights is not None and not Path(run.backbone.weights).is_file():
        raise ConfigError(f"backbone.weights={run.backbone.weights}: no such file")
    if hasattr(run.method, "check_present"):
        run.method.check_present()


def protocol_changes(cfg: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Values the protocol's own file sets and this run changed, as ``{key: (protocol's, used)}``."""
    file = conf_dir() / "protocol" / f"{cfg.protocol.name}.yaml"
    if not file.is_file():
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    rules, used = dict(flatten(content)), dict(flatten(cfg.values))
    if cfg.compute.speed == "auto" and rules.keys() & set(SETTLED_BY_SPEED):  # known on the machine alone
        rules = {key: value for key, value in rules.items() if key not in SETTLED_BY_SPEED} | {SPEED: "exact"}
    changes = {key: (value, used[key]) for key, value in rules.items() if key != "seed" and used[key] != value}
    ruled, resize = cfg.protocol.resize[cfg.dataset.benchmark], cfg.dataset.transform.resize
    return changes if resize == ruled else {**changes, "dataset.transform.resize": (ruled, resize)}


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    for section, key in (("method", "grid"), *_DROPPED):  # a grid belongs to sweeps, not to a run
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)
    for section, added in _ADDED.items():
        if isinstance(values.get(section), dict):
            values[section] |= {key: value for key, value in added.items() if key not in values[section]}
    for key in ("grid", "grids", "pruning"):  # of sweeps, too; of versions before 0.2
        values.pop(key, None)
    return values


def _make_absolute(values: dict[str, Any]) -> None:
    """Paths do not change their meaning with the working directory."""
    for section, key in _PATHS:
        if values[section].get(key) == "":
            raise ConfigError(f"{section}.{key} is empty: give a path, or unset the environment variable that it is taken from")
        if isinstance(values[section].get(key), str):
            values[section][key] = str(Path(values[section][key]).expanduser().absolute())


def _build_section(section: str, values: Any) -> dict[str, Any]:
    """The configs that a section's keys are dealt to."""
    classes = _SECTIONS[section]
    owner = {field.name: name for name, cls in classes.items() for field in fields(cls)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section}={values!r}: expected the keys {', '.join(owner)}")
    _check_keys(section, values, list(owner))
    dealt = {name: {key: value for key, value in values.items() if owner[key] == name} for name in classes}
    return {name: _build(cls, dealt[name], section) for name, cls in classes.items()}


def _build_dataset(values: Mapping[str, Any]) -> DatasetConfig:
    section = dict(values)
    return _build(dataset_class(_kind(section, "dataset")), section, "dataset")


def _build_method(values: Mapping[str, Any]) -> tuple[Any, str]:
    section = dict(values)
    cls = method_class(_kind(section, "method"))
    if "name" not in section:
        raise ConfigError("method.name is required: the label of the method in run folders and tables")
    name = str(section.pop("name"))
    return _build(cls, section, "method"), name


def _kind(section: dict[str, Any], name: str) -> str:
    if "kind" not in section:
        raise ConfigError(f"{name}.kind is required")
    return str(section.pop("kind"))


def _build(cls: type[T], values: Mapping[str, Any], section: str) -> T:
    """A dataclass from plain values, with types checked by OmegaConf and messages that name the key."""
    schema = OmegaConf.structured(cls)
    _check_keys(section, values, list(schema))
    for key, value in values.items():
        try:
            schema.merge_with({key: value})
        except OmegaConfBaseException as error:  # noqa: PERF203
            raise ConfigError(f"{section}.{key}: {_first_line(error)}") from error
    missing = sorted(OmegaConf.missing_keys(schema))
    if missing:
        raise ConfigError(f"{section}.{missing[0]} is required")
    return OmegaConf.to_object(schema)  # pyright: ignore[reportReturnType]


def _check_keys(section: str, values: Mapping[str, Any], known: list[str]) -> None:
    prefix = f"{section}." if section else ""
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in known]))
    absent = [key for key in known if not section and key not in values]
    if absent:
        raise ConfigError(f"the config has no {absent[0]}; it was not composed from train.yaml")


def _check_benchmark(dataset: DatasetConfig, protocol: ProtocolConfig) -> None:
    for key in ("final_train", "search_epochs", "resize"):
        if dataset.benchmark not in getattr(protocol, key):
            raise ConfigError(f"protocol.{key} has no entry for benchmark {dataset.benchmark!r} of dataset {dataset.name}")


def _check_recipe(recipe: Mapping[str, Any], cfg: RunConfig) -> None:
    """A recipe holds where it was chosen; ``recipe`` is what its file says of that."""
    used = {
        "dataset": cfg.dataset.name,
        "method": cfg.method_name,
        "backbone": cfg.backbone.name,
        "protocol": cfg.protocol.name,
        "changes": {key: change[1] for key, change in protocol_changes(cfg).items()},
    }
    differing = [key for key, value in used.items() if recipe.get(key) != value]
    if differing:
        chosen, here = ({key: values.get(key) for key in differing} for values in (recipe, used))
        raise ConfigError(
            f"the recipe was chosen with {chosen} and this run has {here} (changes: of the protocol's values); "
            "leave the recipe out with recipe=none, or choose one with python -m experiments.select"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
