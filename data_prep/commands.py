"""The data root that commands take, and the commands that preparation tells a person to type next."""

from pathlib import Path

from omegaconf import OmegaConf

from gift_vit.common.errors import ConfigError

DEFAULT_ROOT = "${oc.env:GIFT_VIT_DATA,data}"  # as conf/paths/default.yaml has it


def data_root(given: str) -> Path:
    """The folder that ``root=`` names; a ConfigError if it names none."""
    if not given:
        raise ConfigError("the data root is empty: give root=<folder>, or unset the environment variable GIFT_VIT_DATA")
    return Path(given).expanduser()


def is_default_root(root: Path) -> bool:
    """Whether commands take this data root unless told otherwise."""
    return root.expanduser() == Path(OmegaConf.create({"root": DEFAULT_ROOT}).root).expanduser()


def training_words(dataset: str, root: Path) -> list[str]:
    """The words of the command that trains on a prepared dataset below ``root``."""
    words = ["python", "-m", "gift_vit.train", f"dataset={dataset}"]
    return words if is_default_root(root) else [*words, f"paths.data_root={root}"]
