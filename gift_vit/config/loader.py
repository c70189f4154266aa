"""One strict loader from composed YAML to typed configs: every mistake becomes one line.

YAML holds the values, the rooms' dataclasses hold names, types and checks; :func:`load_config` joins them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra.conf import HydraConf
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.events import AliasEvent

from gift_vit.acceleration.config import ComputeConfig
from gift_vit.backbones.config import BackboneConfig
from gift_vit.common.checks import check_number, expect, folder_name, one_of
from gift_vit.common.errors import ConfigError, unknown_key
from gift_vit.common.files import expanded
from gift_vit.config.compose import PATHS, baseline_of, choices, conf_dir, file_of, flatten, with_recipe
from gift_vit.config.keys import (
    BY_BENCHMARK,
    SETTLED_BY_SPEED,
    as_word,
    default_run_name,
    is_placement,
    own_backbone,
    with_defaults,
)
from gift_vit.config.run_config import PHASES, PathsConfig, Phase, ProtocolConfig, RunConfig
from gift_vit.data.config import KINDS, CommonsenseConfig, DatasetConfig, LoadingConfig
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
_LARGEST = 1 << 20  # bytes of a config.yaml; one of a run has two thousand
_SCALARS = ("seed", "phase", "run_name")
_GLOBAL_GROUPS = {"experiment", "sweep", "recipe", "debug"}  # files that set keys of other sections
_NAMED = ("method", "backbone", "protocol")  # sections whose names are parts of a run's path, or of its name
# Written by versions before 0.2 into config.yaml; and what the runs of versions without a key had in its place.
_DROPPED = (("trainer", "parallel_runs"),)
_ADDED = {
    "trainer": {"cls_last_block": "auto", "memory": "fast", "speed": "exact", "step_graph": "auto", "deterministic": False},
    "backbone": {"global_pool": None},
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
    values, recipe = _read(cfg)
    configs = {name: config for section in _SECTIONS for name, config in _build_section(section, values[section]).items()}
    dataset = _build_dataset(values["dataset"])
    values["dataset"]["name"], values["backbone"]["name"] = dataset.name, configs["backbone"].name
    method, method_name = _build_method(values["method"])
    phase, seed = str(values["phase"]), values["seed"]
    one_of(PHASES)("phase", phase)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected a whole number of 0 or more")
    _check_benchmark(dataset, configs["protocol"])
    _check_task(dataset, configs["backbone"], method)
    _check_together(**configs)
    if values["run_name"] is None:
        values["run_name"] = default_run_name(values, _resolve(baseline()) if baseline is not None else values)
    values["run_name"] = run_name = str(values["run_name"])
    fits = re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,199}", run_name) is not None
    expect(fits, "run_name", repr(run_name), "lower-case letters, digits, '.', '_' and '-', 200 at most")
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
        recipe=recipe,
        train_split="train" if phase == "search" else protocol.final_train[benchmark],
        stop_epoch=None if cut is None else min(cut, configs["trainer"].epochs),
        **configs,
    )
    if protocol.kept_epoch == "best" and run.train_split != "train":
        raise ConfigError("protocol.kept_epoch=best is chosen on val, which this run trains on; give protocol.kept_epoch=last")
    if recipe is not None:
        _check_recipe(recipe, run)
    return run


def load_job(cfg: DictConfig, hydra_cfg: HydraConf) -> RunConfig:
    """The run of a job of Hydra's, named after what differs from its :func:`baseline_of`.

    A final run has the recipe of its dataset, which Hydra finds by the dataset's file: ``cub_gift``. A person's own images all
    have one file, and names of their own, as ``folder_birds``; theirs is looked for here.
    """

    def name() -> str:
        values, _ = _read(cfg)
        return f"{_build_dataset(values['dataset']).name}_{_build_method(values['method'])[1]}"

    return load_config(with_recipe(cfg, hydra_cfg, name), lambda: baseline_of(hydra_cfg))


def _read(cfg: DictConfig) -> tuple[dict[str, Any], Any]:
    """The sections as plain containers, with paths as they are from here on; and what the recipe says of itself."""
    values = _resolve(cfg)
    recipe = values.pop("recipe", None)
    _check_values(values)
    for section in _NAMED:
        if values[section].get("name") is not None:
            values[section]["name"] = str(values[section]["name"])
    _make_absolute(values)
    return values, recipe


def read_config(file: Path) -> DictConfig:
    """A run's ``config.yaml``, unchecked.

    Raises:
        ConfigError: If it cannot be read, is no YAML with sections, or holds what no run writes: an alias, or a megabyte.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST + 1).decode("utf-8-sig")
        if len(text) > _LARGEST:
            raise ValueError("it is larger than a megabyte")
        if "*" in text and any(isinstance(event, AliasEvent) for event in yaml.parse(text)):
            raise ValueError("it holds an alias, which may stand for endlessly much")
        cfg = OmegaConf.load(StringIO(text))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{file} is no configuration of a run: it holds a list")
    return cfg


def check_present(run: RunConfig) -> None:
    """Refuse data or weights that are not there, before anything heavy is imported."""
    run.dataset.check_present()
    run.backbone.check_present()
    if hasattr(run.method, "check_present"):
        run.method.check_present()


