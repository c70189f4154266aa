"""The data root that commands take, and the commands that preparation tells a person to type next."""

from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import check_writable, expanded

DEFAULT_ROOT = "${oc.env:GIFT_VIT_DATA,data}"  # as conf/paths/default.yaml has it


def data_root(given: str) -> Path:
    """The folder that ``root=`` names; a ConfigError if it names none."""
    if not given:
        raise ConfigError("the data root is empty: give root=<folder>, or unset the environment variable GIFT_VIT_DATA")
    return expanded(given)


def root_to_prepare(given: str) -> Path:
    """The data root, which is there or can be made: in one that cannot be written to, what is asked for may be ready."""
    root = data_root(given)
    if not root.is_dir():
        check_writable(root)
    return root


def existing_folder(key: str, value: str) -> None:
    """Check of an option that names a folder with files to read."""
    if not expanded(value).is_dir():
        raise ConfigError(f"{key}={value} is no folder; give the one that holds the files")


def is_default_root(root: Path) -> bool:
    """Whether commands take this data root unless told otherwise."""
    return expanded(root) == expanded(OmegaConf.create({"root": DEFAULT_ROOT}).root)


def training_words(dataset: str, root: Path) -> list[str]:
    """The words of the command that trains on a prepared dataset below ``root``."""
    words = ["python", "-m", "gift_vit.train", f"dataset={dataset}"]
    return words if is_default_root(root) else [*words, f"paths.data_root={root}"]


def prepare_each(names: Sequence[str], prepare: Callable[[str], None], things: str) -> None:
    """Prepare several things; one that fails is reported, and does not keep the others from being prepared.

    Raises:
        ConfigError: In the end if any failed; of a single one its own error.
        RunError: The same, if one of them failed so.
    """
    if len(names) == 1:
        prepare(names[0])
        return
    failed = {name: error for name in names if (error := _attempt(prepare, name)) is not None}
    if failed:
        kind = RunError if any(isinstance(error, RunError) for error in failed.values()) else ConfigError
        raise kind(f"{len(failed)} of {len(names)} {things} are not ready, for the reasons above: {', '.join(failed)}")


def _attempt(prepare: Callable[[str], None], name: str) -> Exception | None:
    try:
        prepare(name)
    except (ConfigError, RunError) as error:
        cli.report(error)
        return error
    return None
