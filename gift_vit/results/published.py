"""Numbers that others published: read, grouped into rows, and when one of ours may be subtracted from one of theirs."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from gift_vit.common.errors import ConfigError
from gift_vit.config.keys import is_placement, own_backbone
from gift_vit.results.names import COMMONSENSE_COLUMNS, FGVC, GLUE, METHOD_NAMES, VTAB
from gift_vit.runs.result import Result

DEFAULT_SOURCE = "gift"
VIT_B16_PARAMETERS = 85_798_656  # of the backbone that every published row is about, without a head
_MEANS = {
    "fgvc": ("mean",),
    "glue": ("mean",),
    "commonsense": ("mean",),
    "vtab1k": ("mean_natural", "mean_specialized", "mean_structured", "mean_19_tasks", "mean_3_groups"),
}
_OF_BENCHMARK = {"fgvc": FGVC, "vtab1k": VTAB, "glue": GLUE, "commonsense": COMMONSENSE_COLUMNS}
_DATASETS = {benchmark: {*datasets, *_MEANS[benchmark]} for benchmark, datasets in _OF_BENCHMARK.items()}
_COLUMNS = (
    *("source", "title", "ref", "benchmark", "method", "published_as", "adapter_params_m", "weights", "protocol"),
    *("protocol_text", "dataset", "top1"),
)
_OF_LANGUAGE = ("params_percent", "std")  # columns of the file on language models beside them


@dataclass(frozen=True)
class Conditions:
    """Where numbers come from and how they were made: only rows that share all of it stand under one title.

    Attributes:
        source: The name to ask for it by; ``title`` and ``ref`` say which paper, which file of which commit.
        weights: timm's name where the source gives it, else the source's words.
        protocol: Our protocol that has the same rules; empty where none has. ``protocol_text``: the rules.
    """

    source: str
    title: str
    ref: str
    benchmark: str
    weights: str
    protocol: str
    protocol_text: str


@dataclass(frozen=True)
class PublishedRow:
    """One method's published numbers.

    Attributes:
        method: Our label of the method; empty where we have none. Its size may be another than ours.
        name: As published.
        adapter_params: Parameters, one value per size that the source chose for some of the tasks; empty if it gives none.
        top1: Dataset's label, or the name of a mean, to percent, in the digits of the source.
        std: The same for standard deviations, where the source gives them.
        percent: Parameters in percent of the backbone, in the digits of the source; empty if it does not give that.
    """

    conditions: Conditions
    method: str
    name: str
    adapter_params: tuple[int, ...]
    top1: Mapping[str, str]
    std: Mapping[str, str] = field(default_factory=dict)
    percent: str = ""


def read_published(path: str | Path) -> list[PublishedRow]:
    """Read the published numbers, in the order of the file.

    Raises:
        ConfigError: If the file is absent, has other columns, an unknown method, benchmark or dataset, a value that is no
            number, or two numbers for one cell.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) not in (_COLUMNS, _COLUMNS + _OF_LANGUAGE):
                raise ConfigError(f"{path} has columns {reader.fieldnames}, expected {', '.join(_COLUMNS)}")
            lines = list(reader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; published numbers need it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no readable CSV file: {error}") from error
    rows: dict[tuple[Conditions, str], list[dict[str, str]]] = {}
    for number, line in enumerate(lines, start=2):
        if problem := _problem(line):
            raise ConfigError(f"{path}, line {number}: {problem}")
        conditions = Conditions(**{key: line[key] for key in Conditions.__dataclass_fields__})
        rows.setdefault((conditions, line["published_as"]), []).append(line)
    return [_row(path, conditions, name, cells) for (conditions, name), cells in rows.items()]


def choose_published(rows: Iterable[PublishedRow], benchmark: str, sources: Sequence[str]) -> list[PublishedRow]:
    """The rows of some sources on one benchmark.

    Raises:
        ConfigError: If a source has none.
    """
    here = [row for row in rows if row.conditions.benchmark == benchmark]
    known = sorted({row.conditions.source for row in here})
    unknown = [source for source in sources if source not in known]
    if unknown:
        among = f"known: {', '.join(known)}" if known else "it has no published numbers at all"
        raise ConfigError(f"no published numbers of {', '.join(unknown)} on benchmark {benchmark} ({among})")
    return [row for row in here if row.conditions.source in sources]


def by_conditions(rows: Iterable[PublishedRow]) -> list[tuple[Conditions, list[PublishedRow]]]:
    """Rows that may stand under one title."""
    rows = list(rows)
    order = list(dict.fromkeys(row.conditions for row in rows))
    grouped = groupby(sorted(rows, key=lambda row: order.index(row.conditions)), key=lambda row: row.conditions)
    return [(conditions, list(group)) for conditions, group in grouped]


def is_same_experiment(runs: Sequence[Result], row: PublishedRow) -> bool:
    """The rule for a difference, ours − published: the same protocol, weights and method.

    That is: every run followed, without a change, the protocol that the row has among ours; started from the weights that timm
    has under the row's name, at their size of image; and tuned the method of the row's label, with as many parameters and the
    values of its file, on the data of its file.
    """
    conditions = row.conditions
    return bool(runs and conditions.protocol and row.method) and all(
        (r.run.benchmark, r.run.protocol, r.run.method) == (conditions.benchmark, conditions.protocol, row.method)
        and not r.run.protocol_changes
        and conditions.weights == ".".join(str(r.backbone[key]) for key in ("architecture", "tag") if r.backbone.get(key))
        and not _told_otherwise(r)
        and row.adapter_params == (r.params.adapter,)
        for r in runs
    )


def _told_otherwise(run: Result) -> bool:
    """Whether a run was told something of method, data or backbone that the files of these do not say."""
    words = [word.lstrip("+~").partition("=")[0] for word in run.run.overrides]
    options = {"backbone.img_size", "backbone.global_pool", "backbone.pretrained"}
    told = any(word.startswith(("method.", "dataset.")) and not is_placement(word) for word in words)
    return told or bool(options & own_backbone(run.run.config).keys())


def _problem(line: Mapping[str, str | None]) -> str | None:
    if None in line or None in line.values():
        return f"expected {len(_COLUMNS)} values"
    if line["benchmark"] not in _DATASETS:
        return f"unknown benchmark {line['benchmark']!r} (known: {', '.join(_DATASETS)})"
    if line["dataset"] not in _DATASETS[str(line["benchmark"])]:
        return f"unknown dataset {line['dataset']!r} of benchmark {line['benchmark']}"
    if line["method"] and line["method"] not in METHOD_NAMES:
        return f"unknown method {line['method']!r}; leave it empty where we have none"
    for key, limit in (("top1", 100), ("adapter_params_m", 1000), ("params_percent", 100), ("std", 100)):
        text = str(line.get(key, ""))
        if not 0 <= _number(text) <= limit and (text or key == "top1"):
            return f"{key} is {text!r}, expected a number from 0 to {limit}"
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _row(path: str | Path, conditions: Conditions, name: str, cells: Sequence[Mapping[str, str]]) -> PublishedRow:
    top1: dict[str, str] = {}
    for cell in cells:
        if cell["dataset"] in top1:
            raise ConfigError(f"{path} has two numbers of {conditions.source} for {name} on {cell['dataset']}")
        top1[cell["dataset"]] = cell["top1"]
    methods = {cell["method"] for cell in cells}
    if len(methods) > 1:
        raise ConfigError(f"{path} calls {name} of {conditions.source} by several labels: {', '.join(sorted(methods))}")
    sizes = {round(1e6 * float(cell["adapter_params_m"])) for cell in cells if cell["adapter_params_m"]}
    std = {cell["dataset"]: cell["std"] for cell in cells if cell.get("std")}
    return PublishedRow(conditions, methods.pop(), name, tuple(sorted(sizes)), top1, std, cells[0].get("params_percent", ""))
