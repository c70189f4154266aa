"""From a folder of ``result.json`` files to a grid of runs that may stand in one table.

Nothing is averaged silently: what differs in more than the seed, or was measured under other conditions, is an error
that names the files.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gift_vit.common.errors import ConfigError, a_few, did_you_mean
from gift_vit.common.files import expanded
from gift_vit.config.compose import flatten
from gift_vit.config.keys import config_difference, identifying, one_form, value_order
from gift_vit.results.names import Value, dataset_name
from gift_vit.runs.result import Result
from gift_vit.runs.run import Run, find_runs

Row = tuple[str, ...]

_METHOD_KEYS = ("method.name", "method.kind")
_SPREAD = "weights_spread_sha256"
_DATA_FACTS = ("fingerprint", "num_classes", "train_split", "train_images", "val_images", "test_images")


@dataclass(frozen=True)
class Grid:
    """Final runs by row and dataset, checked to be comparable.

    Attributes:
        rows: What each row stands for: a method's label, or the values of the keys that the rows were asked for by.
        datasets: Labels: the ones asked for, otherwise those that occur, in alphabetical order.
        cells: The runs of one row on one dataset, by ascending seed; a cell without runs is absent.
        keys: The keys of the configuration that the rows were asked for by; none: they are methods.
    """

    rows: tuple[Row, ...]
    datasets: tuple[str, ...]
    cells: Mapping[tuple[Row, str], tuple[Result, ...]]
    keys: tuple[str, ...] = ()

    @property
    def show_n(self) -> bool:
        """Whether cells have different numbers of seeds, so that each says its own."""
        return len({len(cell) for cell in self.cells.values()}) > 1

    @property
    def results(self) -> list[Result]:
        """All runs of the grid, cell by cell."""
        return [result for cell in self.cells.values() for result in cell]

    def of_row(self, row: Row) -> list[Result]:
        """The runs of one row."""
        return [result for (label, _), cell in self.cells.items() if label == row for result in cell]

    def missing(self) -> list[tuple[Row, str]]:
        """Row and dataset of every empty cell."""
        return [(row, d) for row in self.rows for d in self.datasets if (row, d) not in self.cells]


NO_RUNS = Grid((), (), {})


def collect_results(*roots: str | Path) -> list[Result]:
    """Every ``result.json`` below folders, by path, as :func:`find_runs` finds them.

    Raises:
        ConfigError: If a folder is absent, or any record below it cannot be read.
    """
    return [run.result for run in runs_below(*roots) if run.result]


def labelled(results: Sequence[Result], **labels: str | None) -> list[Result]:
    """Those with a label, as ``protocol="clean"``; None takes all.

    Raises:
        ConfigError: If there are results, and none of them has the label.
    """
    wanted = {name: label for name, label in labels.items() if label is not None}
    for name, label in wanted.items():
        there = {getattr(result.run, name) for result in results}
        if there and label not in there:
            known = ", ".join(sorted(there))
            raise ConfigError(f"{name}: no finished run of {label}{did_you_mean(label, there)} (there are: {known})")
        results = [r for r in results if getattr(r.run, name) == label]
    return list(results)


def runs_below(*roots: str | Path) -> list[Run]:
    """Every run below the folders, as :func:`find_runs`.

    Raises:
        ConfigError: If a folder is absent.
    """
    folders = [expanded(root) for root in roots]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"no folder {folder}; pass root=<folder with the runs>")
    return find_runs(*folders)


def check_datasets(datasets: Iterable[str], results: Iterable[Result], named: Iterable[str] = ()) -> None:
    """Refuse a dataset that is none of ``named`` and of no run: misspelt, it would be a column of dashes.

    Raises:
        ConfigError: Names those that are known.
    """
    known = dict.fromkeys([*named, *sorted({r.run.dataset for r in results})])
    unknown = [dataset for dataset in datasets if dataset not in known]
    if unknown:
        raise ConfigError(f"unknown dataset {', '.join(unknown)} in datasets= (known: {', '.join(known)})")


def build_grid(
    results: Iterable[Result], benchmark: str, datasets: Sequence[str] | None = None, rows: Sequence[str] = ()
) -> Grid:
    """Arrange the final runs of a benchmark as rows × datasets.

    Args:
        results: Runs of any phase and benchmark; those of other benchmarks and of phase ``search`` do not count.
        benchmark: The benchmark's name.
        datasets: The columns; other datasets are left out. None: every dataset that occurs.
        rows: Keys of the configuration, as ``method.rank``: a row per combination of their values. Empty: a row per method.

    Raises:
        ConfigError: If no run remains, a run has no such key, or runs differ in what one table must share: the protocol and
            the backbone over the table, the data over a column, the configuration but for the seed over a cell; or if two
            runs claim one seed of a cell, or a final run has no test accuracy.
    """
    everything = list(results)
    runs = [
        r
        for r in everything
        if (r.run.phase, r.run.benchmark) == ("final", benchmark) and (datasets is None or r.run.dataset in datasets)
    ]
    if not runs:
        others = ", ".join(map(dataset_name, sorted(final_datasets(everything, benchmark))))
        elsewhere = sorted({r.run.benchmark for r in everything if r.run.phase == "final"} - {benchmark})
        raise ConfigError(
            f"no finished final run of benchmark {benchmark} among {len(everything)} results"
            f"{f', but of {others}, which this table leaves out' if others else ''}; "
            f"{f'give benchmark={elsewhere[0]}, which has some, or ' if elsewhere else ''}"
            f"run `python -m gift_vit.train phase=final` on its datasets first"
        )
    _check_same(runs, lambda r: {"protocol": r.run.protocol}, "one table", "choose one with protocol=<name>")
    _check_same(runs, lambda r: {"backbone": r.run.backbone}, "one table", "choose one with backbone=<name>")
    check_backbone(runs, "one table")
    for dataset in {r.run.dataset: None for r in runs}:
        check_data([r for r in runs if r.run.dataset == dataset], f"the column {dataset}")
    found = by_row(runs, rows)
    cells = _cells(found)
    for key, cell in cells.items():
        _check_cell(key, cell)
    columns = sorted({dataset for _, dataset in cells}) if datasets is None else dict.fromkeys(datasets)
    return Grid(tuple(found), tuple(columns), cells, tuple(rows))


def that_fit(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The final runs of the cells, of method and dataset, that can be averaged; and of each other cell why it cannot."""
    fitting: list[Result] = []
    reasons = []
    for key, cell in _cells(by_row(results)).items():
        try:
            _check_cell(key, cell)
        except ConfigError as error:  # noqa: PERF203 - one cell is not the next one's matter
            reasons.append(str(error))
        else:
            fitting += cell
    return fitting, reasons


