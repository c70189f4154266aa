"""A run is a folder: its files, its lock, its log, how far it is, and :class:`Run`, the word for it.

Imports no torch until a model or data are asked for.
"""

import errno
import json
import logging
import math
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from gift_vit.common.cli import run_word
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import (
    LockedError,
    expanded,
    is_locked,
    locked,
    made_folder,
    remove_leftovers,
    sha256_of,
    write_json,
    write_text,
    writing,
)
from gift_vit.common.hub import (
    ADAPTER,
    CARD,
    CONFIG,
    PEFT_CONFIG,
    PEFT_FOLDER,
    PEFT_WEIGHTS,
    PUSHED,
    RESULT,
    cache,
    local_folder,
)
from gift_vit.config.loader import load_config, read_config
from gift_vit.config.run_config import PHASES, RunConfig
from gift_vit.data.config import CommonsenseConfig
from gift_vit.engine.observer import EpochRecord, Observer, StopTraining
from gift_vit.runs.result import ANSWERS, PREDICTIONS, SUBMISSION, Result, read_result

if TYPE_CHECKING:
    from torch import nn

    from gift_vit.data.base import VisionDataset
    from gift_vit.runs.predict import Prediction
    from gift_vit.runs.predictions import Predictions

RUNS_ROOT = "${oc.env:GIFT_VIT_OUTPUT,outputs}"  # as conf/paths/default.yaml has it
FAILED, CHECKPOINT = "failed.json", "last.ckpt"
METRICS, LOG = "metrics.jsonl", "train.log"
PRUNED = "pruned.json"  # of a run that was stopped early; it can be gone on with
IMPORTED = "imported.json"  # in place of a result: the adapter was trained elsewhere, see gift_vit.import_gift
_OWN = (*PUSHED, METRICS, LOG, PREDICTIONS, SUBMISSION, CHECKPOINT, FAILED, PRUNED, IMPORTED)

