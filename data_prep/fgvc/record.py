"""``prepared.json``: written last, so that a dataset with one is ready."""

import hashlib
import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.commands import training_words
from gift_vit import __version__

FORMAT = 1
SPLITS = ("train", "val", "test")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was prepared in a dataset's folder; None where nothing was, or nothing that this version understands."""
    try:
        record = json.loads((folder / "prepared.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def list_digests(folder: Path) -> dict[str, str] | None:
    """SHA-256 of each split's list; None where one cannot be read."""
    try:
        return {split: hashlib.sha256((folder / f"{split}.json").read_bytes()).hexdigest() for split in SPLITS}
    except OSError:
        return None


def library_versions() -> dict[str, str]:
    """What took part: scikit-learn draws the val of official splits, Pillow decodes."""
    libraries = {name: version(name) for name in ("pillow", "pyarrow", "scikit-learn", "scipy")}
    return {"python": platform.python_version(), "gift_vit": __version__, **libraries}


def describe(record: dict[str, Any], folder: Path) -> str:
    """What was prepared, in a few lines."""
    checked = "all of them decoded once" if record["images_checked"] else "none of them decoded yet"
    lines = [f"{record['dataset']}: ready in {folder}"]
    lines.append(f"  images       {record['images']:,} ({record['bytes'] / 1e6:,.1f} MB), none missing, {checked}")
    lines.append(f"  classes      {record['classes']}")
    for kind, split in record["splits"].items():
        counts = ", ".join(f"{name} {count:,}" for name, count in split["counts"].items())
        lines.append(f"  splits       {kind}: {counts}")
    for name, count in record["annotations"].items():
        lines.append(f"  annotations  {name}: {count:,} {'rows' if name.endswith('.parquet') else 'files'}")
    lines += [f"  note         {note}" for note in record["notes"]]
    words = training_words(record["dataset"], folder.parent)
    for kind in record["splits"]:
        lists = [] if kind == "paper" else [f"dataset.splits_dir=splits/{kind}"]
        lines.append(f"  train with   {shlex.join([*words, *lists])}")
    return "\n".join(lines)
