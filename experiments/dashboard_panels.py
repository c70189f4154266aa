"""The W&B report that compares methods: which runs each of its sections takes, and what it draws of them.

Every name drawn is one that :mod:`gift_vit.tracking.fields` or the training loop logs.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from wandb_workspaces import expr
from wandb_workspaces.reports.v2 import interface as wr

TITLE = "GIFT and other fine-tuning methods"
COLUMNS = 2
PANEL_WIDTH, PANEL_HEIGHT = 24 // COLUMNS, 8  # W&B's grid is 24 wide
DESCRIBED_BY = ("dataset", "method", "backbone", "rank", "num_tokens", "lr", "weight_decay", "seed")
LEGEND = "${config:dataset} ${config:method} lr ${config:lr} wd ${config:weight_decay} seed ${config:seed}"
GROUP = wr.Metric("Group")  # <dataset>/<method>
METHOD = wr.Config("method")
_SCORED = {
    "test": "the test split was scored once, after training",
    "val": "the score of the epoch that is best on val, which is no test number",
}
Chart = wr.BarPlot | wr.LinePlot | wr.ParallelCoordinatesPlot | wr.ScatterPlot


def build_report(chosen: Mapping[str, str], methods: Sequence[str], score: str = "top-1", split: str = "test") -> wr.Report:
    """The report, not yet of any project.

    Args:
        chosen: Config fields and the value that a run must have to be drawn.
        methods: The methods that get a chart of their own over the learning rate.
        score: What runs are scored by, in a sentence.
        split: The split on which the score of a final run counts.
    """
    final, search = {**chosen, "phase": "final"}, {**chosen, "phase": "search"}
    return wr.Report(
        entity="",
        project="",
        title=TITLE,
        description=f"Runs with {', '.join(f'{name} {value}' for name, value in chosen.items())}.",
        width="fluid",
        blocks=[
            wr.H2("Accuracy" if score in ("top-1", "accuracy") else "Score"),
            wr.P(f"Runs of the final phase: {_SCORED[split]}. Bars: mean and standard deviation."),
            _grid("final runs", final, _accuracy(score, split)),
            wr.H2("Learning rate"),
            wr.P("Runs of the search phase, one point each, scored on the validation split. The test split plays no part."),
            _grid("search runs", search, _search(score)),
            *(block for method in methods for block in _over_learning_rate(method, search, score)),
            wr.H2("Cost"),
            wr.P("Means over the final runs of a method. Peak memory is the GPU's, and empty for runs on a CPU."),
            _grid("final runs", final, _cost()),
            wr.H2("Curves"),
            _grid("final runs", final, [_curve("train_loss")]),
            _grid("search runs", search, [_curve("val_top1", _val(score)), _curve("train_loss")]),
        ],
    )


def _accuracy(score: str, split: str) -> list[Chart]:
    scored, field = f"{split.capitalize()} {score} (%)", f"{split}_top1"
    return [
        _bars(f"{scored} per method, mean over datasets and seeds", field, METHOD),
        _bars(f"{scored} per dataset and method, mean over seeds", field, GROUP),
        _scatter(f"{scored} against adapter parameters", wr.SummaryMetric("params/adapter"), field),
        _scatter(f"{scored} against adapter bytes (with head)", wr.SummaryMetric("cost/adapter_bytes"), field),
    ]


def _val(score: str) -> str:
    """What ``val_top1`` is called where it is another score."""
    return "val_top1" if score == "top-1" else f"val {score}"


def _search(score: str) -> list[Chart]:
    axes = [*(wr.Config(name) for name in ("method", "dataset", "lr", "weight_decay")), wr.SummaryMetric("val_top1")]
    names = {"val_top1": _val(score)}
    columns = [
        wr.ParallelCoordinatesPlotColumn(axis, display_name=names.get(axis.name, axis.name), log=axis.name == "lr" or None)
        for axis in axes
    ]
    return [
        wr.ParallelCoordinatesPlot(title=f"What was tried, and validation {score} (%)", columns=columns),
        _bars(f"Best validation {score} (%) per dataset and method", "val_top1", GROUP, "max"),
    ]


def _over_learning_rate(method: str, search: Mapping[str, str], score: str) -> list[wr.H3 | wr.PanelGrid]:
    panels = [_scatter(f"{method}: validation {score} (%) against learning rate", wr.Config("lr"), "val_top1")]
    return [wr.H3(method), _grid(f"search runs of {method}", {**search, "method": method}, panels)]


def _cost() -> list[Chart]:
    return [
        _bars("Step time (ms)", "cost/step_time_ms", METHOD),
        _bars("Peak GPU memory (MiB)", "cost/peak_memory_mib", METHOD),
        _bars("Peak memory of the process (MiB)", "cost/peak_rss_mib", METHOD),
        _bars("Adapter parameters (% of the backbone)", "params/percent", METHOD),
    ]


def _grid(name: str, chosen: Mapping[str, str], panels: Sequence[Chart]) -> wr.PanelGrid:
    for index, panel in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        panel.layout = wr.Layout(x=column * PANEL_WIDTH, y=row * PANEL_HEIGHT, w=PANEL_WIDTH, h=PANEL_HEIGHT)
    runs = wr.Runset(
        name=name,
        filters=expr.And(*(expr.Config(field) == value for field, value in chosen.items())),
        pinned_columns=[f"config:{field}.value" for field in DESCRIBED_BY],
    )
    return wr.PanelGrid(runsets=[runs], panels=list(panels))


def _bars(title: str, metric: str, by: wr.Metric | wr.Config, aggregate: Literal["mean", "max"] = "mean") -> wr.BarPlot:
    spread = "stddev" if aggregate == "mean" else None
    return wr.BarPlot(title=title, metrics=[metric], groupby=by, groupby_aggfunc=aggregate, groupby_rangefunc=spread)


def _scatter(title: str, x: wr.SummaryMetric | wr.Config, y: str) -> wr.ScatterPlot:
    return wr.ScatterPlot(title=title, x=x, y=wr.SummaryMetric(y), log_x=True, legend_template=LEGEND)


def _curve(metric: str, title: str | None = None) -> wr.LinePlot:
    return wr.LinePlot(
        title=title or metric, x="epoch", y=[metric], groupby=GROUP, groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )
