"""``python -m data_prep.vtab <task|natural|specialized|structured|all>``: prepare tasks of VTAB-1k."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING

from data_prep.commands import DEFAULT_ROOT, existing_folder, root_to_prepare
from data_prep.vtab.records import Origin
from data_prep.vtab.tasks import GROUPS, TASKS, Builder, Task
from data_prep.vtab.tfds_prepare import INSTALL
from gift_vit.common import cli
from gift_vit.common.checks import Options, one_of
from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.common.files import expanded

logger = logging.getLogger(__name__)

SOURCES = ("auto", "original", "tfds", "folder")


@dataclass
class Arguments(Options):
    """Prepare tasks of VTAB-1k.

        python -m data_prep.vtab <what> [source=auto] [root=…] [folder=…] [tfds_dir=…] [manual_dir=…]

    Attributes:
        task: <what>: a task, a group (natural, specialized, structured) or all
        source: original: the datasets' own files, downloaded or in folder=…, needs no TensorFlow; tfds: TensorFlow Datasets, a
            folder that it prepared, or else it prepares one; folder: the community's image folders in folder=…, lossy, results
            are not comparable; auto: original where that is possible, else tfds
        root: where data is kept: tasks are written to <root>/vtab1k/<task> (default: the environment variable GIFT_VIT_DATA,
            else data)
        folder: source=original: holds archives that you have, or what they unpack to; source=folder: holds the folders of the
            tasks, each with train800.txt, val200.txt and test.txt
        archives: the same as folder
        tfds_dir: TFDS's data_dir (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)
        manual_dir: where TFDS finds what it cannot download (default: archives=…, else <tfds_dir>/downloads/manual)

    The images are checked to be the benchmark's. A task that is ready is left alone; one that fails does not stop the others.
    """

    task: str = MISSING
    source: Annotated[str, one_of(SOURCES)] = "auto"
    root: str = DEFAULT_ROOT
    folder: Annotated[str | None, existing_folder] = None
    archives: Annotated[str | None, existing_folder] = None
    tfds_dir: str | None = None
    manual_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder and self.archives:
            raise ConfigError("folder=… and archives=… mean the same; give one of them")
        self.folder = self.folder or self.archives
        if self.source == "folder" and not self.folder:
            raise ConfigError("source=folder needs folder=…, the folder that holds the image folders of the tasks")
        if self.source == "tfds" and self.folder:
            raise ConfigError(
                f"source=tfds does not read folder={self.folder}; give tfds_dir=… or manual_dir=…, or another source"
            )


def tasks_named(what: str) -> list[Task]:
    """The tasks that a word of the command line stands for; a ConfigError if it is neither a task nor a group."""
    groups = {**GROUPS, "all": list(TASKS)}
    if what in TASKS:
        return [TASKS[what]]
    if what not in groups:
        known = f"a task ({', '.join(TASKS)}) or one of {', '.join(groups)}"
        raise ConfigError(f"there is no task {what!r}: give {known}{did_you_mean(what, [*TASKS, *groups])}")
    return [TASKS[name] for name in groups[what]]


class Preparation:
    """Prepares tasks one after the other, from wherever the command line says."""

    def __init__(self, arguments: Arguments) -> None:
        self._source = arguments.source
        self._root = root_to_prepare(arguments.root)
        self._folder = expanded(arguments.folder) if arguments.folder else None
        tfds_dir = arguments.tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        self._tfds_dir = expanded(tfds_dir)
        self._manual_dir = expanded(arguments.manual_dir) if arguments.manual_dir else None
        self._opened: tuple[tuple[Builder, str], Origin] | None = None

    def prepare(self, task: Task) -> str:
        """Prepare a task, unless it is ready; returns what came of it. It is an error if it is ready from another source."""
        from data_prep.complete import check_own, preparing
        from data_prep.vtab.export import export, naming
        from data_prep.vtab.task_folder import OWN, read_meta

        out = self._root / "vtab1k" / task.name
        with naming(task), _packages(), preparing(out):
            meta = read_meta(out, task.name)
            if meta is not None:
                return f"ready already, nothing to do: {self._described(meta, out)}"
            check_own(out, OWN)
            if self._source == "folder" and self._folder is not None:
                from data_prep.vtab.folders import export_folder

                meta = export_folder(task, self._folder, out)
            else:
                meta = export(task, self._origin(task), out)
            return f"ready: {self._described(meta, out)}"

    def _described(self, meta: dict[str, Any], out: Path) -> str:
        if self._source not in {"auto", meta["source"]}:
            raise ConfigError(
                f"{out} is ready from source={meta['source']}; remove it to prepare it from source={self._source}"
            )
        images = " + ".join(str(split["images"]) for split in meta["splits"].values())
        found = ", which was found unpacked and not compared with the archive" if "(unpacked)" in str(meta["origin"]) else ""
        warned = " (with a warning)" if meta["warnings"] else ""
        return f"{images} images from source={meta['source']}{found} in {out}{warned}"

    def _origin(self, task: Task) -> Origin:
        """The origin of the task's builder; that of the task before is kept for a second task of the same builder."""
        source = self._route(task)
        wanted = (task.builder, source)
        if self._opened is None or self._opened[0] != wanted:
            self._opened = None  # lets go of its memory
            self._opened = wanted, self._open(task.builder, source)
        return self._opened[1]

    def _route(self, task: Task) -> str:
        if self._source != "auto":
            return self._source
        from data_prep.vtab.original import AVAILABLE, UNAVAILABLE

        if task.builder.name in AVAILABLE:
            logger.info("%s: source=original, the dataset's own files", task.name)
            return "original"
        logger.info("%s: source=tfds, since %s", task.name, UNAVAILABLE[task.builder.name])
        return "tfds"

    def _open(self, builder: Builder, source: str) -> Origin:
        if source == "original":
            from data_prep.vtab.original import open_original

            return open_original(builder, self._folder, self._root / "downloads")
        from data_prep.vtab.tfds_origin import open_tfds

        return open_tfds(builder, self._tfds_dir, self._manual_dir or self._folder)


@contextmanager
def _packages() -> Iterator[None]:
    """Say in one line how to install a package that is missing."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"needs a package that is not there ({error}); type: {INSTALL}") from error


def prepare_all(arguments: Arguments) -> None:
    """Prepare the tasks that are named; exit with the code of the one that ended worst.

    Errors are printed as they come; at the end there is a line per task.
    """
    tasks = tasks_named(arguments.task)
    preparation = Preparation(arguments)
    outcomes: dict[str, tuple[int, str]] = {}
    try:
        for task in tasks:
            outcomes[task.name] = _attempt(preparation, task)
    finally:
        for task in tasks:
            _, outcome = outcomes.get(task.name, (cli.INTERRUPTED, "not prepared: interrupted"))
            print(f"{task.name:<21}{outcome}")
    if worst := max(code for code, _ in outcomes.values()):
        raise SystemExit(worst)


def _attempt(preparation: Preparation, task: Task) -> tuple[int, str]:
    """Exit code and outcome of one task; an error is printed."""
    try:
        return cli.SUCCESS, preparation.prepare(task)
    except Exception as error:
        return cli.report(error), "failed: " + " ".join(str(error).split()).removeprefix(f"{task.name}: ")


def main() -> None:
    """The command."""
    cli.interrupt_on_sigterm()
    cli.main(Arguments, prepare_all, positional="task")


if __name__ == "__main__":
    main()
