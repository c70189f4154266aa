"""What a grid lacks before its choice can be relied on: values beyond an edge, and further seeds of settings that are close."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gift_vit.runs.result import Result
from gift_vit.sweeps.plan import cell_of
from gift_vit.sweeps.select import Edge, choose

Words = tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """A search run that has ended.

    Attributes:
        words: The job's.
        config: Its flat configuration.
        result: None: it failed.
        of_grid: Whether the grid itself asked for it.
    """

    words: Words
    config: Mapping[str, Any]
    result: Result | None
    of_grid: bool


def further(runs: Sequence[Tried], asked: Collection[Words], widen: int, seeds: int) -> list[Words]:
    """The jobs that are still to be run, given by their words.

    Of every dataset, method, backbone and protocol: where the best value of an axis lies on its edge, the next value beyond, in
    the axis's own spacing, with all values of the other axes; once it lies on none, the next seed of the settings that are
    within one standard error of the best and were run with fewer seeds than ``seeds``. An edge beyond which runs failed or were
    refused is none.

    Args:
        runs: The search runs that have ended.
        asked: The jobs that were asked for before, which are not asked for again.
        widen: The most values that an axis is widened by.
        seeds: Runs of each setting that is close to the best one.
    """
    cells: dict[tuple[str, ...], list[Tried]] = defaultdict(list)
    for run in runs:
        cells[cell_of(run.config)].append(run)
    return list(dict.fromkeys(words for cell in cells.values() for words in _of_cell(cell, asked, widen, seeds)))


def beyond(edge: Edge) -> float | None:
    """The next value past an edge, as far from it, as a factor, as its neighbour is; None where there is none.

    >>> beyond(Edge("optim.lr", 0.05, (0.01, 0.025, 0.05)))
    0.1
    """
    neighbour = edge.values[1] if edge.side == "lowest" else edge.values[-2]
    if neighbour == 0:
        return None
    value = edge.best * edge.best / neighbour
    value = round(value) if all(isinstance(value, int) for value in edge.values) else float(f"{value:.2g}")
    past = value < edge.best if edge.side == "lowest" else value > edge.best  # what two digits tell apart
    return value if past and value else None


def _of_cell(cell: Sequence[Tried], asked: Collection[Words], widen: int, seeds: int) -> Iterator[Words]:
    results = [run.result for run in cell if run.result]
    if not results:
        return
    choice = choose(results)
    # one axis at a time: the next round's grid has the new value with all of the others'
    wider = next((words for edge in choice.edges if (words := _wider(cell, edge, asked, widen))), [])
    yield from wider
    if wider or choice.near == 1:
        return
    for setting in choice.settings[: choice.near]:
        runs = [run for run in cell if run.result and _is_of(run, setting.values)]  # none of a fit's, which one run tries
        if runs and len(setting.seeds) < seeds:
            words = _with(runs[0].words, "seed", str(max(setting.seeds) + 1))
            if words not in asked:
                yield words


def _wider(cell: Sequence[Tried], edge: Edge, asked: Collection[Words], widen: int) -> list[Words]:
    """The next value beyond an edge, with all values of the other axes; empty where the edge is closed."""
    value = beyond(edge)
    tried = [number for run in cell if isinstance(number := run.config.get(edge.key), int | float)]
    if value is None or edge.best not in (min(tried), max(tried)) or _added(cell, edge.key) >= widen:
        return []
    done = [run for run in cell if run.result]
    seeds = {run.config["seed"] for run in cell if run.of_grid}  # not those that settle what lies near
    at_edge = [run for run in done if run.config[edge.key] == edge.best and run.config["seed"] in seeds]
    words = [_with(run.words, edge.key, f"{value:g}") for run in at_edge]
    return [] if any(own in asked for own in words) else words


def _added(cell: Sequence[Tried], key: str) -> int:
    values = {of_grid: {run.config.get(key) for run in cell if run.of_grid == of_grid} for of_grid in (True, False)}
    return len(values[False] - values[True])


def _is_of(run: Tried, values: Mapping[str, Any]) -> bool:
    return all(run.config[key] == value for key, value in values.items() if key in run.config)


def _with(words: Words, key: str, value: str) -> Words:
    return (*(word for word in words if not word.startswith(f"{key}=")), f"{key}={value}")
