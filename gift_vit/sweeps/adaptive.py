"""What a grid lacks before its choice can be relied on: values beyond an edge, and further seeds of settings that are close."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gift_vit.config.keys import identifying
from gift_vit.runs.result import Result
from gift_vit.sweeps.select import Edge, choose

Words = tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """A search run that is done: the job's words, its result, and whether the grid itself asked for it."""

    words: Words
    result: Result
    of_grid: bool

    @property
    def config(self) -> dict[str, Any]:
        """Its flat configuration."""
        return identifying(self.result.run.config)


def further(runs: Sequence[Tried], widen: int, seeds: int) -> list[Words]:
    """The jobs that are still to be run, given by their words.

    Of every dataset and method: where the best value of an axis lies on its edge, the next value beyond, in the axis's own
    spacing, with all values of the other axes; once it lies on none, the next seed of the settings that are within one standard
    error of the best and were run with fewer seeds than ``seeds``.

    Args:
        runs: The search runs that are done.
        widen: The most values that an axis is widened by.
        seeds: Runs of each setting that is close to the best one.
    """
    cells: dict[tuple[str, str], list[Tried]] = defaultdict(list)
    for run in runs:
        cells[run.result.run.dataset, run.result.run.method].append(run)
    return list(dict.fromkeys(words for cell in cells.values() for words in _of_cell(cell, widen, seeds)))


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
    return value if value not in (0, edge.best) else None


def _of_cell(cell: Sequence[Tried], widen: int, seeds: int) -> Iterator[Words]:
    choice = choose([run.result for run in cell])
    wider = [
        _with(run.words, edge.key, f"{value:g}")
        for edge in choice.edges
        if (value := beyond(edge)) is not None and _added(cell, edge.key) < widen
        for run in cell
        if run.config[edge.key] == edge.best and run.result.run.seed == cell[0].result.run.seed
    ]
    yield from wider
    if wider or choice.near == 1:
        return
    for setting in choice.settings[: choice.near]:
        if len(setting.seeds) < seeds:
            first = next(run for run in cell if _is_of(run, setting.values))
            yield _with(first.words, "seed", str(max(setting.seeds) + 1))


def _added(cell: Sequence[Tried], key: str) -> int:
    values = {of_grid: {run.config[key] for run in cell if run.of_grid == of_grid} for of_grid in (True, False)}
    return len(values[False] - values[True])


def _is_of(run: Tried, values: Mapping[str, Any]) -> bool:
    return all(run.config[key] == value for key, value in values.items() if key in run.config)


def _with(words: Words, key: str, value: str) -> Words:
    return (*(word for word in words if not word.startswith(f"{key}=")), f"{key}={value}")
