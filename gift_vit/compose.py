"""Working with Hydra's composition: the baseline of a run's overrides, and its errors in one line."""

import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from gift_vit.errors import ConfigError, did_you_mean
from gift_vit.paths import conf_dir

# an axis of a sweep from a list in the configuration
OmegaConf.register_new_resolver("csv", lambda values: ",".join(str(value) for value in values), replace=True)

BASE_GROUPS = ("dataset", "method", "backbone", "optim", "trainer", "tracker", "paths", "protocol")


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """What ``python -m gift_vit.train`` would compose from these overrides, for Python code and tests."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def baseline_of(hydra_cfg: HydraConf) -> DictConfig:
    """The defaults of the job's dataset, method, backbone and so on, without recipe, experiment and value overrides.

    A run's name is measured against it. Call it inside a Hydra job.
    """
    choices = hydra_cfg.runtime.choices
    return compose("train", overrides=[*(f"{group}={choices[group]}" for group in BASE_GROUPS), "recipe=none"])


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
    from gift_vit.config import unknown_key

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