def _cells(rows: Mapping[Row, Sequence[Result]]) -> dict[tuple[Row, str], tuple[Result, ...]]:
    """The runs of each row on each dataset, by ascending seed."""
    return {
        (row, dataset): tuple(cell)
        for row, members in rows.items()
        for dataset, cell in groupby(sorted(members, key=lambda r: (r.run.dataset, r.run.seed)), key=lambda r: r.run.dataset)
    }


def final_datasets(results: Iterable[Result], benchmark: str) -> set[str]:
    """The datasets of a benchmark that have final runs."""
    return {r.run.dataset for r in results if (r.run.phase, r.run.benchmark) == ("final", benchmark)}


def by_row(results: Iterable[Result], keys: Sequence[str] = ()) -> dict[Row, list[Result]]:
    """Runs by what their row is: the method's label, or the values of ``keys``, in the order of these values.

    Raises:
        ConfigError: If a run has no such key.
    """
    valued = sorted(((_row_values(r, keys), r) for r in results), key=lambda item: [value_order(value) for value in item[0]])
    rows: dict[Row, list[Result]] = {}
    labels = [str if key in _METHOD_KEYS else Value for key in keys or _METHOD_KEYS[:1]]
    for values, result in valued:
        row = tuple(label(plain_text(one_form(value))) for label, value in zip(labels, values, strict=True))
        rows.setdefault(row, []).append(result)
    return rows


