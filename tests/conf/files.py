"""The YAML below ``conf/``, as it stands and as Hydra composes it, for tests."""

from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from gift_vit.config.compose import BASE_GROUPS, compose_config, conf_dir

FILES = sorted(conf_dir().rglob("*.yaml"))
BASES = [file for file in FILES if file.parent == conf_dir() and file.name != "train.yaml"]
GROUPS = (*BASE_GROUPS, "sweeper")  # one choice of each in every composition
DELTAS = ("experiment", "debug")


def stems(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def together() -> list[tuple[str, ...]]:
    """As few commands as have every choice of :data:`GROUPS` in them, then one for each choice of :data:`DELTAS`."""
    choices = {group: [f"{group}={choice}" for choice in stems(group) if not is_text(group, choice)] for group in GROUPS}
    rounds = range(max(len(words) for words in choices.values()))
    deltas = [(f"{group}={choice}",) for group in DELTAS for choice in stems(group)]
    text = [("dataset=text", f"backbone={name}") for name in stems("backbone") if is_text("backbone", name)]
    protocols = [*(name for name in stems("protocol") if is_text("protocol", name)), "clean"]
    tasks = [name for name in stems("dataset") if name.startswith("glue_")]
    glue = ((f"dataset={task}", f"protocol={protocol}", "backbone=roberta_large") for task in tasks for protocol in protocols)
    return [*(tuple(words[i % len(words)] for words in choices.values()) for i in rounds), *text, *glue, *deltas]


def is_text(group: str, choice: str) -> bool:
    """Whether a dataset, a backbone or a protocol is for texts, and goes with no other."""
    file = conf_dir() / group / f"{choice}.yaml"
    if group == "backbone":
        return entire(file).get("kind") == "transformers"
    return (group == "dataset" and choice.startswith(("text", "glue_"))) or (group == "protocol" and choice.startswith("glue_"))


def root(words: Iterable[str]) -> list[str]:
    """The folders that the datasets and models of one's own ask for."""
    own = {"dataset=folder", "dataset=parquet", "dataset=csv", "dataset=text"} & set(words)
    model = ["backbone.model=somebody/My_Flowers"] if "backbone=hf" in words else []
    return [*(["dataset.root=/somewhere/My Flowers"] if own else []), *model]


def composed(*words: str) -> DictConfig:
    """What these words compose. Choices are composed once; values are set as Hydra sets them, after all else."""
    choices = tuple(word for word in words if (conf_dir() / word.partition("=")[0]).is_dir())
    cfg = deepcopy(_of_choices(choices))
    for override in parse(*(word for word in words if word not in choices)):
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
    return cfg


@cache
def _of_choices(words: tuple[str, ...]) -> DictConfig:
    return compose_config(words)


def parse(*words: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(words))


@cache
def content(file: Path) -> DictConfig:
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    return cfg


def bases(file: Path) -> list[str]:
    """What a file is built on, as its defaults list names it."""
    return [entry for entry in content(file).get("defaults", []) if isinstance(entry, str) and entry != "_self_"]


def built_on(file: Path) -> DictConfig:
    """What the files and dataclasses that a file is built on give it."""
    whole = OmegaConf.create()
    for name in bases(file):
        base = (conf_dir() if name.startswith("/") else file.parent) / f"{name.strip('/')}.yaml"
        whole.merge_with(entire(base) if base.is_file() else ConfigStore.instance().load(base.name).node)
    return whole


def entire(file: Path) -> DictConfig:
    """A file's section, with what it is built on; interpolations are as they are written."""
    cfg: Any = OmegaConf.merge(built_on(file), content(file))
    cfg.pop("defaults", None)
    return cfg
