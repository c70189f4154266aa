"""One strict loader from composed YAML to typed configs: every mistake becomes one line.

YAML holds the values, dataclasses hold names, types and checks; :func:`load_config` joins them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.backbones import BackboneConfig
from gift_vit.data import CacheSettings, DatasetConfig, get_dataset
from gift_vit.engine import OptimConfig, TrainerConfig
from gift_vit.errors import ConfigError, did_you_mean
from gift_vit.keys import SETTLED_BY_SPEED, SPEED, config_difference, flatten
from gift_vit.methods import get_method
from gift_vit.paths import conf_dir
from gift_vit.pruning import PruningConfig
from gift_vit.tracking import TrackerConfig

Phase = Literal["search", "final"]
PHASES = get_args(Phase)
TRAIN_SPLITS = ("train", "trainval")

_LONGEST_NAME = 150

T = TypeVar("T")


@dataclass
class ProtocolConfig:
    """The rules a run keeps, beside the values the protocol's YAML sets in ``optim`` and ``trainer``.

    Attributes:
        name: ``gift_paper`` or ``clean``; the YAML's own name.
        final_train: The split the final phase trains on, by benchmark: ``train`` or ``trainval``.
        search_epochs: Epochs after which the search phase stops, by benchmark; the schedule is cut, not rescaled. None: no cut.
        seeds: The seeds of the final phase.
        resize: The resize of the datasets' transform, by benchmark; None: the backbone weights' own.
    """

    name: str
    final_train: dict[str, str]
    search_epochs: dict[str, int | None]
    seeds: list[int]
    resize: dict[str, str | None]

    def __post_init__(self) -> None:
        for benchmark, split in self.final_train.items():
            if split not in TRAIN_SPLITS:
                raise ConfigError(f"protocol.final_train.{benchmark}={split!r}: expected one of {', '.join(TRAIN_SPLITS)}")


@dataclass
class PathsConfig:
    """Where runs are written, data is read, decoded images are cached; relative paths start in the working directory."""

    output_root: str
    data_root: str
    cache_root: str


@dataclass
class RunConfig:
    """Everything one run depends on.

    Attributes:
        method: The method's config, of the class its kind registers.
        method_name: The method's label: the name of its YAML.
        folder: The run's folder.
        values: The resolved config as plain containers: what ``config.yaml`` holds.
        pruning: Where a run of ``sweeper=asha`` reports to; it does not make it another run.
    """

    dataset: DatasetConfig
    method: Any
    method_name: str
    backbone: BackboneConfig
    optim: OptimConfig
    trainer: TrainerConfig
    protocol: ProtocolConfig
    tracker: TrackerConfig
    paths: PathsConfig
    seed: int
    phase: Phase
    run_name: str
    folder: Path
    values: dict[str, Any]
    pruning: PruningConfig | None

    @property
    def train_split(self) -> str:
        """The split this run trains on."""
        return "train" if self.phase == "search" else self.protocol.final_train[self.dataset.benchmark]

    @property
    def cache(self) -> CacheSettings:
        """Where decoded images are kept between epochs."""
        return CacheSettings(self.dataset.cache, Path(self.paths.cache_root), self.trainer.workers)

    @property
    def stop_epoch(self) -> int | None:
        """Epochs after which training stops; None: the whole schedule."""
        cut = self.protocol.search_epochs[self.dataset.benchmark] if self.phase == "search" else None
        return None if cut is None else min(cut, self.trainer.epochs)


_SECTIONS: dict[str, type[Any]] = {
    "backbone": BackboneConfig,
    "optim": OptimConfig,
    "trainer": TrainerConfig,
    "protocol": ProtocolConfig,
    "tracker": TrackerConfig,
    "paths": PathsConfig,
}
_SCALARS = ("seed", "phase", "run_name")
_OF_SWEEPS = (("method", "grid"), ("trainer", "parallel_runs"))  # keys that belong to sweeps, not to a run


def load_config(cfg: DictConfig, baseline: DictConfig | None = None) -> RunConfig:
    """Check a composed config and turn it into dataclasses.

    Args:
        cfg: What Hydra composed, or a run's ``config.yaml``.
        baseline: The same groups without value overrides; where ``run_name`` is null, the name lists what differs from it.

    Raises:
        ConfigError: For an unknown or missing key, a value of the wrong type, or values that contradict each other.
    """
    values = _resolve(cfg)
    recipe, pruning = values.pop("recipe", None), values.pop("pruning", None)
    parallel_runs(cfg)
    missing = [key for key, value in flatten(values) if value == "???"]
    if missing:
        raise ConfigError(f"{missing[0]} is required; give {missing[0]}=<value>")
    _check_keys("", values, [*_SECTIONS, *_SCALARS, "dataset", "method"])
    for section, key in (
        ("paths", "output_root"),
        ("paths", "data_root"),
        ("paths", "cache_root"),
        ("dataset", "root"),
        ("backbone", "weights"),
    ):
        if values[section].get(key) == "":
            raise ConfigError(f"{section}.{key} is empty: give a path, or unset the environment variable that it is taken from")
        if isinstance(values[section].get(key), str):
            values[section][key] = str(Path(values[section][key]).expanduser().absolute())
    sections = {name: _build(cls, values[name], name) for name, cls in _SECTIONS.items()}
    dataset = _build_dataset(values["dataset"])
    values["dataset"]["name"] = dataset.name
    method, method_name = _build_method(values["method"])
    phase, seed = str(values["phase"]), values["seed"]
    if phase not in PHASES:
        raise ConfigError(f"unknown phase {phase!r} (known: {', '.join(PHASES)})")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected a whole number of 0 or more")
    _check_benchmark(dataset, sections["protocol"])
    if sections["optim"].warmup_epochs >= sections["trainer"].epochs:
        raise ConfigError(
            f"optim.warmup_epochs={sections['optim'].warmup_epochs} leaves nothing of "
            f"trainer.epochs={sections['trainer'].epochs}; lower it"
        )
    if values["run_name"] is None:
        values["run_name"] = default_run_name(values, _resolve(baseline) if baseline is not None else values)
    values["run_name"] = run_name = _checked_run_name(str(values["run_name"]))
    folder = Path(sections["paths"].output_root, phase, dataset.name, method_name, sections["backbone"].name, run_name)
    run = RunConfig(
        dataset=dataset,
        method=method,
        method_name=method_name,
        seed=seed,
        phase=cast(Phase, phase),
        run_name=run_name,
        folder=folder,
        values=values,
        pruning=None if pruning is None else _build(PruningConfig, pruning, "pruning"),
        **sections,
    )
    _check_recipe(recipe, run)
    return run


def parallel_runs(cfg: DictConfig) -> int:
    """How many runs of a sweep are trained together; what a single run is given is checked and has no effect.

    Raises:
        ConfigError: If that is no whole number of 1 or more.
    """
    number: Any = OmegaConf.select(cfg, "trainer.parallel_runs", default=1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"trainer.parallel_runs={number!r}: expected a whole number of 1 or more")
    return number


def default_run_name(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Protocol, learning rate, weight decay, seed, and every other value that differs from the composed defaults.

    A name too long for a folder is cut and ends in a hash of the whole.
    """
    optim = values["optim"]
    parts = [values["protocol"]["name"], f"lr{optim['lr']:g}", f"wd{optim['weight_decay']:g}", f"seed{values['seed']}"]
    named = {"optim.lr", "optim.weight_decay", "seed", "phase", "dataset.name"}
    for key, (_, value) in config_difference(baseline, values).items():
        if key not in named:
            parts.append(f"{_slug(key.rsplit('.', 1)[-1])}{_slug(value)}")
    name = "_".join(parts)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def protocol_changes(cfg: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Values the protocol's own file sets and this run changed, as ``{key: (protocol's, used)}``."""
    file = conf_dir() / "protocol" / f"{cfg.protocol.name}.yaml"
    if not file.is_file():
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    rules, used = dict(flatten(content)), dict(flatten(cfg.values))
    if cfg.trainer.speed == "auto" and rules.keys() & set(SETTLED_BY_SPEED):  # known on the machine alone
        rules = {key: value for key, value in rules.items() if key not in SETTLED_BY_SPEED} | {SPEED: "exact"}
    changes = {key: (value, used[key]) for key, value in rules.items() if key != "seed" and used[key] != value}
    ruled, resize = cfg.protocol.resize[cfg.dataset.benchmark], cfg.dataset.transform.resize
    return changes if resize == ruled else {**changes, "dataset.transform.resize": (ruled, resize)}


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    for section, key in _OF_SWEEPS:
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)
    return values


def _build_dataset(values: Mapping[str, Any]) -> DatasetConfig:
    section = dict(values)
    spec = get_dataset(_kind(section, "dataset"))
    return _build(spec.config_cls, section, "dataset")


def _build_method(values: Mapping[str, Any]) -> tuple[Any, str]:
    section = dict(values)
    spec = get_method(_kind(section, "method"))
    if "name" not in section:
        raise ConfigError("method.name is required: the label of the method in run folders and tables")
    name = str(section.pop("name"))
    return _build(spec.config_cls, section, "method"), name


def _kind(section: dict[str, Any], name: str) -> str:
    if "kind" not in section:
        raise ConfigError(f"{name}.kind is required")
    return str(section.pop("kind"))


def _build(cls: type[T], values: Any, section: str) -> T:
    """A dataclass from plain values, with types checked by OmegaConf and messages that name the key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section}={values!r}: expected the keys {', '.join(f.name for f in fields(cls))}")  # pyright: ignore[reportArgumentType]
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


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist."""
    hint = did_you_mean(key, known)
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    listed = ", ".join(name.rpartition(".")[2] for name in siblings or known)
    return f"unknown key {key}{hint} (known: {listed})"


def _check_benchmark(dataset: DatasetConfig, protocol: ProtocolConfig) -> None:
    for key in ("final_train", "search_epochs", "resize"):
        if dataset.benchmark not in getattr(protocol, key):
            raise ConfigError(f"protocol.{key} has no entry for benchmark {dataset.benchmark!r} of dataset {dataset.name}")


def _check_recipe(recipe: Any, cfg: RunConfig) -> None:
    """A recipe holds where it was chosen; ``recipe`` is what its file says of that, None where no recipe is in use."""
    if recipe is None:
        return
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


def _checked_run_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ConfigError(f"run_name={name!r}: expected lower-case letters, digits, '.', '_' and '-'")
    return name


def _slug(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return "-".join(_slug(item) for item in value)
    text = f"{value:g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
