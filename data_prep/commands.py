"""Commands that preparation tells a person to type next."""

import os
from pathlib import Path


def is_default_root(root: Path) -> bool:
    """Whether commands take this data root unless told otherwise, as ``conf/paths/default.yaml`` has it."""
    return root.expanduser() == Path(os.environ.get("GIFT_VIT_DATA", "data")).expanduser()


def training_words(dataset: str, root: Path) -> list[str]:
    """The words of the command that trains on a prepared dataset below ``root``."""
    words = ["python", "-m", "gift_vit.train", f"dataset={dataset}"]
    return words if is_default_root(root) else [*words, f"paths.data_root={root}"]
