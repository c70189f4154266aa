"""The record of one finished run: ``result.json``, written last and atomically, and the only source of tables.

No ``result.json``: not finished. Reading is strict, since a table must not rest on a record that says something else.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from gift_vit.common.checks import of_type
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import write_json
from gift_vit.data.config import OF_NUMBERS, SIGNED, score_name

SCHEMA = 1
METRICS = ("train_loss", "val_top1", "test_top1", "test_loss", "epochs")
_ABSENT = ("predictions", "files", "metric", "extra_metrics")  # from a record that has none
PREDICTIONS = "predictions.parquet"  # the files beside the record
SUBMISSION = "predictions.tsv"
ANSWERS = "answers"  # the folder there: what a language model said to the questions of each test set
_OF_ANOTHER_VERSION = "made by another version of gift_vit; read it with that one, or move it away"
_FORMER_METRICS = ("best_val_top1", "best_val_epoch")  # of versions before 0.2; read by nothing


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What was run.

    ``chosen`` and ``chosen_on`` are None where nothing was, ``earlier_commits`` where there are none, as in results older than
    the fields.

    Attributes:
        method: The method's label: the stem of its YAML file. ``kind`` is the registered kind behind it.
        backbone: The backbone's label.
        protocol_changes: Key to ``[the protocol's value, the value used]``.
        config: The resolved configuration, whole.
        started_at: ISO 8601, UTC.
        git_sha: Commit of the checkout at the last start; None outside of one. ``git_dirty``: it had uncommitted changes.
        earlier_commits: Those of other code with which it was trained before it was resumed; ``-dirty`` with changes.
        chosen: The setting of a method that is fitted.
        chosen_on: ``val``: this run has chosen it, by the score on val of a head fitted on train; ``config``: the configuration
            names no other (a recipe names what search runs chose).
    """

    name: str
    phase: Literal["search", "final"]
    dataset: str
    benchmark: str
    method: str
    kind: str
    backbone: str
    protocol: str
    protocol_changes: dict[str, list[object]]
    seed: int
    config: dict[str, object]
    overrides: list[str]
    command: str
    started_at: str
    git_sha: str | None
    git_dirty: bool | None
    gift_vit_version: str
    earlier_commits: list[str] | None = None
    chosen: dict[str, float] | None = None
    chosen_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The dataset; a size is None where the split is absent.

    What has a default is None where it is not known, as in results that are older than the field.

    Attributes:
        decoder: What decoded the images, with its version.
        source: Where they were prepared from.
        class_names: The classes in the order of their numbers.
        splits: For each split what :class:`gift_vit.data.report.SplitReport` says.
        duplicates: What :class:`gift_vit.data.report.Duplicates` says.
        warnings: What the run warned of.
        sample: :attr:`gift_vit.data.base.VisionDataset.sample`.
    """

    name: str
    fingerprint: str
    num_classes: int
    train_split: str
    train_images: int
    val_images: int | None
    test_images: int | None
    decoder: str | None = None
    source: str | None = None
    class_names: list[str] | None = None
    splits: dict[str, dict[str, object]] | None = None
    duplicates: dict[str, object] | None = None
    warnings: list[str] | None = None
    sample: str | None = None

    @property
    def shared(self) -> dict[str, int]:
        """How many pictures stand in both of two splits (``train, test``), where there are any and it is known."""
        found: Any = (self.duplicates or {}).get("shared", {})
        return found


@dataclass(frozen=True, kw_only=True)
class ParamRecord:
    """Parameters by role; ``percent`` is the adapter in percent of the backbone, ``total`` the whole model."""

    adapter: int
    head: int
    backbone: int
    total: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """What the run cost; ``peak_memory_mib`` is device memory on CUDA, ``adapter_bytes`` the file with adapter and head.

    A method that is fitted, and not trained in steps, has no ``step_time_ms``; its ``train_seconds`` count computing its
    features in, also where an earlier run has kept them. Of a run that was resumed ``train_seconds`` are of all its starts,
    ``total_seconds`` of the last one.

    Of a run that was trained together with others (``env.parallel_runs`` says with how many, itself included) times and memory
    are those of all of them.
    """

    train_seconds: float
    total_seconds: float
    images_per_s: float
    step_time_ms: float | None
    peak_memory_mib: float | None
    peak_rss_mib: float | None
    adapter_bytes: int


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """What the kept predictions say, see :mod:`gift_vit.runs.predictions`.

    Attributes:
        split: The split that is scored.
        images: Images by split, of all splits that are kept.
        scores: The keys of :data:`gift_vit.runs.scores.SCORES`.
        confusions: ``label``, ``predicted`` and ``images`` of the pairs of classes that are mixed up most.
    """

    split: str
    images: dict[str, int]
    scores: dict[str, float | None]
    confusions: list[dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run.

    Attributes:
        backbone: The facts of ``describe_backbone``, and ``weights``: their hub name or file name.
        metrics: Exactly the keys of ``METRICS``. Top-1 in percent, 0–100, or the score that ``metric`` names; test numbers in
            phase ``final`` only. ``val_top1`` is of the weights that were kept.
        metric: What ``val_top1`` and ``test_top1`` are, in percent; None: accuracy, of images called top-1.
        extra_metrics: Further scores of the split that counts, in percent; None without any.
        predictions: None where none are kept.
        files: SHA-256 of files beside the record, by name; None in records of versions before 0.2.
        path: The file it was read from; not part of the record.
    """

    schema: int = SCHEMA
    status: Literal["finished"] = "finished"
    run: RunRecord
    data: DataRecord
    backbone: dict[str, object]
    params: ParamRecord
    metrics: dict[str, float | int | None]
    cost: CostRecord
    env: dict[str, object]
    predictions: PredictionRecord | None = None
    files: dict[str, str] | None = None
    metric: str | None = None
    extra_metrics: dict[str, float] | None = None
    path: Path | None = field(default=None, compare=False)

    @property
    def scored_on(self) -> str:
        """The split whose score counts: val in a search and where the protocol says so, else test."""
        protocol: Any = self.run.config.get("protocol")
        rule = protocol.get("scored_on", "test") if isinstance(protocol, dict) else "test"
        return "val" if self.run.phase == "search" else rule

    @property
    def score(self) -> float | None:
        """The score that counts, in percent."""
        return self.metrics[f"{self.scored_on}_top1"]

    @property
    def thing(self) -> str:
        """What an example is called: ``image`` or ``text``."""
        backbone = self.run.config.get("backbone")
        return thing_of(backbone.get("kind") if isinstance(backbone, dict) else None)

    @property
    def score_name(self) -> str:
        """What the score is, in a sentence."""
        return score_name(self.metric or "accuracy", self.thing)

    @property
    def further(self) -> dict[str, float]:
        """Further scores, by what they are called in a sentence."""
        return {score_name(name, self.thing): score for name, score in (self.extra_metrics or {}).items()}

    @property
    def of_classes(self) -> bool:
        """Whether classes are predicted, and not numbers or answers in words."""
        return self.metric not in (*OF_NUMBERS, "exact")

    @property
    def source(self) -> str:
        """The file, or the run's name where there is none: what an error message names."""
        return str(self.path or self.run.name)


