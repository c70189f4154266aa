"""Training curves: one panel per dataset, method and phase, each run a line in three charts and a row of the legend."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from experiments.report.charts import COLOURS, DASHES, MAX_POINTS, Plot, curve_plot
from experiments.report.runs import METRICS, Point, Run, display_order, flat_value, read_curve, varying_keys
from experiments.report.tables import HtmlCell, number
from gift_vit.keys import value_order

MAX_RUNS = 1000  # with curves; the page grows by about 2 KB for each

Href = Callable[[Run], str]


@dataclass(frozen=True)
class Legend:
    """One run of a panel: the style of its line and what tells it from the others."""

    colour: int
    dash: int
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
    plots: Sequence[Plot]
    legend: Sequence[Legend]


def build_curves(runs: Iterable[Run], href: Href) -> tuple[list[CurvePanel], list[str]]:
    """The panels, finals first, and notes on what was thinned, left out or could not be read."""
    known = [run for run in runs if run.dataset and run.method]
    known.sort(key=lambda run: (run.phase != "final", -(run.val_top1 or 0.0)))
    curves: list[tuple[Run, list[Point]]] = []
    broken = []
    for run in known[:MAX_RUNS]:
        points, whole = read_curve(run.folder)
        if points:
            curves.append((run, points))
        if not whole and run.state != "unfinished":
            broken.append(str(run.folder / METRICS))
    groups: dict[tuple[str, str, str], list[tuple[Run, list[Point]]]] = defaultdict(list)
    for run, points in curves:
        groups[run.dataset, run.method, run.phase].append((run, points))
    order = sorted(groups, key=lambda key: (key[2] != "final", display_order(key)))
    panels = [_panel(key, groups[key], href) for key in order]
    return panels, _notes(len(known), [points for _, points in curves], broken)


def _panel(key: tuple[str, str, str], group: Sequence[tuple[Run, list[Point]]], href: Href) -> CurvePanel:
    keys = varying_keys([run for run, _ in group]) or ["optim.lr", "seed"]
    labels = [", ".join(f"{_short(k)} {flat_value(run.config, k)}" for k in keys) for run, _ in group]
    order = sorted(range(len(group)), key=lambda i: [value_order(group[i][0].setting(k)) for k in keys])
    runs = [group[i] for i in order]
    plots = [
        curve_plot("Training loss", [_series(points, "train_loss") for _, points in runs]),
        curve_plot("Val top-1 (%)", [_series(points, "val_top1") for _, points in runs], percent=True),
        _lr_plot([_series(points, "lr") for _, points in runs]),
    ]
    legend = [
        Legend(
            colour=index % COLOURS,
            dash=index % DASHES,
            label=labels[order[index]],
            href=href(run),
            state=run.state,
            epochs=len(points),
            loss=number(points[-1].get("train_loss"), ".4g"),
            val=number(_last(points, "val_top1"), ".2f"),
            test=number(run.test_top1, ".2f"),
        )
        for index, (run, points) in enumerate(runs)
    ]
    return CurvePanel(*key, plots, legend)


def _lr_plot(curves: list[list[tuple[float, float]]]) -> Plot:
    """Rates on a linear axis, unless the runs' peaks lie a decade or more apart."""
    peaks = [max(lr for _, lr in curve) for curve in curves if curve]
    log = bool(peaks) and min(peaks) > 0 and max(peaks) / min(peaks) >= 10
    if log:
        curves = [[(epoch, lr) for epoch, lr in curve if lr > 0] for curve in curves]
    return curve_plot("Learning rate, log scale" if log else "Learning rate", curves, log=log)


def _series(points: Iterable[Point], key: str) -> list[tuple[float, float]]:
    """(epoch, value), counting epochs from 1."""
    return [(point["epoch"] + 1, point[key]) for point in points if key in point]


def _last(points: Sequence[Point], key: str) -> float | None:
    return next((point[key] for point in reversed(points) if key in point), None)


def _short(key: str) -> str:
    return {"optim.lr": "lr", "optim.weight_decay": "wd"}.get(key, key.removeprefix("method.").removeprefix("trainer."))


def _notes(known: int, curves: Sequence[Sequence[Point]], broken: Sequence[str]) -> list[str]:
    notes = []
    if known > MAX_RUNS:
        notes.append(
            f"Curves of {MAX_RUNS} of {known} runs are shown: the final runs come first, then the best searches by val top-1. "
            "Choose fewer with root=<folder> or benchmark=<name>."
        )
    if long := sum(len(points) > MAX_POINTS for points in curves):
        notes.append(f"{long} runs have more than {MAX_POINTS} epochs: {MAX_POINTS} evenly spread ones of each are drawn.")
    if broken:
        notes.append(f"Not every line could be read of: {', '.join(broken)}.")
    return notes