R = TypeVar("R", bound="Run")
T = TypeVar("T")
State = Literal["done", "running", "failed", "interrupted", "missing", "pruned"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a run failed: ``failed.json``, in its folder until the run is started again."""

    error: str
    message: str
    failed_at: str
    traceback: str


@dataclass(frozen=True)
class Run:
    """One run's folder, and everything that can be read from it.

    Attributes:
        folder: Where the run is, or would be: nothing needs to be there.
        dataset_root: Where its data lies now, if elsewhere than during training.
    """

    folder: Path
    dataset_root: str | None = None

    @classmethod
    def open(cls: type[R], folder: str | Path, dataset_root: str | None = None) -> R:
        """The run of a folder, or of the Hub: ``hf://user/name``; what is not there is said when it is asked for.

        Raises:
            ConfigError: If the Hub has no such run.
            RunError: If the Hub cannot be reached.
        """
        return cls(local_folder(folder), dataset_root)

    @property
    def state(self) -> State:
        """``done``, ``running``, ``failed``, ``interrupted``, ``pruned`` (stopped early) or ``missing``, as it is now."""
        if os.path.isfile(self.folder / RESULT):
            return "done"
        if not os.path.isdir(self.folder):
            return "missing"
        if is_locked(self.folder):
            return "running"
        if os.path.isfile(self.folder / FAILED):
            return "failed"
        if os.path.isfile(self.folder / PRUNED):
            return "pruned"
        return "interrupted" if os.path.isfile(self.folder / CHECKPOINT) else "missing"

    @cached_property
    def config(self) -> RunConfig:
        """What the run was told.

        Raises:
            ConfigError: If there is no ``config.yaml``, or this version cannot read it.
        """
        file = self.folder / CONFIG
        try:
            cfg = read_config(file)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"{self.folder} is no run folder: it holds no {CONFIG}; give run=<a folder below outputs/>"
            ) from None
        dataset = cfg._get_node("dataset")
        if self.dataset_root is not None and isinstance(dataset, DictConfig) and "root" in dataset:
            dataset.root = self.dataset_root
        try:
            return load_config(cfg)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    @property
    def values(self) -> dict[str, Any]:
        """The resolved configuration as plain containers; empty where it is absent or damaged."""
        return _kept(_values_of, self.folder / CONFIG)

    @property
    def result(self) -> Result | None:
        """The record of a finished run, as it is now; None: it is not finished.

        Raises:
            ConfigError: If ``result.json`` cannot be read.
        """
        file = self.folder / RESULT
        return _kept(read_result, file) if os.path.isfile(file) else None

    def record(self, use: str = "that says what was done") -> Result:
        """The record of a finished run; ``use`` ends the sentence that an imported adapter has none.

        Raises:
            ConfigError: If the run is not finished, is an imported adapter, or its record cannot be read.
        """
        self.check_finished()
        if self.result is None:
            raise ConfigError(f"{self.folder} is an imported adapter: it has no {RESULT} {use}")
        return self.result

    @property
    def imported(self) -> dict[str, Any] | None:
        """What is known of an adapter from elsewhere, see :mod:`gift_vit.import_gift`; None: it was trained here.

        Raises:
            ConfigError: If ``imported.json`` cannot be read.
        """
        return read_imported(self.folder / IMPORTED) if self.result is None else None

    @property
    def failure(self) -> Failure | None:
        """Why the run failed; None: it did not. A ``failed.json`` that cannot be read says so in its place."""
        file = self.folder / FAILED
        try:
            return Failure(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError):
            return Failure("unknown", f"{file} cannot be read", "", "")

    @property
    def reason(self) -> str:
        """Why the run failed or was stopped early; empty for others."""
        state = self.state
        if state == "failed" and (failure := self.failure):
            return failure.message
        if state != "pruned":
            return ""
        try:
            return str(json.loads((self.folder / PRUNED).read_text(encoding="utf-8"))["message"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return f"{self.folder / PRUNED} cannot be read"

    def curve(self) -> list[dict[str, float]]:
        """One record per finished epoch, as of :meth:`metrics`."""
        return [record for record in self.metrics() if "epoch" in record]

    def metrics(self) -> list[dict[str, float]]:
        """The lines of the metrics file, their finite numbers only; one that is being written or is damaged is empty."""
        try:
            lines = (self.folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [_line_record(line) for line in lines]

    def predictions(self, split: str | None = None) -> "Predictions":
        """The kept predictions of a split; None: of the one that the run is scored on.

        Raises:
            ConfigError: If none are kept, they cannot be read, or are not the run's own; says what makes them.
        """
        from gift_vit.runs.predictions import predictions_of  # Arrow

        split = self.split(split)
        self.check_finished()
        kept = None if self.result is None else predictions_of(self.result, split)
        if kept is None:
            own = self.split()
            remedy = self.how_to_predict() if split in self.predicted_splits else f"it is scored on {own}: give split={own}"
            raise ConfigError(f"{self.folder} keeps no predictions of {split}; {remedy}")
        return kept

    @property
    def predicted_splits(self) -> list[str]:
        """The splits whose predictions are kept: the one it is scored on, and val where it was not trained on that."""
        own = self.split()
        return [own, *(["val"] if own != "val" and self.config.train_split == "train" else [])]

    def predict(
        self, images: str | Path | Sequence[str | Path], topk: int | None = None, device: str = "auto"
    ) -> "list[Prediction]":
        """The ``topk`` most probable classes of pictures, prepared as in training; one that cannot be read has an ``error``.

        Args:
            images: A file, a folder, a pattern such as ``photos/**/*.jpg``, or several of them.
            topk: How many classes of each; None: five, or all if there are fewer.
            device: auto, cpu, cuda, cuda:1 …

        Raises:
            ConfigError: If the run is not finished, has fewer classes, or there are no such pictures.
        """
        from gift_vit.engine.state import product_precision_kept  # torch
        from gift_vit.runs.classify import classify_files
        from gift_vit.runs.predict import check_question, find_pictures

        topk = check_question(self, topk)
        with product_precision_kept():
            return list(classify_files(self, find_pictures(images), topk, device))

    def how_to_predict(self) -> str:
        """What to type to keep the predictions of a finished run; or why there are none."""
        with suppress(ConfigError):  # a record can be read, and its configuration not
            if reason := self._keeps_none:
                return f"it {reason}"
        return f"make them with `python -m gift_vit.evaluate {run_word(self.folder)} keep_predictions=true`"

    def split(self, wanted: str | None = None) -> str:
        """The split to look at: ``wanted``, or for None the one whose score counts; the search phase does not see test."""
        phase = self.config.phase
        if phase == "search" and wanted == "test":
            raise ConfigError(f"{self.folder} is a search run, and test is for the final phase; train it with phase=final")
        if wanted not in (None, "train", "val", "trainval", "test"):
            self.data().parts(wanted)  # which tells what there is
        return wanted or self.config.scored_split

    @property
    def num_classes(self) -> int:
        """Classes that the run's head tells apart."""
        classes = self.result.data.num_classes if self.result else self.config.dataset.num_classes
        assert classes is not None, "an import compared it with the head"
        return classes

    def model(self) -> "nn.Module":
        """The fine-tuned model in evaluation mode, on the CPU; the data need not be there.

        Of an imported adapter only the name of its pretrained weights is known, and checked.

        Raises:
            ConfigError: If the run is not finished, or its pretrained weights are others now.
        """
        from torch import cuda
        from torch.random import fork_rng

        from gift_vit.methods.adapter import applied_method, holds_weights, load_adapter
        from gift_vit.runs.build import build_model

        self.check_finished()
        cfg = self.config
        with self._told_where_weights_are_named(), fork_rng(range(cuda.device_count())):
            cfg.backbone.check_present()
            model = build_model(cfg, self.num_classes)
        if self.result and not holds_weights(applied_method(model).backbone, self.result.backbone):
            raise ConfigError(
                f"{self.folder} was trained on other pretrained weights than {cfg.backbone.model} loads now; restore them"
            )
        return load_adapter(model, self.folder / ADAPTER).eval()

    def class_names(self, count: int) -> list[str]:
        """The names of the ``count`` classes of a finished run; their numbers where its data names none."""
        from gift_vit.methods.adapter import read_adapter  # torch

        return read_adapter(self.folder / ADAPTER).metadata.get("class_names") or [str(index) for index in range(count)]

    def data(self) -> "VisionDataset":
        """The data the run was trained on.

        Raises:
            ConfigError: If it is not there, or no longer what it was. For an imported adapter the latter is not known.
        """
        from gift_vit.data.base import build_dataset  # images, and for some kinds torch

        self.check_finished()
        with self._told_where_it_may_be():
            data = build_dataset(self.config.dataset)
        self.check_fingerprint(data)
        before = self.result and self.result.data.decoder
        if before is not None and before != data.decoder:
            log.warning(
                "%s: images were decoded by %s, and are now by %s; a score may differ", self.folder, before, data.decoder
            )
        return data

    def check_present(self) -> None:
        """Refuse a run that is not finished, or whose data or weights are not there; imports nothing heavy."""
        self.check_finished()
        with self._told_where_it_may_be():
            self.config.dataset.check_present()
        with self._told_where_weights_are_named():
            self.config.backbone.check_present()

    @contextmanager
    def _told_where_it_may_be(self) -> Iterator[None]:
        """Say of data that is not there what those who look at runs can do: they take no ``dataset.root``."""
        try:
            yield
        except ConfigError as error:
            if all(os.path.exists(path) for path in self.config.dataset.needed()):
                raise
            raise ConfigError(f"{error}; or give dataset_root=<where it is now>") from error

    @contextmanager
    def _told_where_weights_are_named(self) -> Iterator[None]:
        """Say of weights that are not there what those who look at runs can change: the run's own configuration."""
        try:
            yield
        except (ConfigError, RunError) as error:
            first = "; pull the run first" if self.folder.is_relative_to(cache()) else ""  # nobody's to change
            raise type(error)(f"{error}, in {self.folder / CONFIG}{first}") from error

    def check_fingerprint(self, data: "VisionDataset") -> None:
        """Refuse data that is not what the finished run was trained on; of an imported adapter that is not known."""
        if self.result is None:
            return
        known = self.result.data
        if data.fingerprint != known.fingerprint or known.sample not in (None, data.sample):
            raise ConfigError(
                f"{self.folder} was trained on other data than {data.name} holds now; restore that data, "
                "or start a new run with run_name=<another name>"
            )

    def check_finished(self) -> None:
        """Refuse a folder without a trained adapter: a run that is not finished, or no run at all."""
        if self.config and self.result is None and self.imported is None:
            raise ConfigError(f"{self.folder} is not finished: it holds no {RESULT}; start its training again to finish it")

    @property
    def is_pushed(self) -> bool:
        """Whether it is what ``gift_vit.push`` puts on the Hub: a card, and neither the epochs' numbers nor predictions."""
        return (self.folder / CARD).is_file() and not any((self.folder / name).exists() for name in (METRICS, PREDICTIONS))

    def check_takes_images(self, what: str) -> None:
        """As :meth:`check_finished`, and refuse a model of texts: for ``what``, a plural, there is of pictures alone."""
        self.check_finished()
        if self.config.backbone.is_text:
            merge = f"`python -m gift_vit.merge {run_word(self.folder)} out=<new folder>` gives transformers this one"
            use = "its scores are had by gift_vit.evaluate" if self.config.backbone.pooling == "mean" else merge
            raise ConfigError(f"{self.folder} takes texts, and not pictures: {what} are for runs on images; {use}")

    def check_keeps_predictions(self) -> None:
        """As :meth:`check_present`, and refuse a run whose predictions are no classes, or that was pulled: none can be kept."""
        self.check_present()
        if self._keeps_none:
            raise ConfigError(f"{self.folder} {self._keeps_none}; drop keep_predictions=")

    @property
    def _keeps_none(self) -> str:
        """Why there are no predictions to keep; empty: there are."""
        if self.is_pushed:
            return "was pulled from the Hub, and predictions are kept where it was trained"
        if self.config.dataset.is_regression:
            return "predicts numbers, and predictions are kept of classes alone"
        if isinstance(self.config.dataset, CommonsenseConfig):
            return f"answers in words, which training has kept in {ANSWERS}/"
        return ""


def find_runs(*roots: str | Path) -> list[Run]:
    """Every run below the folders, by path, done or not; adapters that were imported are none.

    Links to other folders are followed, after all that lies below the roots themselves. What several ways lead to counts once,
    under the first of them.
    """
    return [Run(folder) for folder in sorted(_run_folders(roots))]


def finished_below(root: str) -> list[Run]:
    """The finished runs below the folder of ``runs=``.

    Raises:
        ConfigError: If there is none.
    """
    folder = expanded(root)
    runs = [run for run in find_runs(folder) if run.state == "done"] if folder.is_dir() else []
    if not runs:
        raise ConfigError(f"runs={root}: there is no finished run below it; give the folder with the runs")
    return runs


def _run_folders(roots: Iterable[str | Path]) -> Iterator[Path]:
    tops, seen = [str(root) for root in roots], set()
    for top in tops:  # which grow by the links that are met
        for folder, folders, files in os.walk(top, onerror=_cannot_be_read):
            place = os.path.realpath(folder)
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
            tops.extend(path for name in folders if os.path.islink(path := os.path.join(folder, name)))
            there = set(files)
            if RESULT in there or (IMPORTED not in there and (FAILED in there or {CONFIG, LOG} <= there)):
                yield Path(folder)


def path_labels(folder: Path) -> dict[str, str]:
    """Phase, dataset, method and backbone of a run by its path alone; empty where it is not that of a run."""
    parts = folder.absolute().parts[-5:-1]
    return dict(zip(("phase", "dataset", "method", "backbone"), parts, strict=True)) if parts[:1] and parts[0] in PHASES else {}


def _cannot_be_read(error: OSError) -> None:
    log.warning("%s cannot be read (%s): runs in it are left out", error.filename, error.strerror)


def _line_record(line: str) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in json.loads(line).items() if math.isfinite(value)}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def read_imported(file: Path) -> dict[str, Any] | None:
    """What ``imported.json`` says; None: there is none.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        reported = record["reported"]
        float(reported["top1"])
        str(record["file"] + record["sha256"] + reported["split"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{file} is no readable record of an import ({error!r}); import the checkpoint anew") from error
    return record


def write_failure(folder: Path, error: BaseException) -> None:
    """Keep an error in a run's folder; where even that fails there is a warning, for the error itself matters more."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    failure = Failure(type(error).__name__, str(error), now, "".join(traceback.format_exception(error)))
    try:
        write_json(folder / FAILED, asdict(failure))
    except Exception as second:
        log.warning("could not write %s: %s", folder / FAILED, second)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a run's folder and let one process at a time work in it; the lock ends with the process, however it ends.

    Raises:
        ConfigError: If another process works in it.
    """
    try:
        with made_folder(folder), locked(folder, wait=False):
            yield
    except LockedError as error:
        raise ConfigError(f"another process is training in {folder}; wait for it or give run_name=<another name>") from error


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep what happens to a run in its folder: the log, and what ended it early.

    Neither an interruption nor being stopped early is a failure. A person's mistake before anything began leaves nothing.
    """
    fresh = not any((folder / name).exists() for name in (CONFIG, CHECKPOINT, LOG))
    remove_leftovers(folder)
    with writing(folder):
        for record in (FAILED, PRUNED):
            (folder / record).unlink(missing_ok=True)
    with _logged_to(folder / LOG):
        try:
            yield
        except StopTraining as stopped:
            log.info("%s: %s", stopped, folder)
            write_json(folder / PRUNED, {"message": str(stopped), **stopped.facts})
            raise
        except Exception as error:
            if fresh and isinstance(error, ConfigError) and not (folder / CONFIG).exists():
                (folder / LOG).unlink()
            else:
                write_failure(folder, error)
            raise
        except KeyboardInterrupt as error:
            begun = "can be resumed" if (folder / CHECKPOINT).is_file() else "begins anew"
            log.info("interrupted: %s %s with the same command", folder, begun)
            raise KeyboardInterrupt(str(folder)) from error


