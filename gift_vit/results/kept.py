"""What ``python -m gift_vit.invariance`` has left in runs' folders, for tables: forgetting, drift, STIR."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gift_vit.common.cli import run_word
from gift_vit.common.errors import ConfigError
from gift_vit.common.hub import ADAPTER
from gift_vit.config.compose import flatten
from gift_vit.results.collect import Grid, Row
from gift_vit.results.comparison import find_rows
from gift_vit.results.names import dataset_name
from gift_vit.results.notes import row_name
from gift_vit.results.paired import CONFIDENCE
from gift_vit.results.render import decimal_text
from gift_vit.runs.result import Result

UNMEASURABLE = ("toast",)  # kinds of methods that pass an image through the blocks more than once: a layer has no one output
FOLDER = "invariance"  # in a run's folder
RECORD, FORGETTING = "invariance.json", "forgetting.json"
_ABSENT = "absent"
_RETAINED = ("unbiased", "measures", "invariances_of_pretrained")


@dataclass(frozen=True)
class Measure:
    """One number of a record: the file it stands in, and where."""

    title: str
    file: str
    keys: tuple[str, ...]
    decimals: int


MEASURES = {
    "forgetting": Measure("Forgetting (points)", FORGETTING, ("linear", "forgetting", "mean"), 2),
    "forgetting_knn": Measure("Forgetting, k-NN (points)", FORGETTING, ("knn", "forgetting", "mean"), 2),
    "drift": Measure("Drift (1 − CKA)", FORGETTING, ("drift", "mean"), 3),
    "stir": Measure("STIR retained, mean over blocks", RECORD, (*_RETAINED, "means", "all", "retained", "mean"), 3),
    "stir_pooled": Measure("STIR of the pooled vector", RECORD, (*_RETAINED, "pooled"), 3),
}


def measured(result: Result, name: str) -> float | None:
    """One of :data:`MEASURES` of a run; None: it has no record of it, or it is not defined.

    Raises:
        ConfigError: If the record cannot be read, or is of another adapter than the run has.
    """
    measure = MEASURES[name]
    value: Any = _record(result, measure.file)
    if value is None:
        return None
    try:
        for key in measure.keys:
            value = value[key]
        return None if value is None else float(value)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(_file(result, measure.file), error) from error


def measure_notes(results: Sequence[Result], names: Sequence[str]) -> tuple[str, ...]:
    """Sentences below a table with these measures: what they were measured on, and which runs lack them.

    Raises:
        ConfigError: If a record cannot be read, or two were made on other images or with other options.
    """
    notes: list[str] = []
    for file in dict.fromkeys(MEASURES[name].file for name in names):
        titles = ", ".join(MEASURES[name].title for name in names if MEASURES[name].file == file)
        records = {_file(result, file): _record(result, file) for result in results}
        facts = [(place, _facts(file, record, place)) for place, record in records.items() if record is not None]
        if facts:
            drift = " The drift is that of 1,000 of these images at most." if file == FORGETTING and "drift" in names else ""
            images = [len(record["images"]) for record in records.values() if record and file == RECORD]
            notes.append(f"{titles}: {_describe(file, _agreed(facts), images)}{drift}")
        if without := [result for result in results if records[_file(result, file)] is None]:
            how = _to_make(file, without, list(records.values()))
            notes.append(f"Runs without {file}, and so without {titles}: {len(without)}{how}.")
    return tuple(notes)


def measure_comparison(grid: Grid, compare: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each of these measures: two rows' difference, and that of their scores, over the same pairs of runs.

    Runs are paired by dataset and seed. The interval is that of the mean over datasets of the mean over seeds, with one
    variance of the differences for all datasets (Student's t; the datasets are given, the seeds drawn).

    Raises:
        ConfigError: If ``compare`` does not name two different rows of the grid, or a record cannot be read.
    """
    if not compare:
        return ()
    first, second = find_rows(grid, compare)
    title = f"{row_name(first)} less {row_name(second)}"
    sentences = []
    for name in names:
        pairs = {d: pairs for d in grid.datasets if (pairs := _pairs(grid, first, second, d, name))}
        if not pairs:
            continue
        measure, count = MEASURES[name], sum(map(len, pairs.values()))
        apart = [
            np.array([one[which] - other[which] for one, other in of_one]) for which in (0, 1) for of_one in pairs.values()
        ]
        own, scores = apart[: len(pairs)], apart[len(pairs) :]
        means = [decimal_text(x.mean(), measure.decimals, "+") for x in own]
        by_dataset = ", ".join(f"{dataset_name(d)} {mean}" for d, mean in zip(pairs, means, strict=True))
        intervals = f", {CONFIDENCE:.0%} intervals over seeds" if any(len(x) > 1 for x in own) else ""
        sentences.append(
            f"{measure.title}, {title}: {_interval(own, measure.decimals)} ({by_dataset}), and their test scores "
            f"{_interval(scores, 2)} points. {_pairs_text(count)} of runs of one dataset and seed{intervals}; "
            f"below 0 in {_pairs_text(sum(int((x < 0).sum()) for x in own))}. About other datasets it says nothing."
        )
    return tuple(sentences)


