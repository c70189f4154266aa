"""The table of the mini benchmark: what an adapter costs beside linear probing, and how accurate it is."""

from collections.abc import Mapping, Sequence

from gift_vit.results.cells import (
    REFERENCE,
    adapter_cells,
    adapter_columns,
    label_cells,
    label_columns,
    mean_cell,
    mean_top1,
    ordered_rows,
    relative_cost_cells,
    top1_cell,
    top1_column,
    trained_alone,
)
from gift_vit.results.collect import Row, by_row, check_datasets
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.conditions import Reference, cost_notes
from gift_vit.results.names import DATASET_NAMES, dataset_name, method_name, ordered
from gift_vit.results.notes import caption, grid_notes, provenance, row_name, sampling_note
from gift_vit.results.render import Column, Table
from gift_vit.results.request import Request
from gift_vit.runs.result import Result

BENCHMARK = "mini"


def mini_table(request: Request) -> Table:
    """Methods against the mini datasets: what each adapter costs, test top-1 over seeds, and the mean over datasets.

    The datasets asked for are those of step times and memory too.

    Raises:
        ConfigError: As :func:`check_datasets`, :func:`build_grid` and :func:`comparison_notes` do; for published rows.
    """
    request.refuse_published(BENCHMARK)
    check_datasets(request.datasets or (), request.results, DATASET_NAMES)
    grid = request.grid(BENCHMARK)
    columns = ordered(grid.datasets, DATASET_NAMES)
    finals = [r for r in request.results if (r.run.phase, r.run.benchmark) == ("final", BENCHMARK)]
    all_timed = [r for r in request.timing or finals if request.datasets is None or r.run.dataset in request.datasets]
    timed = trained_alone(all_timed)
    timed_rows = by_row(request.of_method(timed), grid.keys)
    compared_with = [r for r in timed if r.run.method == REFERENCE]
    reference = Reference(compared_with)
    body = tuple(
        (
            *label_cells(row),
            *adapter_cells(grid.of_row(row)),
            *relative_cost_cells(timed_rows.get(row, ()), reference),
            *(top1_cell(grid.cells.get((row, dataset), ()), grid.show_n) for dataset in columns),
            mean_cell([mean_top1(grid.cells.get((row, dataset), ())) for dataset in columns]),
        )
        for row in ordered_rows(grid)
    )
    return Table(
        caption(request.title("Mini benchmark"), grid, f"Last column: mean over the datasets shown ({len(columns)})."),
        provenance(grid),
        (*label_columns(grid.keys), *_columns(columns)),
        body,
        (
            *_cost_notes(timed, compared_with, apart=bool(request.timing)),
            *_together_notes(len(all_timed) - len(timed)),
            *cost_notes(_on_datasets(timed_rows), reference, method_name(REFERENCE).lower()),
            sampling_note(grid),
            *grid_notes(grid),
            *comparison_notes(grid, request.compare),
        ),
        grid=grid,
    )


def _columns(datasets: Sequence[str]) -> list[Column]:
    relative, top1 = f"Relative to {method_name(REFERENCE).lower()}", "Test top-1 (%)"
    return [
        *adapter_columns(),
        Column("Step time", relative, ("step_time_ratio",)),
        Column("Peak memory", relative, ("peak_memory_ratio",)),
        *(top1_column(dataset, dataset_name(dataset), top1) for dataset in datasets),
        Column("Mean", top1, ("datasets_mean",), ranked=True),
    ]


def _cost_notes(runs: Sequence[Result], reference: Sequence[Result], apart: bool) -> tuple[str, ...]:
    name = method_name(REFERENCE).lower()
    if not reference:
        return (f"No run of {name}: nothing to relate step time and peak memory to.",)
    memory = {"device memory" if r.cost.peak_memory_mib else "memory of the whole process" for r in runs}
    devices = sorted({f"{r.env.get('device')} ({r.env.get('threads')} threads)" for r in runs})
    source = f" These are {len(runs)} short runs apart from those of the scores, made in turns." if apart else ""
    return (
        f"Step time and peak memory ({', '.join(sorted(memory))}): multiples of those of {name} on the same dataset, "
        f"median over runs; measured on {', '.join(devices)}.{source}",
    )


def _on_datasets(rows: Mapping[Row, Sequence[Result]]) -> dict[str, list[Result]]:
    """The runs of each row on each dataset, by their names in a sentence."""
    found: dict[str, list[Result]] = {}
    for row, runs in rows.items():
        for run in runs:
            found.setdefault(f"{row_name(row)} on {dataset_name(run.run.dataset)}", []).append(run)
    return found


def _together_notes(left_out: int) -> tuple[str, ...]:
    if not left_out:
        return ()
    return (f"Without {left_out} runs that were trained together with others: they have no step time and memory of their own.",)
