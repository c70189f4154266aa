"""What a person asked for, where one dataset's files lie, and ``prepared.json``: written last, so what has it is ready."""

import json
import os
import platform
import shlex
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from omegaconf import MISSING

from data_prep.commands import DEFAULT_ROOT, data_root, training_words
from data_prep.download import fetch, writable
from data_prep.fgvc.facts import FACTS, DatasetFacts
from gift_vit import __version__
from gift_vit.common.checks import Options, one_of, random_seed, split_off
from gift_vit.common.files import expanded, sha256_of
from gift_vit.common.programs import as_typed

ClassId: TypeAlias = int | str
Lists: TypeAlias = dict[str, dict[str, ClassId]]

KINDS = ("paper", "official")
FORMAT = 1
SOURCES = ".sources.json"  # in the dataset's folder, until prepared.json is written
FOUND = "a folder found unpacked"  # the source of what was not unpacked here
SPLITS = ("train", "val", "test")
_RECORDED = {"dataset", "classes", "images", "bytes", "images_checked", "splits", "annotations", "sources", "notes"}


@dataclass
class Arguments(Options):
    """Prepare FGVC datasets.

        python -m data_prep.fgvc <cub|nabirds|flowers|dogs|cars|all> [key=value …]

    Downloads what can be downloaded, verifies and unpacks it, writes the split lists and the bounding boxes, and checks every
    image. What is ready is not done again. NABirds and Cars must be fetched by hand; the command says how.

    Attributes:
        dataset: cub, nabirds, flowers, dogs, cars or all
        root: data root (default: the environment variable GIFT_VIT_DATA, else data)
        archives: folder that archives are downloaded to or were put in by hand (default: <root>/downloads, which also takes
            what a read-only one lacks)
        splits: paper or official: train and test as the archives list them, val a part of train
        splits_from: folder with copies of the paper's lists, like data/ of the repository github.com/savadikarc/gift
        val_fraction: official: the part of train that becomes val (default: 0.1; Flowers has a val of its own)
        split_seed: official: draws that part
        check_images: decode every image once
        annotations: also boxes.parquet, parts.parquet and segmentations
    """

    dataset: Annotated[str, one_of([*FACTS, "all"])] = MISSING
    root: str = DEFAULT_ROOT
    archives: str | None = None
    splits: Annotated[str, one_of(KINDS)] = "paper"
    splits_from: str | None = None
    val_fraction: Annotated[float, split_off] = 0.1
    split_seed: Annotated[int, random_seed] = 0
    check_images: bool = True
    annotations: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_fraction", "split_seed"):
            self._check_read(name, "splits", "official")


