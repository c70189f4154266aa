"""Working with Hydra's composition: where the YAML lives, the baseline of a run's overrides, and its errors in one line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from gift_vit.common.errors import ConfigError, did_you_mean, unknown_key
from gift_vit.methods.config import CONFIGS

# an axis of a sweep from a list in the configuration
OmegaConf.register_new_resolver("csv", lambda values: ",".join(str(value) for value in values), replace=True)


def _chosen(key: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise ConfigError(f"unknown {key} {name!r}{did_you_mean(name, list(choices))} (known: {', '.join(choices)})")
    return choices[name]


# one of several sections of the configuration
OmegaConf.register_new_resolver("chosen", _chosen, replace=True)

# The defaults of the methods' options, for YAML to start from: ``defaults: [/GiftConfig]`` in ``conf/method/gift.yaml``. A
# default stands in the option's dataclass and nowhere else, yet the composed configuration holds every key, so that each can be
# typed and is shown by --cfg job. They belong to no group, so that no list of choices has them; the loader checks the values.
for _cls in CONFIGS.values():
    _options: Any = OmegaConf.to_container(OmegaConf.structured(_cls))  # ??? where there is no default
    ConfigStore.instance().store(_cls.__name__, {"name": "???", "kind": "???", **_options}, package="method")

BASE_GROUPS = ("dataset", "method", "backbone", "optim", "trainer", "tracker", "paths", "protocol")


def conf_dir() -> Path:
    """Folder holding ``train.yaml``: inside the package when installed from a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in {here} or {here.parent}; reinstall with `pip install -e .`")


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """What ``python -m gift_vit.train`` would compose from these overrides, for Python code and tests."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def compose_job(overrides: Sequence[str]) -> tuple[DictConfig, HydraConf]:
    """The configuration of the job of these words, and Hydra's own, while Hydra is set up."""
    cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    hydra_cfg = cfg.hydra
    del cfg.hydra
    return cfg, hydra_cfg


def baseline_of(hydra_cfg: HydraConf) -> DictConfig:
    """The defaults of the job's dataset, method, backbone and so on, without recipe, experiment and value overrides.

    A run's name is measured against it. Call it inside a Hydra job, and do not change what it returns.
    """
    choices = hydra_cfg.runtime.choices
    return _compose_choices(_search_path(), tuple(f"{group}={choices[group]}" for group in BASE_GROUPS))


@lru_cache(maxsize=256)  # a sweep asks once or twice for every job
def _compose_choices(search_path: tuple[str, ...], words: tuple[str, ...]) -> DictConfig:
    del search_path  # part of the key: where the files of these choices are looked for
    return compose("train", overrides=[*words, "recipe=none"])


def _search_path() -> tuple[str, ...]:
    return tuple(str(element.path) for element in GlobalHydra.instance().config_loader().get_search_path().get_path())


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty section is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def explain_composition_error(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """A composition error of Hydra as one line that names the nearest known choice or key."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        hint = did_you_mean(choice, error.options)
        return ConfigError(f"unknown {group} {choice!r}{hint} (known: {', '.join(sorted(error.options))})")
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        return ConfigError(_unknown_override(match[1], overrides))
    if "Got NoneType" in text:
        nulls = " ".join(word for word in overrides if word.endswith("=null"))
        return ConfigError(f"{nulls}: a group cannot be null on the command line; leave it out with ~<group>")
    return ConfigError(" ".join(text.split()))


def _unknown_override(key: str, overrides: Sequence[str]) -> str:
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    chosen = [word for word in overrides if word.partition("=")[0] in groups]
    GlobalHydra.instance().clear()
    try:
        known = compose_config(chosen)
    except HydraException:
        return f"unknown key {key}"
    return unknown_key(key, list(_keys(known)))


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in cfg:
        node = cfg._get_node(key)
        found += _keys(node, f"{prefix}{key}.") if isinstance(node, DictConfig) and len(node) else [f"{prefix}{key}"]
    return found