def plain_text(value: object) -> str:
    """A value of the configuration as a person reads it: text as it is, a list without brackets, anything else as JSON."""
    if isinstance(value, list):
        return ", ".join(plain_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def _row_values(result: Result, keys: Sequence[str]) -> list[object]:
    if not keys:
        return [result.run.method]
    values = []
    for key in keys:
        value: Any = result.run.config
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ConfigError(f"{result.source} has no {key} to make a row of; give rows=[<keys of its config.yaml>]")
            value = value[part]
        values.append(value)
    return values


def check_backbone(runs: Sequence[Result], where: str) -> None:
    """Refuse runs whose backbones differ, in their weights too, where these are known.

    Raises:
        ConfigError: Names what differs, and two files.
    """
    remedy = "run them again on one backbone"
    _check_same(runs, _backbone_facts, where, remedy)
    told = [r for r in runs if r.backbone.get(_SPREAD) is not None and not _is_random(r)]
    _check_same(told, lambda r: {f"backbone.{_SPREAD}": r.backbone[_SPREAD]}, where, remedy)


def check_data(runs: Sequence[Result], where: str) -> None:
    """Refuse runs on one dataset whose data differ: what it holds, its pictures as they are stored, or their decoder.

    Older records do not know the latter two. The images of VTAB-1k may be stored in two ways, of the same pixels.

    Raises:
        ConfigError: Names what differs, and two files.
    """
    remedy = "delete those of other data and run them again"
    _check_same(runs, _data_facts, where, remedy)
    told = [r for r in runs if r.data.sample is not None and r.run.benchmark != "vtab1k"]
    _check_same(told, lambda r: {"sample": r.data.sample}, where, remedy)
    told = [r for r in runs if r.data.decoder is not None]
    _check_same(told, lambda r: {"decoder": r.data.decoder}, where, "run them again with one decoder")


def _check_cell(key: tuple[Row, str], cell: Sequence[Result]) -> None:
    name = f"the cell {', '.join(key[0])} on {key[1]}"
    check_seeds(cell, f"{name} (backbone {cell[0].run.backbone})")
    for result in cell:
        if result.score is None:
            missing = f"{result.scored_on}_top1"
            raise ConfigError(f"{result.source} is a final run without {missing}; delete it and start the run again")
    _check_same(cell, but_for_seed, name, "a cell averages over seeds only: move the runs that do not belong away")


def check_seeds(runs: Sequence[Result], where: str) -> None:
    """Of one setting only one run of a seed may count: of two, nothing says which.

    Raises:
        ConfigError: Names both.
    """
    by_seed: dict[int, Result] = {}
    for run in runs:
        if (other := by_seed.setdefault(run.run.seed, run)) is not run:
            both = f"{other.source} and {run.source} both claim seed {run.run.seed}"
            differing = list(config_difference(other.run.config, run.run.config))
            told = f" (they differ in {', '.join(differing[:3])})" if differing else ""
            apart = "" if not differing else ", or tell them apart by rows=[…] or method="
            raise ConfigError(f"{both} of {where}{told}; move one of them away{apart}")


def _check_same(runs: Sequence[Result], facts: Callable[[Result], dict[str, object]], where: str, remedy: str) -> None:
    """Refuse runs whose facts differ, naming the keys, both values and both files."""
    if not runs:
        return
    first = runs[0]
    expected = facts(first)
    for run in runs[1:]:
        given = facts(run)
        if given == expected:
            continue
        keys = [
            key for key in sorted(expected | given) if (key in expected, expected.get(key)) != (key in given, given.get(key))
        ]
        mixed = a_few([f"{key} {expected.get(key, 'absent')} and {given.get(key, 'absent')}" for key in keys])
        raise ConfigError(f"{where} would mix {mixed}: {first.source} and {run.source}; {remedy}")


def _data_facts(result: Result) -> dict[str, object]:
    """What the data is; what a run found out about it, or was told to, is another matter."""
    return {key: getattr(result.data, key) for key in _DATA_FACTS}


def _backbone_facts(result: Result) -> dict[str, object]:
    """What the backbone is; the same weights may have come from the hub or from a file.

    Random weights follow the seed. The pooling is the one asked for: which one timm builds, older versions did not record.
    """
    others = ("weights", "global_pool", _SPREAD, *(["weights_sha256"] if _is_random(result) else []))
    facts = {f"backbone.{key}": value for key, value in result.backbone.items() if key not in others}
    return facts | {"backbone.global_pool": dict(flatten(result.run.config)).get("backbone.global_pool")}


def _is_random(result: Result) -> bool:
    """Whether the backbone was drawn anew, and not loaded."""
    backbone = result.run.config.get("backbone")
    return isinstance(backbone, dict) and backbone.get("pretrained") is False and backbone.get("weights") is None


def but_for_seed(result: Result) -> dict[str, object]:
    """What the runs of one cell agree on: the configuration but for the seed."""
    return {key: value for key, value in identifying(result.run.config).items() if key != "seed"}
