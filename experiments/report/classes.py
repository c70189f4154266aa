"""How accurate final runs are class by class, and which classes they mix up: from their kept predictions."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from experiments.report.tables import HtmlCell, HtmlTable, number, word
from gift_vit.common.errors import ConfigError
from gift_vit.results.names import DATASET_NAMES, METHOD_NAMES, dataset_name, method_name, ordered
from gift_vit.runs.predictions import Predictions, predictions_of
from gift_vit.runs.result import Result
from gift_vit.runs.scores import class_accuracy, top_confusions

PAIRS = 15


@dataclass(frozen=True)
class ClassPanel:
    """One dataset: accuracy by class, and the pairs that are mixed up most; ``dataset`` is what the page's menu calls it."""

    dataset: str
    classes: HtmlTable
    pairs: HtmlTable


def build_class_panels(results: Iterable[Result]) -> list[ClassPanel]:
    """A panel for each dataset on which final runs kept their predictions of the split that is scored."""
    kept: dict[str, dict[str, list[Predictions]]] = defaultdict(lambda: defaultdict(list))
    unread: dict[str, list[str]] = defaultdict(list)
    things: dict[str, str] = {}
    for result in results:
        things[result.run.dataset] = f"{result.thing}s"
        try:
            predictions = predictions_of(result, result.scored_on)
        except ConfigError as error:
            unread[result.run.dataset].append(f"Left out: {error}.")
            continue
        if predictions is not None:
            kept[result.run.dataset][result.run.method].append(predictions)
    return [
        _panel(dataset, kept[dataset], unread[dataset], things[dataset])
        for dataset in ordered(kept, DATASET_NAMES)
        if kept[dataset]
    ]


def _panel(dataset: str, kept: Mapping[str, list[Predictions]], notes: Sequence[str], things: str) -> ClassPanel:
    methods = ordered(kept, METHOD_NAMES)
    first = kept[methods[0]][0]
    count = first.logits.shape[1]
    names = first.class_names or [str(label) for label in range(count)]
    name = dataset_name(dataset)
    titles = [method_name(method) for method in methods]
    accuracy = {method: _mean_accuracy(kept[method], count) for method in methods}
    images = np.bincount(first.labels, minlength=count)
    classes = [
        [word(names[label]), number(int(images[label]), "d"), *(number(accuracy[method][label], ".2f") for method in methods)]
        for label in range(count)
    ]
    mixed = {method: _mean_confusions(kept[method], count) for method in methods}
    total = {pair: sum(counts.get(pair, 0.0) for counts in mixed.values()) for counts in mixed.values() for pair in counts}
    pairs = [
        [word(names[true]), word(names[said]), *(_images(mixed[method].get((true, said), 0.0)) for method in methods)]
        for true, said in sorted(total, key=lambda pair: (-total[pair], pair))[:PAIRS]
    ]
    numeric = [False, False, *[True] * len(methods)]
    return ClassPanel(
        name,
        HtmlTable(
            f"{name}: accuracy by class on the {first.split} {things} in percent, mean over seeds.",
            ["Class", things.capitalize(), *titles],
            classes,
            [False, *[True] * (1 + len(methods))],
            notes=notes,
        ),
        HtmlTable(
            f"{name}: classes that are mixed up most, {things} per run (mean over seeds).",
            ["True class", "Taken for", *titles],
            pairs,
            numeric,
        ),
    )


def _mean_accuracy(runs: Sequence[Predictions], count: int) -> list[float | None]:
    """By class over the runs, in percent; None for a class without an image."""
    rows = [class_accuracy(run.logits, run.labels) for run in runs]
    known = [[value for row in rows if (value := row[label]) is not None] for label in range(count)]
    return [fmean(values) if values else None for values in known]


def _mean_confusions(runs: Sequence[Predictions], count: int) -> dict[tuple[int, int], float]:
    """Images per run by true and predicted class, of all pairs that occur."""
    found: dict[tuple[int, int], float] = defaultdict(float)
    for run in runs:
        for pair in top_confusions(run.logits, run.labels, count * count):
            found[pair.label, pair.predicted] += pair.images / len(runs)
    return found


def _images(mean: float) -> HtmlCell:
    return number(mean, "g" if mean == round(mean) else ".1f")