def no_runs_file(key: str, value: str) -> None:
    """A file that is none of those that make up a run."""
    out = expanded(value)
    if out.name in _OWN and (out.parent / CONFIG).is_file():
        raise ConfigError(f"{key}={value} is one of the files of the run in {out.parent}; give another name")


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what a finished run leaves beside its record, by the files' names."""
    answers = sorted(f"{ANSWERS}/{file.name}" for file in (folder / ANSWERS).glob("*.jsonl"))
    for_peft = (f"{PEFT_FOLDER}/{name}" for name in (PEFT_CONFIG, PEFT_WEIGHTS))
    names = (ADAPTER, METRICS, PREDICTIONS, SUBMISSION, *for_peft, *answers)
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def _kept(read: Callable[[Path], T], file: Path) -> T:
    """What a file holds now; it is read once, until it is written anew."""
    try:
        now = os.stat(file)
    except OSError:
        return read(file)
    return _read(read, file, (now.st_mtime_ns, now.st_size, now.st_ino))  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=4096)
def _read(read: Callable[[Path], object], file: Path, written: tuple[int, ...]) -> object:
    del written  # a part of the key
    return read(file)


def _values_of(file: Path) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(read_config(file))
    except (OSError, ConfigError):
        return {}
    return values


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """A full disk does not fill the terminal with the troubles of this log and of others in the run's folder, as W&B's."""
    with writing(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("gift_vit")
    level, raises = ours.level, logging.raiseExceptions
    logging.raiseExceptions = False
    root.addHandler(handler)
    ours.setLevel(logging.INFO)  # root's default would leave the log empty where nobody configured logging
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        ours.setLevel(level)
        logging.raiseExceptions = raises


class MetricsFile(Observer):
    """Observer that appends each epoch's record; resuming, it starts from the checkpoint's history: no line lost or doubled.

    What an earlier start has left stays until there is something to write: a start that is refused changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._begun = path, False

    def resumed(self, history: list[EpochRecord]) -> None:
        """Write the records of the epochs that are done."""
        self._begun = True
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in history))

    def setting_scored(self, record: Mapping[str, float]) -> None:
        """Append the setting's line."""
        self._append(record)

    def epoch_done(self, record: EpochRecord) -> None:
        """Append the epoch's line."""
        self._append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        """Append one line, whole or not at all."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with writing(self.path), self.path.open("ab", buffering=0) as file:
            if not self._begun:
                file.truncate(0)
                self._begun = True
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(before)
                raise
