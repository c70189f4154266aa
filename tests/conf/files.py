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
    texts = [name for name in stems("backbone") if is_text("backbone", name)]
    text = [("dataset=text", f"backbone={name}") for name in texts if not is_language(name)]
    tasks = [f"dataset={name}" for name in stems("dataset") if name.startswith("glue_")]
    glue = [(task, f"protocol={name}", "backbone=roberta_large") for task in tasks for name in ("clean", "glue_gift")]
    protocols = [f"protocol={name}" for name in stems("protocol") if name.startswith("commonsense_")]
    models = [f"backbone={name}" for name in texts if is_language(name)]
    count = max(len(models), len(protocols))
    language = [("dataset=commonsense", models[i % len(models)], protocols[i % len(protocols)]) for i in range(count)]
    return [*(tuple(words[i % len(words)] for words in choices.values()) for i in rounds), *text, *glue, *language, *deltas]


def is_text(group: str, choice: str) -> bool:
    """Whether a dataset, a backbone or a protocol is for texts, and goes with no other."""
    if group == "backbone":
        return entire(conf_dir() / group / f"{choice}.yaml").get("kind") == "transformers"
    return group in {"dataset", "protocol"} and choice.startswith(("text", "glue_", "commonsense"))


def is_language(backbone: str) -> bool:
    """Whether it is a language model, and classifies no texts."""
    return entire(conf_dir() / "backbone" / f"{backbone}.yaml").get("dtype") == "bfloat16"


def root(words: Iterable[str]) -> list[str]:
    """The folders that the datasets and models of one's own ask for."""
    own = {"dataset=folder", "dataset=parquet", "dataset=csv", "dataset=text"} & set(words)
    model = ["backbone.model=somebody/My_Flowers"] if "backbone=hf" in words else []
    return [*(["dataset.root=/somewhere/My Flowers"] if own else []), *model]


def composed(*words: str) -> DictConfig:
    """What these words compose. Choices are composed once; values are set as Hydra sets them, after all else."""
    if any(word.startswith("~") for word in words):
        return compose_config(words)
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
