"""The words around a table: its caption, where its runs come from, and what a reader must know of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from gift_vit.common.errors import a_few
from gift_vit.config.keys import SETTLED_BY_SPEED, SPEED, difference, one_form
from gift_vit.results.collect import Grid, Row, but_for_seed, plain_text
from gift_vit.results.names import DATASET_NAMES, dataset_name, method_name, ordered
from gift_vit.results.render import DASH
from gift_vit.runs.result import Result, scored_as, things_of

_OF_A_ROW = ("method", "optim.lr", "optim.weight_decay")


def caption(title: str, grid: Grid, means: str = "", score: str | None = None) -> str:
    """Title, what is scored, number of seeds, protocol and backbone; ``means`` says what means are taken over, if any are."""
    score = score or scored_as(grid.results)
    run = grid.results[0].run
    sizes = {len(cell) for cell in grid.cells.values()}
    if sizes == {1}:
        spread = "one seed per cell (n = 1)"
    else:
        over = f"n = {sizes.pop()} seeds" if len(sizes) == 1 else "the n seeds given in each cell"
        spread = f"mean ± sample standard deviation over {over}"
    if grid.results[0].scored_on == "val":
        score += " of the epoch that is best on the same split (no test numbers)"
    return f"{title}: {score} in percent, {spread}. Protocol {run.protocol}, backbone {run.backbone}. {means}".rstrip()


def provenance(grid: Grid) -> str:
    """Number of runs, and their commits."""
    return f"runs: {len(grid.results)}; commits: {commits(grid.results)}"


def commits(results: Iterable[Result]) -> str:
    """The first five commits by name, and how many more there are."""
    found = {sha[:12] for r in results for sha in (r.run.git_sha or "unknown", *(r.run.earlier_commits or ()))}
    return a_few(sorted(found), 5)


def row_name(row: Row) -> str:
    """A row in a sentence."""
    return ", ".join(method_name(label) for label in row)


def grid_notes(grid: Grid) -> tuple[str, ...]:
    """Empty cells, seeds, changes to the protocol and what else differs, pictures in two splits, number formats, commits."""
    notes = []
    if missing := grid.missing():
        notes.append(f"Missing ({DASH}): {_cell_names(missing)}.")
    notes += _seed_notes(grid)
    for change, where in _places(grid, _protocol_changes):
        notes.append(f"Changed from the protocol: {change} in {where}.")
    unlike = _unlike(grid)
    for fact, where in _places(grid, partial(_values, unlike)):
        notes.append(f"Not the same in every row: {fact} in {where}.")
    formats = _places(grid, lambda run: [_number_format(run)])
    if [name for name, _ in formats] != ["fp32"]:
        notes += [f"Computed in {name}: {where}." for name, where in formats]
    shared = sorted({(r.run.dataset, pair, count) for r in grid.results for pair, count in r.data.shared.items()})
    for dataset, several in groupby(shared, key=lambda item: item[0]):
        named = ", ".join(f"{count:,} in {pair.replace(', ', ' and ')}" for _, pair, count in several)
        things = things_of(r for r in grid.results if r.run.dataset == dataset).replace("image", "picture").capitalize()
        notes.append(f"{things} that stand in two splits of {dataset_name(dataset)}: {named}.")
    if resumed := sum(bool(r.run.earlier_commits) for r in grid.results):
        notes.append(f"Runs resumed under another commit: {resumed} of {len(grid.results)}.")
    if dirty := sum(bool(r.run.git_dirty) for r in grid.results):
        notes.append(f"Runs made with uncommitted changes: {dirty} of {len(grid.results)}.")
    return tuple(notes)


def _seed_notes(grid: Grid) -> Iterator[str]:
    """Which seeds stand in which cells, where their number alone does not tell."""
    cells: dict[tuple[int, ...], list[tuple[Row, str]]] = {}
    for cell, runs in grid.cells.items():
        cells.setdefault(tuple(sorted(run.run.seed for run in runs)), []).append(cell)
    if len(set(map(len, cells))) < len(cells):
        for seeds in sorted(cells):
            yield f"Seeds {', '.join(map(str, seeds))}: {_cell_names(cells[seeds])}."


def sampling_note(grid: Grid) -> str:
    """The standard error of one run's accuracy over its test images, √(p (1 − p) / n), largest over the rows, by dataset."""
    errors: dict[str, float] = {}
    for run in grid.results:
        share, images = min((run.metrics["test_top1"] or 0.0) / 100, 1.0), run.data.test_images
        if images:
            own = 100 * math.sqrt(share * (1 - share) / images)
            errors[run.run.dataset] = max(errors.get(run.run.dataset, 0.0), own)
    listed = ", ".join(f"{dataset_name(name)} {errors[name]:.2f}" for name in ordered(errors, DATASET_NAMES))
    return f"Standard error of a run's top-1 over its test images, at most, in points: {listed}."


def _protocol_changes(run: Result) -> list[str]:
    return [f"{key} {plain_text(old)} → {plain_text(new)}" for key, (old, new) in run.run.protocol_changes.items()]


def _unlike(grid: Grid) -> list[str]:
    """Keys in which rows differ on one dataset, but for those of methods, of searches and of the rows, and what is told of."""
    told = {key for run in grid.results for key in run.run.protocol_changes}
    own = tuple(f"{key}." for key in (*_OF_A_ROW, *SETTLED_BY_SPEED, SPEED, *told, *grid.keys))
    first: dict[str, dict[str, object]] = {}
    unlike: set[str] = set()
    for (_, dataset), runs in grid.cells.items():
        flat = but_for_seed(runs[0])
        unlike |= difference(first.setdefault(dataset, flat), flat).keys()
    return sorted(key for key in unlike if not f"{key}.".startswith(own))


def _values(keys: Sequence[str], run: Result) -> list[str]:
    flat = but_for_seed(run) if keys else {}
    return [f"{key} {plain_text(one_form(flat.get(key)))}" for key in keys]


def _number_format(run: Result) -> str:
    trainer: Any = run.run.config.get("trainer", {})
    return str(trainer.get("precision", "fp32")) + (", compiled" if trainer.get("compile") else "")


def _places(grid: Grid, facts: Callable[[Result], list[str]]) -> list[tuple[str, str]]:
    """Each fact about the grid's runs, and the cells of the runs it is true of."""
    found = sorted((fact, cell) for cell, runs in grid.cells.items() for run in runs for fact in facts(run))
    groups = [(fact, [cell for _, cell in group]) for fact, group in groupby(found, key=lambda item: item[0])]
    everywhere = len(grid.results)
    return [(fact, "all runs" if len(cells) == everywhere else _cell_names(dict.fromkeys(cells))) for fact, cells in groups]


def _cell_names(keys: Iterable[tuple[Row, str]]) -> str:
    """Cells in a sentence, row by row."""
    rows = [(row, [dataset_name(dataset) for _, dataset in cells]) for row, cells in groupby(keys, key=lambda key: key[0])]
    return "; ".join(f"{row_name(row)} on {', '.join(datasets)}" for row, datasets in rows)