def _pairs(grid: Grid, first: Row, second: Row, dataset: str, name: str) -> list[tuple[tuple[float, float], ...]]:
    """(measure, score) of both rows, for the seeds of which both were measured."""
    known: list[dict[int, tuple[float, float]]] = []
    for row in (first, second):
        found = {result.run.seed: (measured(result, name), result.score) for result in grid.cells.get((row, dataset), ())}
        known.append({seed: (one, top1) for seed, (one, top1) in found.items() if one is not None and top1 is not None})
    return [(known[0][seed], known[1][seed]) for seed in sorted(known[0].keys() & known[1].keys())]


def _pairs_text(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _interval(by_dataset: Sequence[NDArray[np.floating]], decimals: int) -> str:
    mean, half = mean_over_datasets(by_dataset)
    shown = decimal_text(mean, decimals, "+")
    return f"{shown} (no interval: one seed)" if half is None else f"{shown} ± {half:.{decimals}f}"


def mean_over_datasets(by_dataset: Sequence[NDArray[np.floating]]) -> tuple[float, float | None]:
    """Mean over datasets of the mean of each one's values, and half its 95 % interval; None where each has one value.

    Args:
        by_dataset: Values of each dataset, (n,), with one variance for all.
    """
    from scipy.stats import t  # half a second to import, for those who compare only

    mean = float(np.mean([values.mean() for values in by_dataset]))
    freedom = sum(len(values) - 1 for values in by_dataset)
    if not freedom:
        return mean, None
    variance = sum(float(((values - values.mean()) ** 2).sum()) for values in by_dataset) / freedom
    error = np.sqrt(variance * sum(1 / len(values) for values in by_dataset)) / len(by_dataset)
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, freedom) * error)


def _agreed(facts: Sequence[tuple[Path, Mapping[str, Any]]]) -> Mapping[str, Any]:
    """What all records were made of."""
    (first, expected), *others = facts
    for other, given in others:
        one, another = dict(flatten(expected)), dict(flatten(given))
        if differing := [key for key in sorted(one | another) if one.get(key, _ABSENT) != another.get(key, _ABSENT)]:
            values = "; ".join(f"{key} {one.get(key, _ABSENT)} and {another.get(key, _ABSENT)}" for key in differing[:3])
            raise ConfigError(
                f"{first} and {other} differ in {', '.join(differing)}, and cannot stand in one table ({values}); "
                "measure one of these runs again with the options of the other"
            )
    return expected


def _facts(file: str, record: Any, path: Path) -> dict[str, Any]:
    """What is the same of records that may stand in one table; of images how many were asked for: a split may have fewer."""
    try:
        if file == FORGETTING:
            return dict(record["on"])
        asked = record.get("made_of", {}).get("images", len(record["images"]))
        return {key: record[key] for key in ("split", "tokens", "layers", "descent")} | {"images": asked}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _describe(file: str, facts: Mapping[str, Any], counts: Sequence[int]) -> str:
    if file == FORGETTING:
        images = f"{facts['test_images']:,} images of {facts['classes']} classes of {facts['dataset']}"
        return f"of the features of {images}, classifiers fitted to {facts['train_images']:,} others; seed {facts['seed']}."
    found = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"unbiased, {found} images of {facts['split']}."


def _to_make(file: str, without: Sequence[Result], records: Sequence[Any]) -> str:
    """What makes the record of the first of these runs that can be measured, as those that are there, and how many cannot."""
    folders = [_file(result, file).parent.parent for result in without if result.run.kind not in UNMEASURABLE]
    never = len(without) - len(folders)
    told = f", of which {never} cannot be measured: {', '.join(UNMEASURABLE)}" if never else ""
    if not folders:
        return told
    words = [run_word(folders[0]), *_words(file, next((record for record in records if record is not None), {}))]
    return f"{told}. To make it: `python -m gift_vit.invariance {' '.join(words)}`"


def _words(file: str, like: Mapping[str, Any]) -> list[str]:
    """The options that make a record like another."""
    if file == FORGETTING:
        on = like.get("on", {})
        options = {"images": 0, "forgetting": on.get("dataset", "DATASET")}
        options |= {"per_class": on["per_class"] or 0, "seed": on["seed"]} if "per_class" in on else {}
    else:
        options = {key: value for key, value in like.get("made_of", {}).items() if key not in ("format", "adapter_sha256")}
    return [shlex.quote(f"{key}={value}") for key, value in options.items() if value is not None]


def _file(result: Result, name: str) -> Path:
    return (result.path.parent if result.path else Path(result.source)) / FOLDER / name


def _record(result: Result, name: str) -> Any:
    """The content of a record; None: there is none."""
    file = _file(result, name)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        adapter = record.get("made_of", {}).get("adapter_sha256")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, AttributeError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from error
    if adapter not in (None, (result.files or {}).get(ADAPTER, adapter)):
        raise ConfigError(f"{file} is of an adapter that {file.parent.parent} no longer has; measure that run again")
    return record


def _damaged(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{file} cannot be read ({error!r}); delete it, and make it again with python -m gift_vit.invariance")