def thing_of(backbone_kind: object) -> str:
    """What an example of a run is called, by ``backbone.kind`` of its configuration, which older ones lack."""
    return "text" if backbone_kind == "transformers" else "image"


def score_of(names: Iterable[str]) -> str:
    """What the score of several runs is, by what each one's is called; ``score`` where it is not the same."""
    return found.pop() if len(found := set(names)) == 1 else "score"


def scored_as(results: Sequence[Result]) -> str:
    """The split whose score counts, and what the score is: ``test top-1``."""
    return f"{results[0].scored_on} {score_of(result.score_name for result in results)}"


def things_of(results: Iterable[Result]) -> str:
    """What the examples of several runs are called: images, texts, or where there are both, examples."""
    things = {result.thing for result in results}
    return f"{things.pop()}s" if len(things) == 1 else "examples"


def to_json(result: Result) -> str:
    """The text of ``result.json``.

    Raises:
        RunError: If the record could not be read back: a number is NaN or infinite, a type or a range is wrong.
    """
    return json.dumps(_plain(result), indent=2, allow_nan=False) + "\n"


def write_result(path: str | Path, result: Result) -> None:
    """Write ``result.json`` atomically; as the last act of a run. Raises as :func:`to_json` does, and then writes nothing."""
    write_json(Path(path), _plain(result))