@dataclass(frozen=True)
class Workspace:
    """One dataset and its places on disk."""

    facts: DatasetFacts
    request: Arguments

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return data_root(self.request.root).absolute() / self.facts.name

    @property
    def home(self) -> Path:
        """The folder that this is, whatever links lead to it: several roots may have one."""
        return Path(os.path.realpath(self.folder))

    @property
    def archives(self) -> Path:
        """The folder of archives."""
        given = self.request.archives
        return expanded(given).absolute() if given else self.folder.parent / "downloads"

    def place(self, name: str) -> Path:
        """Where a file is among the archives, or is to be put: in the root's downloads if their folder is read-only."""
        there = self.archives / name
        return there if there.exists() else writable(self.archives, self.folder.parent / "downloads") / name

    @property
    def image_root(self) -> Path:
        """What listed paths are relative to."""
        return self.folder / self.facts.image_root

    @property
    def first_folder(self) -> Path:
        """The first folder out of the archive of images; CUB and NABirds keep their text files in it."""
        return self.folder / self.facts.images.folders[0]

    @property
    def record_file(self) -> Path:
        """Written last: what was prepared."""
        return self.folder / "prepared.json"

    def splits_dir(self, kind: str) -> Path:
        """The folder of the lists of one kind."""
        return self.folder / "splits" / kind

    def extra(self, name: str) -> Path:
        """One of the dataset's further files, fetched if it is not there."""
        return fetch(self.facts.extras[name], self.place(name).parent)

    @property
    def command(self) -> str:
        """The command that asks for this."""
        changed = [
            f"{field.name}={getattr(self.request, field.name)}"
            for field in fields(Arguments)
            if field.name not in {"dataset", "root"} and getattr(self.request, field.name) != field.default
        ]
        words = ["python", "-m", "data_prep.fgvc", self.facts.name, f"root={self.request.root}", *changed]
        return as_typed(shlex.join(words))

    @property
    def start_afresh(self) -> str:
        """What to do about images that are incomplete; a person's own may be the only copy, and are not to be removed."""
        folders = [self.folder / name for name in self.facts.images.folders]
        words, record = shlex.join(map(str, folders)), read_record(self.folder)
        there = [folder for folder in folders if folder.is_dir()]
        if any((record["sources"] if record else unpacked_from(folder)).get(folder.name) == FOUND for folder in there):
            return f"complete {words}, or move all of it away, and type: {self.command}"
        return f"type: rm -r {words}; {self.command}"

    def without_lists(self, kind: str) -> str:
        """What to do about lists that are wrong."""
        return f"type: rm -r {shlex.quote(str(self.splits_dir(kind)))}; {self.command}"


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was prepared in a dataset's folder; None where nothing was, or nothing that this version understands."""
    try:
        record = json.loads((folder / "prepared.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT and record.keys() >= _RECORDED else None


def kept_sources(folder: Path) -> dict[str, Any]:
    """What the hidden file in a dataset's folder says of where the folders of images come from."""
    with suppress(OSError, ValueError):
        note = json.loads((folder / SOURCES).read_bytes())
        return note if isinstance(note, dict) else {}
    return {}


def unpacked_from(folder: Path) -> dict[str, Any]:
    """Which archive a folder was unpacked from here, before a process was killed; one put there since says nothing."""
    known = kept_sources(folder.parent).get(folder.name)
    if known and known["inode"] == folder.stat().st_ino:
        return known["sources"]
    return {folder.name: FOUND}


def list_digests(folder: Path) -> dict[str, str] | None:
    """SHA-256 of each split's list; None where one cannot be read."""
    try:
        return {split: sha256_of(folder / f"{split}.json") for split in SPLITS}
    except OSError:
        return None


def library_versions() -> dict[str, str]:
    """Of Python, this project and the libraries that take part."""
    libraries = {name: version(name) for name in ("pillow", "pyarrow", "scikit-learn", "scipy")}
    return {"python": platform.python_version(), "gift_vit": __version__, **libraries}


def describe(record: dict[str, Any], folder: Path) -> str:
    """What was prepared, in a few lines."""
    checked = "all of them decoded once" if record["images_checked"] else "none of them decoded yet"
    lines = [
        f"{record['dataset']}: ready in {folder}",
        f"  images       {record['images']:,} ({record['bytes'] / 1e6:,.1f} MB), none missing, {checked}",
        f"  classes      {record['classes']}",
    ]
    for kind, split in record["splits"].items():
        counts = ", ".join(f"{name} {count:,}" for name, count in split["counts"].items())
        lines.append(f"  splits       {kind}: {counts}")
    for name, count in record["annotations"].items():
        lines.append(f"  annotations  {name}: {count:,} {'rows' if name.endswith('.parquet') else 'files'}")
    found = [name for name, source in record["sources"].items() if source == FOUND]
    notes = [f"{name} was found unpacked: its images were not compared with the archive's" for name in found]
    lines += [f"  note         {note}" for note in (*record["notes"], *notes)]
    words = training_words(record["dataset"], folder.parent)
    for kind in record["splits"]:
        lists = [] if kind == "paper" else [f"dataset.splits_dir=splits/{kind}"]
        lines.append(f"  train with   {shlex.join([*words, *lists])}")
    return "\n".join(lines)
