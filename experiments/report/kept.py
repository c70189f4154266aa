"""What runs kept and forgot, as ``gift_vit.invariance`` has measured it: the page's table and plots, and a plot as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from experiments.report.charts import Chart, Point, forgetting_chart, forgetting_figure
from experiments.report.tables import HtmlTable, result_table
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded, save_figure
from gift_vit.results.cells import all_top1, label_cells, label_columns, ordered_rows
from gift_vit.results.collect import Grid
from gift_vit.results.kept import MEASURES, measure_notes, measured
from gift_vit.results.names import DATASET_NAMES, dataset_name, ordered
from gift_vit.results.notes import caption, provenance, row_name
from gift_vit.results.render import Table
from gift_vit.results.scores import with_scores


@dataclass(frozen=True)
class Kept:
    """A table of measures, and plots of accuracy against forgetting, by dataset; ``problem`` says why there are none."""

    table: HtmlTable | None = None
    charts: Sequence[Chart] = ()
    problem: str = ""


def build_kept(grid: Grid) -> Kept | None:
    """What the page shows of a grid; None: no run of it was measured."""
    try:
        names = [name for name in MEASURES if any(measured(result, name) is not None for result in grid.results)]
        if not names:
            return None
        rows = tuple(tuple(label_cells(row)) for row in ordered_rows(grid))
        bare = Table(caption("What was kept", grid), provenance(grid), tuple(label_columns(grid.keys)), rows, (), grid=grid)
        table = result_table(with_scores(bare, names))
    except ConfigError as error:
        return Kept(problem=str(error))
    panels = [(_title(datasets), forgetting_points(grid, datasets)) for datasets in _choices(grid)]
    return Kept(table, [forgetting_chart(title, points) for title, points in panels if points])


def forgetting_points(grid: Grid, datasets: Sequence[str]) -> list[Point]:
    """A point for each row, means over datasets; only seeds with a measured run on each of the datasets count."""
    points = []
    for row in ordered_rows(grid):
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for dataset in datasets:
            for result in grid.cells.get((row, dataset), ()):
                forgetting = measured(result, "forgetting")
                if forgetting is not None:
                    by_seed.setdefault(result.run.seed, []).append((forgetting, all_top1([result])[0]))
        whole = [values for values in by_seed.values() if len(values) == len(datasets)]
        if whole:
            forgetting, top1 = ([fmean(pair[which] for pair in values) for values in whole] for which in (0, 1))
            deviations = [stdev(values) if len(values) > 1 else None for values in (forgetting, top1)]
            points.append(Point(row_name(row), fmean(forgetting), deviations[0], fmean(top1), deviations[1], len(whole)))
    return points


def draw_forgetting(grid: Grid, stem: str) -> None:
    """Write test top-1 against forgetting, the mean over the grid's datasets, into ``<stem>.png`` and ``<stem>.pdf``.

    Raises:
        ConfigError: If no row has a seed whose runs on all datasets were measured, or they were measured on other images.
    """
    points = forgetting_points(grid, grid.datasets)
    notes = measure_notes(grid.results, ["forgetting"])
    if not points:
        raise ConfigError(f"figure={stem}: no row has a measured run on each of {', '.join(grid.datasets)}. {' '.join(notes)}")
    figure = forgetting_figure(points)
    figure.axes[0].text(1, 1.02, _title(grid.datasets), transform=figure.axes[0].transAxes, ha="right", fontsize=10)
    figure.set(frameon=True, facecolor="white")
    save_figure(figure, [expanded(f"{stem}.{kind}") for kind in ("png", "pdf")])


def _choices(grid: Grid) -> list[Sequence[str]]:
    """All datasets, where there are several, and each."""
    datasets = ordered(grid.datasets, DATASET_NAMES)
    return [*([datasets] if len(datasets) > 1 else []), *([dataset] for dataset in datasets)]


def _title(datasets: Sequence[str]) -> str:
    return dataset_name(datasets[0]) if len(datasets) == 1 else f"Mean over {len(datasets)} datasets"
