"""From the runs behind a cell to what the cell says. A number that is not there is a dash; none is ever filled in."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median, stdev

from gift_vit.results.collect import Grid, Row
from gift_vit.results.conditions import Reference
from gift_vit.results.names import METHOD_NAMES, method_name, ordered
from gift_vit.results.render import DASH, Cell, Column, decimal_text
from gift_vit.runs.result import Result

REFERENCE = "linear"  # the method whose cost the others' is a multiple of


def label_columns(keys: Sequence[str]) -> list[Column]:
    """The columns that say what a row is: the method, or the keys of the configuration that the rows were asked for by."""
    return [
        Column(key.rpartition(".")[2].capitalize().replace("_", " "), "", (key.replace(".", "_"),))
        for key in keys or ("method",)
    ]


def label_cells(row: Row) -> list[Cell]:
    """What the row is."""
    return [Cell(method_name(label), (label,)) for label in row]


def ordered_rows(grid: Grid) -> list[Row]:
    """Methods in the order of their names, values of the configuration as the grid has them."""
    return list(grid.rows) if grid.keys else [(label,) for label in ordered((row[0] for row in grid.rows), METHOD_NAMES)]


def top1_column(label: str, title: str, group: str) -> Column:
    """The column of :func:`top1_cell`."""
    return Column(title, group, (f"{label}_mean", f"{label}_std", f"{label}_n"), ranked=True)


def top1_cell(runs: Sequence[Result], show_n: bool) -> Cell:
    """:func:`score_cell` of the scores that count."""
    return score_cell(all_top1(runs), show_n)


def score_cell(top1: Sequence[float], show_n: bool, decimals: int = 2) -> Cell:
    """Mean ± sample standard deviation (n - 1) of scores in percent; one seed has no deviation, none is a dash."""
    if not top1:
        return Cell(DASH, (None, None, 0))
    std = stdev(top1) if len(top1) > 1 else None
    text = top1_text(fmean(top1), std, decimals)
    return Cell(f"{text} (n={len(top1)})" if show_n else text, (fmean(top1), std, len(top1)))


def top1_text(mean: float, std: float | None, decimals: int = 2) -> str:
    """A mean in percent, with its deviation where it has one."""
    shown = decimal_text(mean, decimals)
    return shown if std is None else f"{shown} ± {std:.{decimals}f}"


def mean_cell(values: Sequence[float | None], decimals: int = 2) -> Cell:
    """The mean of what the cells of a row hold; a dash unless every one holds a number."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Cell(DASH, (None,))
    return Cell(decimal_text(fmean(known), decimals), (fmean(known),))


def mean_top1(runs: Sequence[Result]) -> float | None:
    """Mean over seeds of the score that counts, in percent; None without a run."""
    return fmean(all_top1(runs)) if runs else None


def all_top1(runs: Sequence[Result]) -> list[float]:
    """The scores of final runs, in percent; a grid has checked that each has one."""
    return [float(score) for r in runs if (score := r.score) is not None]


def trained_alone(runs: Iterable[Result]) -> list[Result]:
    """The runs whose times and memory are their own: an older version could train several together, and recorded how many."""
    return [r for r in runs if r.env.get("parallel_runs", 1) == 1]


def adapter_columns() -> list[Column]:
    """The columns of :func:`adapter_cells`."""
    return [
        Column("Parameters", "Adapter", ("adapter_params_min", "adapter_params_max")),
        Column("% of backbone", "Adapter", ("adapter_percent_min", "adapter_percent_max")),
        Column("KiB with head", "Adapter", ("adapter_bytes_min", "adapter_bytes_max")),
    ]


def adapter_cells(runs: Sequence[Result]) -> tuple[Cell, Cell, Cell]:
    """Adapter parameters, their percentage, and the size of the adapter file; a range where runs of a method differ."""
    return (
        range_cell([r.params.adapter for r in runs], ","),
        range_cell([r.params.percent for r in runs], ".3g"),
        range_cell([r.cost.adapter_bytes for r in runs], ",.1f", unit=1024),
    )


def gpu_memory_cell(runs: Sequence[Result]) -> Cell:
    """Peak device memory in GiB, kept in MiB for CSV; a range over the runs, a dash where none ran alone on CUDA."""
    known = [r.cost.peak_memory_mib for r in trained_alone(runs) if r.cost.peak_memory_mib is not None]
    return range_cell(known, ".2f", unit=1024) if known else Cell(DASH, (None, None))


def relative_cost_cells(runs: Sequence[Result], reference: Reference) -> tuple[Cell, Cell]:
    """Step time and peak memory (the device's on CUDA, otherwise the process's) as multiples, see :func:`_ratio_cell`."""
    time = _ratio_cell(runs, reference, lambda r: r.cost.step_time_ms)
    return time, _ratio_cell(runs, reference, lambda r: r.cost.peak_memory_mib or r.cost.peak_rss_mib)


def range_cell(values: Sequence[float | int], spec: str, unit: int | None = None) -> Cell:
    """The common value, or lowest–highest; printed in ``unit``, kept as it is for CSV."""
    low, high = min(values), max(values)
    texts = [format(value / unit if unit else value, spec) for value in (low, high)]
    return Cell(DASH.join(dict.fromkeys(texts)), (low, high))


def _ratio_cell(runs: Sequence[Result], reference: Reference, quantity: Callable[[Result], float | None]) -> Cell:
    """Each run against the median of the reference's runs under the same conditions; the median over the runs.

    A dash where there is nothing to compare with.
    """
    ratios = []
    for run in runs:
        others = [value for other in reference.like(run) if (value := quantity(other))]
        if others and (own := quantity(run)):
            ratios.append(own / median(others))
    return Cell(f"{median(ratios):.2f}", (median(ratios),)) if ratios else Cell(DASH, (None,))
