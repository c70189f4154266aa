"""Which of the 33 datasets that are prepared are ready: ``python -m data_prep.status``."""

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from data_prep.commands import DEFAULT_ROOT, data_root, is_default_root, training_words
from data_prep.commonsense import prepare as commonsense
from data_prep.fgvc.facts import FACTS, Archive, DatasetFacts
from data_prep.fgvc.workspace import list_digests, read_record
from data_prep.glue import tasks as glue
from data_prep.glue.prepare import read_meta as read_glue
from data_prep.vtab.original.files import FILES
from data_prep.vtab.task_folder import read_meta
from data_prep.vtab.tasks import TASKS, Task
from gift_vit.common import cli
from gift_vit.common.errors import a_few
from gift_vit.common.files import expanded
from gift_vit.common.programs import as_typed

READY, PARTIAL, MISSING = "ready", "partial", "missing"
HEADERS = ("dataset", "state", "train", "val", "test", "classes", "source", "size", "where", "next")


@dataclass
class Arguments:
    """Show of each dataset that is prepared whether it is ready, partial or missing, and the next command to type.

        python -m data_prep.status [root=…]

    Attributes:
        root: data root (default: the environment variable GIFT_VIT_DATA, else data)
        archives: folder of archives that were put there by hand (default: <root>/downloads)

    These are FGVC, VTAB-1k, GLUE and Commonsense170k; your own images and texts need no preparation. Ready: prepared and
    verified; partial: something of it is there. Reads what preparation recorded; opens no image. GLUE's dev stands under val.
    """

    root: str = DEFAULT_ROOT
    archives: str | None = None


@dataclass(frozen=True)
class Status:
    """What is there of one dataset.

    Attributes:
        name: Its name in ``conf/dataset/``.
        state: ``ready``, ``partial`` or ``missing``.
        images: Images or texts per split: train, val, test; empty unless it is ready. None: there is no such split.
        classes: How many classes; 0: its labels are numbers, or answers in words.
        source: Where the prepared data comes from; of a partial dataset, what is there.
        bytes: Bytes of the prepared data; of a partial dataset, of what is there.
        folder: Where it is, or would be.
        command: What to type next.
    """

    name: str
    state: str
    classes: int
    folder: Path
    command: str
    images: list[int | None] = field(default_factory=list)
    source: str = ""
    bytes: int = 0


def fgvc_status(facts: DatasetFacts, root: Path, archives: Path) -> Status:
    """What is there of an FGVC dataset."""
    folder = root / facts.name
    prepare = ["python", "-m", "data_prep.fgvc", facts.name, *_given(root, archives)]
    record = read_record(folder)
    splits = record["splits"] if record else {}
    kinds = [kind for kind, split in splits.items() if list_digests(folder / "splits" / kind) == split["sha256"]]
    unpacked = [folder / name for name in facts.images.folders if (folder / name).is_dir()]
    if record and kinds and len(unpacked) == len(facts.images.folders):
        train = training_words(facts.name, root) + ([] if kinds[0] == "paper" else [f"dataset.splits_dir=splits/{kinds[0]}"])
        counts = [splits[kinds[0]]["counts"][split] for split in ("train", "val", "test")]
        source = f"{' and '.join(kinds)} splits"
        return Status(facts.name, READY, record["classes"], folder, shlex.join(train), counts, source, record["bytes"])
    names = [facts.images.file.name] if isinstance(facts.images, Archive) else list(facts.images.names)
    return _unprepared(facts.name, facts.classes, folder, shlex.join(prepare), [*unpacked, *_downloaded(names, archives)])


def vtab_status(task: Task, root: Path, archives: Path) -> Status:
    """What is there of a VTAB-1k task."""
    name, folder = f"vtab_{task.name}", root / "vtab1k" / task.name
    prepare = ["python", "-m", "data_prep.vtab", task.name, *_given(root, archives)]
    meta = read_meta(folder, task.name)
    if meta is not None:
        counts = [split["images"] for split in meta["splits"].values()]
        size = sum(split["bytes"] for split in meta["splits"].values())
        source = meta["source"] + (" (lossy)" if meta["source"] == "folder" else "")
        return Status(name, READY, task.num_classes, folder, shlex.join(training_words(name, root)), counts, source, size)
    names = [file.name for file in FILES.get(task.builder.name, [])]
    return _unprepared(name, task.num_classes, folder, shlex.join(prepare), _begun(folder) + _downloaded(names, archives))