def read_result(path: str | Path) -> Result:
    """Read a ``result.json``.

    Raises:
        ConfigError: If the file is absent, cut short, of another schema, or has missing, unknown or wrong values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"it is no text file ({error.reason})") from error
    try:
        return _parse(json.loads(text, object_pairs_hook=_object), path)
    except json.JSONDecodeError as error:
        raise _unreadable(path, f"it is not valid JSON, perhaps cut short ({error})") from error
    except _OtherVersion as error:
        raise _unreadable(path, str(error), _OF_ANOTHER_VERSION) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; a key that it names twice would hide one of the values."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return value


def _unreadable(path: Path, problem: str, remedy: str = "delete it and start the run again") -> ConfigError:
    return ConfigError(f"{path} is no readable result: {problem}; {remedy}")


class _OtherVersion(ValueError):
    """Nothing is wrong with the record, but that this version of gift_vit does not know what it says."""


def _plain(result: Result) -> dict[str, Any]:
    """The record as JSON's types, checked to read back as it was written."""
    value = {key: item for key, item in asdict(result).items() if key not in _ABSENT or item is not None}
    del value["path"]
    try:
        _check_finite(value, "")
        value = json.loads(json.dumps(value))
        _parse(value, None)
    except (TypeError, ValueError) as error:
        raise RunError(f"the result of run {result.run.name} cannot be written: {error}") from error
    return value


def _parse(value: object, path: Path | None) -> Result:
    """Build the record from parsed JSON; what is wrong is a ValueError that names the key."""
    if isinstance(value, dict) and "schema" in value and value["schema"] != SCHEMA:
        raise _OtherVersion(f"it has schema {value['schema']!r}, this version of gift_vit reads schema {SCHEMA}")
    result = _build(Result, value, "", path=path)
    _check_finite(value, "")
    for key in _FORMER_METRICS:
        result.metrics.pop(key, None)
    if set(result.metrics) != set(METRICS):
        raise _keys_error("metrics", result.metrics, METRICS)
    for key in ("val_top1", "test_top1"):
        top1 = result.metrics[key]
        least = -100 if result.metric in SIGNED else 0
        if top1 is not None and not least <= top1 <= 100:
            raise ValueError(f"metrics.{key} is {top1}, expected percent between {least} and 100")
    if result.run.phase == "search" and (result.metrics["test_top1"], result.metrics["test_loss"]) != (None, None):
        raise ValueError("it has test numbers in phase search; they belong to phase final only")
    for key, change in result.run.protocol_changes.items():
        if len(change) != 2:
            raise ValueError(f"run.protocol_changes.{key} has {len(change)} values, expected [the protocol's, the used one]")
    return result


def _build(cls: Any, value: object, where: str, **extra: object) -> Any:
    """An instance of a record class from a JSON object with exactly its fields, ``extra`` aside.

    Fields that default to None may be absent.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is {_short(value)}, expected an object")
    hints, required = _hints(cls, tuple(extra))
    if not required <= value.keys() <= hints.keys():
        raise _keys_error(where or "it", value, [key for key in hints if key in required or key in value])
    prefix = f"{where}." if where else ""
    return cls(**{key: _checked(item, hints[key], prefix + key) for key, item in value.items()}, **extra)


@cache
def _hints(cls: Any, given: tuple[str, ...]) -> tuple[dict[str, Any], frozenset[str]]:
    """Types by field, without the fields that are given otherwise, and the names that must be there."""
    hints = {f.name: f.type for f in fields(cls) if f.name not in given}
    return hints, frozenset(f.name for f in fields(cls) if f.name in hints and f.default is not None)


def _checked(value: object, hint: Any, where: str) -> object:
    if value is not None and (record := next(filter(is_dataclass, get_args(hint)), None)):  # a record or None
        hint = record
    if is_dataclass(hint):
        return _build(hint, value, where)
    if not of_type(value, hint):
        expected = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
        raise ValueError(f"{where} is {_short(value)}, expected {expected}")
    return value


def _check_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, expected a finite number")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")


def _keys_error(where: str, given: Any, expected: Any) -> ValueError:
    missing = [key for key in expected if key not in given]
    unknown = [key for key in given if key not in expected]
    parts = [f"{word} {', '.join(keys)}" for word, keys in (("misses", missing), ("has unknown", unknown)) if keys]
    return (ValueError if missing else _OtherVersion)(f"{where} {' and '.join(parts)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