def protocol_changes(cfg: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Values the protocol's own file sets and this run changed, as ``{key: (protocol's, used)}``."""
    file = conf_dir() / "protocol" / f"{cfg.protocol.name}.yaml"
    if not file.is_file():
        return {}
    content = OmegaConf.load(file)
    told = {key for key, _ in flatten(cast(Any, OmegaConf.to_container(content)))}
    whole = OmegaConf.merge(OmegaConf.create(cfg.values), content)  # its values may refer to those of the run
    rules = {key: value for key, value in flatten(cast(Any, OmegaConf.to_container(whole, resolve=True))) if key in told}
    used = dict(flatten(cfg.values))  # of an older version's run without what the protocol says of later benchmarks
    ruled = {key: value for key, value in rules.items() if key != "seed" and not is_placement(key)}
    changes = {key: (value, used[key]) for key, value in ruled.items() if key in used and used[key] != value}
    meant, resize = cfg.protocol.resize[cfg.dataset.benchmark], cfg.dataset.transform.resize
    same = resize == meant or cfg.dataset.thing == "text"
    return changes if same else {**changes, "dataset.transform.resize": (meant, resize)}


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{key}: {_first_line(error)}" if key else _first_line(error)) from error
    for section, key in (("method", "grid"), *_DROPPED):  # a grid belongs to sweeps, not to a run
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)
    for section, added in _ADDED.items():
        if isinstance(values.get(section), dict):
            values[section] |= {key: value for key, value in added.items() if key not in values[section]}
    for key in ("grid", "grids", "seeds", "pruning"):  # of sweeps, too; of versions before 0.2
        values.pop(key, None)
    if isinstance(values.get("dataset"), dict):
        values["dataset"] = _completed(values["dataset"])
    return values


def _completed(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a dataset with the defaults of what its YAML leaves out, and ``???`` where there is none."""
    kind = dataset.get("kind", "???")
    cls = DatasetConfig if kind == "???" else KINDS.config_class(str(kind))
    return {"kind": kind, **with_defaults(cls, dataset)}


def _make_absolute(values: dict[str, Any]) -> None:
    """Paths do not change their meaning with the working directory."""
    for section, key in PATHS:
        if values[section].get(key) == "":
            raise ConfigError(f"{section}.{key} is empty: give a path, or unset the environment variable that it is taken from")
        if type(values[section].get(key)) is int:  # a folder 2024, which a sweep takes for a number
            values[section][key] = str(values[section][key])
        if isinstance(values[section].get(key), str):
            expect("\0" not in values[section][key], f"{section}.{key}", repr(values[section][key]), "a path")
            values[section][key] = str(expanded(values[section][key]).absolute())
    model = values["backbone"].get("model")
    if values["backbone"].get("kind") == "transformers" and isinstance(model, str) and expanded(model).is_dir():
        values["backbone"]["model"] = str(expanded(model).absolute())


def _build_section(section: str, values: Any) -> dict[str, Any]:
    """The configs that a section's keys are dealt to."""
    classes = _SECTIONS[section]
    owner = {field.name: name for name, cls in classes.items() for field in fields(cls)}
    _check_keys(section, values, list(owner))
    dealt = {name: {key: value for key, value in values.items() if owner[key] == name} for name in classes}
    return {name: _build(cls, dealt[name], section) for name, cls in classes.items()}


def _build_dataset(values: Mapping[str, Any]) -> DatasetConfig:
    section = dict(values)
    return _build(KINDS.config_class(_kind(section, "dataset")), section, "dataset")


def _build_method(values: Mapping[str, Any]) -> tuple[Any, str]:
    section = dict(values)
    cls = method_class(_kind(section, "method"))
    if "name" not in section:
        raise ConfigError("method.name is required: the label of the method in run folders and tables")
    name = str(section.pop("name"))
    folder_name("method.name", name)
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
        if isinstance(schema._get_node(key), ListConfig) and not isinstance(value, list | None):
            raise ConfigError(f"{section}.{key}={value}: expected a list, as [{value}]")
        try:
            schema.merge_with({key: value})
        except OmegaConfBaseException as error:
            raise ConfigError(f"{section}.{key}: {_first_line(error)}") from error
    missing = [f"{section}.{key}" for key in sorted(OmegaConf.missing_keys(schema))]
    if missing:
        raise ConfigError(_required(missing))
    try:
        return OmegaConf.to_object(schema)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{section}: {_first_line(error)}") from error


def _check_together(optim: OptimConfig, trainer: TrainerConfig, **_: object) -> None:
    """Values that each are right and contradict each other."""
    if trainer.grad_accumulation > trainer.batch_size:
        raise ConfigError(
            f"trainer.grad_accumulation={trainer.grad_accumulation} exceeds trainer.batch_size={trainer.batch_size}; lower it"
        )
    if optim.warmup_epochs >= trainer.epochs:
        raise ConfigError(
            f"optim.warmup_epochs={optim.warmup_epochs} leaves nothing of trainer.epochs={trainer.epochs}; lower it"
        )