def glue_status(task: glue.Task, root: Path) -> Status:
    """What is there of a task of GLUE."""
    name, folder, downloads = f"glue_{task.name}", root / "glue" / task.name, root / "downloads" / "glue"
    meta = read_glue(folder, task.name)
    if meta is not None:
        splits = meta["splits"]
        counts = [splits[split]["examples"] if split in splits else None for split in glue.SPLITS]
        train = shlex.join([*training_words(name, root), "backbone=roberta_base", "method=gift_qv", "method.rank=32"])
        size = sum(split["bytes"] for split in splits.values())
        return Status(name, READY, len(task.classes), folder, train, counts, meta["source"], size)
    there = _begun(folder) + _downloaded([f"{task.name}_{split}.parquet" for split in glue.SPLITS], downloads)
    prepare = shlex.join(["python", "-m", "data_prep.glue", task.name, *_given(root)])
    return _unprepared(name, len(task.classes), folder, prepare, there)


def commonsense_status(root: Path) -> Status:
    """What is there of Commonsense170k."""
    folder, downloads = root / "commonsense", root / "downloads" / "commonsense"
    record = commonsense.read_record(folder)
    if record is not None:
        train = shlex.join(commonsense.train_words(record, root))
        rows = {name: file["rows"] for name, file in record["files"].items()}
        tested = sum(count for name, count in rows.items() if name.endswith("/test.json"))
        size = sum((folder / name).stat().st_size for name in rows)
        return Status(folder.name, READY, 0, folder, train, [sum(rows.values()) - tested, None, tested], "questions", size)
    there = _begun(folder) + ([downloads] if downloads.exists() else [])
    return _unprepared(folder.name, 0, folder, shlex.join(["python", "-m", "data_prep.commonsense", *_given(root)]), there)


def all_statuses(root: Path, archives: Path) -> list[Status]:
    """What is there of all 33 datasets."""
    images = [fgvc_status(facts, root, archives) for facts in FACTS.values()]
    images += [vtab_status(task, root, archives) for task in TASKS.values()]
    return [*images, *(glue_status(task, root) for task in glue.TASKS.values()), commonsense_status(root)]


def _unprepared(name: str, classes: int, folder: Path, command: str, there: list[Path]) -> Status:
    if not there:
        return Status(name, MISSING, classes, folder, command)
    found = a_few([path.name for path in there])
    files = (file for path in there for file in (path, *path.rglob("*")) if file.is_file())
    return Status(name, PARTIAL, classes, folder, command, source=found, bytes=sum(file.stat().st_size for file in files))


def _begun(folder: Path) -> list[Path]:
    """A folder, and what is being written in its place."""
    return [path for path in (folder, folder.with_name(f".{folder.name}.partial")) if path.exists()]


def _downloaded(names: Iterable[str], archives: Path) -> list[Path]:
    """Archives, broken downloads and what archives were unpacked to."""
    paths = (archives / f"{name}{ending}" for name in names for ending in ("", ".part", ".unpacked"))
    return [path for path in paths if path.exists()]


def _given(root: Path, archives: Path | None = None) -> list[str]:
    """The words of a preparing command that are not its defaults."""
    words = [] if is_default_root(root) else [f"root={root}"]
    return words if archives in (None, root / "downloads") else [*words, f"archives={archives}"]


def render(statuses: list[Status], narrow: bool = False) -> Table:
    """One row per dataset; a narrow table leaves out size, folder and the next command."""
    ready = sum(status.state == READY for status in statuses)
    title = f"{ready} of {len(statuses)} datasets are ready"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=not narrow, pad_edge=not narrow)
    for header in HEADERS[: -3 if narrow else None]:
        right = header in {"train", "val", "test", "classes", "size"}
        table.add_column(
            header, justify="right" if right else "left", no_wrap=not (narrow and header == "source"), overflow="fold"
        )
    colours = {READY: "green", PARTIAL: "yellow", MISSING: "dim"}
    for status in statuses:
        cells = (
            status.name,
            status.state,
            *(["–" if count is None else f"{count:,}" for count in status.images] or ["–"] * 3),
            str(status.classes or "–"),
            status.source or "–",
            decimal(status.bytes) if status.bytes else "–",
            str(status.folder),
            as_typed(status.command),
        )
        texts = [Text(cell) for cell in cells[: len(table.columns)]]  # whose brackets are no markup
        texts[1].stylize(colours[status.state])
        table.add_row(*texts)
    return table


def show_status(arguments: Arguments) -> None:
    """Print the table."""
    root = data_root(arguments.root)
    archives = expanded(arguments.archives) if arguments.archives else root / "downloads"
    statuses = all_statuses(root, archives)
    table, terminal = render(statuses), sys.stdout.isatty()
    console = Console(force_terminal=terminal)
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    if width <= console.width or not (terminal or "COLUMNS" in os.environ):  # a file has room
        Console(width=width, force_terminal=terminal).print(table)
        return
    console.print(render(statuses, narrow=True))
    commands = (as_typed(status.command) for status in statuses)
    console.print("\nNext:", *commands, sep="\n  ", soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """The command."""
    cli.main(Arguments, show_status)


if __name__ == "__main__":
    main()
