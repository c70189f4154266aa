"""Training curves: one panel per dataset, method and phase, each run a line in three charts and a row of the legend."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from experiments.report.charts import COLOURS, DASHES, MAX_POINTS, Chart, curve_chart
from experiments.report.runs import ShownRun, display_order, varying_keys
from experiments.report.tables import HtmlCell, number
from gift_vit.config.keys import value_order
from gift_vit.runs.result import score_of
from gift_vit.runs.run import METRICS

MAX_RUNS = 1000  # with curves; the page grows by about 4 KB for each

Href = Callable[[ShownRun], str]
Curve = list[dict[str, float]]
Series = list[tuple[float, float]]


@dataclass(frozen=True)
class Legend:
    """One run of a panel: the style of its line and what tells it from the others."""

    colour: int
    dashes: Sequence[int]
    label: str
    href: str
    state: str
    epochs: int
    loss: HtmlCell
    val: HtmlCell
    test: HtmlCell


@dataclass(frozen=True)
class CurvePanel:
    """The runs of one method on one dataset in one phase."""

    dataset: str
    method: str
    phase: str
    score: str
    charts: Sequence[Chart]
    legend: Sequence[Legend]


def build_curves(runs: Iterable[ShownRun], href: Href) -> tuple[list[CurvePanel], list[str]]:
    """The panels, finals first, and notes on what was thinned, left out or could not be read."""
    known = [run for run in runs if run.dataset and run.method]
    known.sort(key=lambda run: (run.phase != "final", -(run.val_top1 or 0.0)))
    curves = [(run, run.run.curve()) for run in known[:MAX_RUNS]]
    groups: dict[tuple[str, str, str], list[tuple[ShownRun, Curve]]] = defaultdict(list)
    for run, curve in curves:
        if curve:
            groups[run.dataset, run.method, run.phase].append((run, curve))
    order = sorted(groups, key=lambda key: (key[2] != "final", display_order(key)))
    notes = _notes(len(known), curves, score_of(run.score_name for run in known))
    return [_panel(key, groups[key], href) for key in order], notes


def _panel(key: tuple[str, str, str], group: Sequence[tuple[ShownRun, Curve]], href: Href) -> CurvePanel:
    score = score_of(run.score_name for run, _ in group)
    keys = varying_keys(run for run, _ in group) or ["optim.lr", "seed"]
    group = sorted(group, key=lambda item: [value_order(item[0].settings.get(name)) for name in keys])
    labels = [", ".join(f"{_short(name)} {run.text(name)}" for name in keys) for run, _ in group]
    losses, scores, rates = ([_series(curve, name) for _, curve in group] for name in ("train_loss", "val_top1", "lr"))
    charts = [
        curve_chart("Training loss", losses, labels),
        curve_chart(f"Val {score} (%)", scores, labels, percent=True),
        _lr_chart(rates, labels),
    ]
    legend = [
        Legend(
            colour=index % len(COLOURS),
            dashes=DASHES[index % len(DASHES)],
            label=label,
            href=href(run),
            state=run.state,
            epochs=len(curve),
            loss=number(curve[-1].get("train_loss"), ".4g"),
            val=number(next((epoch["val_top1"] for epoch in reversed(curve) if "val_top1" in epoch), None), ".2f"),
            test=number(run.test_top1, ".2f"),
        )
        for index, ((run, curve), label) in enumerate(zip(group, labels, strict=True))
    ]
    return CurvePanel(*key, score, charts, legend)


def _lr_chart(curves: list[Series], labels: Sequence[str]) -> Chart:
    """Rates on a linear axis, unless the runs' peaks lie a decade or more apart."""
    peaks = [max(lr for _, lr in curve) for curve in curves if curve]
    log = bool(peaks) and min(peaks) > 0 and max(peaks) / min(peaks) >= 10
    if log:
        curves = [[(epoch, lr) for epoch, lr in curve if lr > 0] for curve in curves]
    return curve_chart("Learning rate, log scale" if log else "Learning rate", curves, labels, log=log)


def _series(curve: Curve, key: str) -> Series:
    """(epoch, value), counting epochs from 1."""
    return [(epoch["epoch"] + 1, epoch[key]) for epoch in curve if key in epoch]


def _short(key: str) -> str:
    return {"optim.lr": "lr", "optim.weight_decay": "wd"}.get(key, key.removeprefix("method.").removeprefix("trainer."))


def _notes(known: int, curves: Sequence[tuple[ShownRun, Curve]], score: str) -> list[str]:
    notes = []
    if known > MAX_RUNS:
        notes.append(
            f"Curves of {MAX_RUNS} of {known} runs are shown: the final runs come first, then the best searches by "
            f"val {score}. Choose fewer with root=<folder> or benchmark=<name>."
        )
    if long := sum(len(curve) > MAX_POINTS for _, curve in curves):
        notes.append(f"{long} runs have more than {MAX_POINTS} epochs: {MAX_POINTS} evenly spread ones of each are drawn.")
    if broken := [str(run.run.folder / METRICS) for run, curve in curves if _lacks_epochs(run, curve)]:
        notes.append(f"Not every line could be read of: {', '.join(broken)}.")
    return notes


def _lacks_epochs(run: ShownRun, curve: Curve) -> bool:
    epochs = run.result.metrics["epochs"] if run.result else None
    return epochs is not None and len(curve) < epochs and (run.run.folder / METRICS).is_file()