def _check_values(values: Mapping[str, Any]) -> None:
    """All sections are there, nothing that is required is missing, and every number can be reckoned with."""
    _check_sections(values)
    missing = [key for key, value in flatten(values) if value == "???"]
    if missing:
        raise ConfigError(f"{_required(missing)}; give {' '.join(f'{key}=<value>' for key in missing)}")
    for key, value in flatten(values):
        check_number(key, value)


def _check_sections(values: Mapping[str, Any]) -> None:
    """The sections and single values are there, no others, and a section holds keys."""
    sections = [*_SECTIONS, "dataset", "method"]
    if nested := sorted(_GLOBAL_GROUPS & values.keys()):
        raise ConfigError(
            f"the file of {nested[0]}= sets keys below its own name; its first line must be `# @package _global_`"
        )
    _check_keys("", values, [*sections, *_SCALARS])
    absent = [key for key in (*sections, *_SCALARS) if key not in values]
    if absent:
        raise ConfigError(f"the config has no {', '.join(absent)}; it was not composed from train.yaml, or with ~{absent[0]}")
    for section in sections:
        if not isinstance(values[section], Mapping):
            raise ConfigError(f"{section}={values[section]!r}: expected a section with keys and values")


def _check_keys(section: str, values: Mapping[str, Any], known: list[str]) -> None:
    prefix = f"{section}." if section else ""
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in known]))


def _required(missing: Sequence[str]) -> str:
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} required"


def _check_benchmark(dataset: DatasetConfig, protocol: ProtocolConfig) -> None:
    for key in BY_BENCHMARK:
        if dataset.benchmark not in getattr(protocol, key):
            raise ConfigError(f"protocol.{key} has no entry for benchmark {dataset.benchmark!r} of dataset {dataset.name}")


def _check_task(dataset: DatasetConfig, backbone: BackboneConfig, method: Any) -> None:
    """Texts are for models of transformers, and images for timm's."""
    if dataset.thing == "text" and getattr(method, "init", None) == "eva":
        raise ConfigError(
            f"method.init=eva looks at training images, and dataset {dataset.name} holds texts; give another method.init"
        )
    if dataset.thing == "text" and not backbone.is_text:
        raise ConfigError(
            f"dataset {dataset.name} holds texts, and backbone {backbone.name} takes images; give backbone=roberta_base, or "
            "backbone=hf backbone.model=<a name at the hub or a folder>"
        )
    if backbone.dtype != "float32" and not isinstance(dataset, CommonsenseConfig):
        raise ConfigError(
            f"backbone.dtype={backbone.dtype} is for language models, which dataset {dataset.name} does not train; give "
            "backbone.dtype=float32"
        )
    if dataset.thing != "text" and backbone.is_text:
        raise ConfigError(
            f"dataset {dataset.name} holds images, and backbone {backbone.name} takes texts; give dataset=text, or a ViT"
        )


def _check_recipe(recipe: Mapping[str, Any], cfg: RunConfig) -> None:
    """A recipe holds where it was chosen; ``recipe`` is what its file says of that."""
    if not isinstance(recipe, Mapping) or "dataset" not in recipe:
        raise ConfigError(
            f"recipe={recipe!r}: expected the name of a file that python -m experiments.select has written, or none"
        )
    used = {
        "dataset": cfg.dataset.name,
        "method": cfg.method_name,
        "backbone": cfg.backbone.name,
        "protocol": cfg.protocol.name,
        "changes": {key: change[1] for key, change in protocol_changes(cfg).items()},
    }
    told = dict(recipe)
    if "options" in recipe:  # not of older ones
        used["changes"] |= own_backbone(cfg.values)
        told["changes"] = {**(told.get("changes") or {}), **recipe["options"]}
    for place in (used, told):  # it holds in every number format, which is the machine's matter
        changes = place.get("changes") or {}  # older recipes name seeds too
        place["changes"] = {k: value for k, value in changes.items() if k not in SETTLED_BY_SPEED and not is_placement(k)}
    differing = [key for key, value in used.items() if told.get(key) != value]
    if not differing:
        return
    chosen, here = ({key: values.get(key) for key in differing} for values in (told, used))
    own_data = told["dataset"] not in choices()["dataset"]  # named after its folder, and chosen by no word
    skipped = {"changes", "dataset"} if own_data else {"changes"}
    add = [as_word(key, told[key]) for key in differing if key not in skipped and key in told]
    add += [as_word(key, value) for key, value in told["changes"].items() if used["changes"].get(key, ...) != value]
    drop = [key for key in used["changes"] if key not in told["changes"]]
    steps = [f"add {' '.join(add)}"] if add else []
    steps += [f"leave out what sets {', '.join(drop)}"] if drop else []
    file = file_of("recipe", f"{recipe.get('dataset')}_{recipe.get('method')}")
    raise ConfigError(
        f"the recipe was chosen with {chosen} and this run has {here} (changes: of protocol and backbone); for {file} "
        f"{' and '.join(steps) or 'give its dataset'}, or leave the recipe out with recipe=none, or choose one with "
        "python -m experiments.select"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
