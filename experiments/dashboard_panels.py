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
Chart = wr.BarPlot | wr.LinePlot | wr.ParallelCoordinatesPlot | wr.ScatterPlot


def build_report(chosen: Mapping[str, str], methods: Sequence[str]) -> wr.Report:
    """The report, not yet of any project.

    Args:
        chosen: Config fields and the value that a run must have to be drawn.
        methods: The methods that get a chart of their own over the learning rate.
    """
    final, search = {**chosen, "phase": "final"}, {**chosen, "phase": "search"}
    return wr.Report(
        entity="",
        project="",
        title=TITLE,
        description=f"Runs with {', '.join(f'{name} {value}' for name, value in chosen.items())}.",
        width="fluid",
        blocks=[
            wr.H2("Accuracy"),
            wr.P("Runs of the final phase: the test split was scored once, after training. Bars: mean and standard deviation."),
            _grid("final runs", final, _accuracy()),
            wr.H2("Learning rate"),
            wr.P("Runs of the search phase, one point each, scored on the validation split. The test split plays no part."),
            _grid("search runs", search, _search()),
            *(block for method in methods for block in _over_learning_rate(method, search)),
            wr.H2("Cost"),
            wr.P("Means over the final runs of a method. Peak memory is the GPU's, and empty for runs on a CPU."),
            _grid("final runs", final, _cost()),
            wr.H2("Curves"),
            _grid("final runs", final, [_curve("train_loss")]),
            _grid("search runs", search, [_curve("val_top1"), _curve("train_loss")]),
        ],
    )


def _accuracy() -> list[Chart]:
    return [
        _bars("Test top-1 (%) per method, mean over datasets and seeds", "test_top1", METHOD),
        _bars("Test top-1 (%) per dataset and method, mean over seeds", "test_top1", GROUP),
        _scatter("Test top-1 (%) against adapter parameters", wr.SummaryMetric("params/adapter"), "test_top1"),
        _scatter("Test top-1 (%) against adapter bytes (with head)", wr.SummaryMetric("cost/adapter_bytes"), "test_top1"),
    ]


def _search() -> list[Chart]:
    axes = [*(wr.Config(name) for name in ("method", "dataset", "lr", "weight_decay")), wr.SummaryMetric("val_top1")]
    columns = [wr.ParallelCoordinatesPlotColumn(axis, display_name=axis.name, log=axis.name == "lr" or None) for axis in axes]
    return [
        wr.ParallelCoordinatesPlot(title="What was tried, and validation top-1 (%)", columns=columns),
        _bars("Best validation top-1 (%) per dataset and method", "val_top1", GROUP, "max"),
    ]


def _over_learning_rate(method: str, search: Mapping[str, str]) -> list[wr.H3 | wr.PanelGrid]:
    panels = [_scatter(f"{method}: validation top-1 (%) against learning rate", wr.Config("lr"), "val_top1")]
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


def _curve(metric: str) -> wr.LinePlot:
    return wr.LinePlot(title=metric, x="epoch", y=[metric], groupby=GROUP, groupby_aggfunc="mean", groupby_rangefunc="minmax")
