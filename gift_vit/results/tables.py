"""The tables that can be made, by benchmark as the records of runs name it."""

from collections.abc import Callable, Iterable, Sequence

from gift_vit.results.collect import Grid, build_grid, final_datasets
from gift_vit.results.mini import mini_table
from gift_vit.results.names import LEFT_OUT
from gift_vit.results.own import own_table
from gift_vit.results.paper import commonsense_table, fgvc_table, glue_table, vtab_table
from gift_vit.results.render import Table
from gift_vit.runs.result import Result

TABLES: dict[str, Callable[..., Table]] = {
    "fgvc": fgvc_table,
    "vtab1k": vtab_table,
    "mini": mini_table,
    "own": own_table,
    "glue": glue_table,
    "commonsense": commonsense_table,
}


def table_grid(
    benchmark: str,
    results: Iterable[Result],
    datasets: Sequence[str] | None = None,
    method: str | None = None,
    rows: Sequence[str] = (),
) -> Grid:
    """The runs of a benchmark's table as :func:`build_grid` arranges them; without ``datasets`` on all of its own that occur.

    Raises:
        ConfigError: As :func:`build_grid` does.
    """
    runs = [r for r in results if method in (None, r.run.method)]
    shown = sorted(final_datasets(runs, benchmark) - set(LEFT_OUT)) if datasets is None else datasets
    return build_grid(runs, benchmark, shown, rows)
