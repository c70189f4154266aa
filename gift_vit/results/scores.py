"""Further columns of a table: what kept predictions (:mod:`gift_vit.runs.scores`) or :mod:`gift_vit.results.kept` say."""

from collections.abc import Sequence
from dataclasses import replace

from gift_vit.common.errors import ConfigError
from gift_vit.results.cells import mean_cell, ordered_rows, score_cell
from gift_vit.results.kept import MEASURES, measure_comparison, measure_notes, measured
from gift_vit.results.names import DATASET_NAMES, dataset_name, ordered
from gift_vit.results.render import DASH, Block, Cell, Column, Table
from gift_vit.runs.result import Result, things_of
from gift_vit.runs.run import Run

TITLES = {
    "top1": "Top-1 (%)",
    "top5": "Top-5 (%)",
    "mean_class_accuracy": "Mean class accuracy (%)",
    "macro_f1": "Macro F1 (%)",
    "nll": "NLL",
    "ece": "ECE (%)",
    "temperature": "Temperature",
    "ece_scaled": "ECE scaled (%)",
    **{name: measure.title for name, measure in MEASURES.items()},
}
_SCALED = ("temperature", "ece_scaled")
_HIGHER_IS_BETTER = frozenset({"top1", "top5", "mean_class_accuracy", "macro_f1"})


def score_title(score: str, thing: str) -> str:
    """The title of a score's column; top-1 of texts is called accuracy."""
    return "Accuracy (%)" if score == "top1" and thing != "image" else TITLES[score]


def with_scores(table: Table, scores: Sequence[str], compare: Sequence[str] = ()) -> Table:
    """A table of final runs with columns of further scores for each dataset, and of their mean where there are several.

    Args:
        table: As :data:`gift_vit.results.tables.TABLES` makes it.
        scores: Names of :data:`gift_vit.runs.scores.SCORES` or :data:`gift_vit.results.kept.MEASURES`.
        compare: Two rows whose measures are compared below the table.

    Raises:
        ConfigError: If predictions are asked for and no run of the grid kept its own; says what makes them. Or if records of
            measures cannot be read, or differ in what they were made of.
    """
    grid = table.grid
    predicted = [score for score in scores if score not in MEASURES]
    measures = [score for score in scores if score in MEASURES]
    without = [result for result in grid.results if result.predictions is None] if predicted else []
    if predicted and len(without) == len(grid.results):
        folder = without[0].path.parent if without[0].path else without[0].source
        raise ConfigError(f"columns=: no run of the table keeps predictions; {Run.open(folder).how_to_predict()}")
    datasets = [dataset for dataset in ordered(grid.datasets, DATASET_NAMES) if any(d == dataset for _, d in grid.cells)]
    things = things_of(grid.results).removesuffix("s")
    columns: list[Column] = []
    cells: list[list[Cell]] = [[] for _ in table.rows]
    for score in scores:
        ranked = score in _HIGHER_IS_BETTER
        title = score_title(score, things)
        columns += [_column(score, title, dataset, ranked) for dataset in datasets]
        columns += [Column("Mean", title, (f"{score}_mean",), ranked)] * (len(datasets) > 1)
        for own, row in zip(cells, ordered_rows(grid), strict=True):
            members = [_cell(grid.cells.get((row, dataset), ()), score) for dataset in datasets]
            own += members
            own += [mean_cell([_number(cell) for cell in members], _decimals(score))] * (len(datasets) > 1)
    empty = tuple(Cell(DASH, (None,) * len(column.csv)) for column in columns)
    lacking = ", ".join(score_title(score, things) for score in predicted)
    notes = [f"Runs without predictions, and so without {lacking}: {len(without)}."] if without else []
    unscaled = [result for result in grid.results if result.predictions and result.predictions.scores.get(_SCALED[0]) is None]
    if unscaled and set(_SCALED) & set(scores):
        titles = ", ".join(score_title(score, things) for score in scores if score in _SCALED)
        notes.append(
            f"Runs without predictions of a val that they were not trained on, and so without {titles}: {len(unscaled)}."
        )
    return replace(
        table,
        columns=(*table.columns, *columns),
        rows=tuple((*row, *more) for row, more in zip(table.rows, cells, strict=True)),
        notes=(
            *(*table.notes, *notes),
            *measure_notes(grid.results, measures),
            *measure_comparison(grid, compare, measures),
        ),
        published=tuple(Block(block.title, tuple((*row, *empty) for row in block.rows)) for block in table.published),
    )


def _cell(runs: Sequence[Result], score: str) -> Cell:
    """Mean ± sample standard deviation of a score over seeds; a dash unless every run has it."""
    if score in MEASURES:
        found = [measured(run, score) for run in runs]
    else:
        found = [run.predictions.scores.get(score) for run in runs if run.predictions is not None]
    known = [value for value in found if value is not None]
    if not known or len(known) < len(runs):
        return Cell(DASH, (None, None, len(known)))
    return score_cell(known, show_n=False, decimals=_decimals(score))


def _column(score: str, title: str, dataset: str, ranked: bool) -> Column:
    names = tuple(f"{dataset}_{score}_{part}" for part in ("mean", "std", "n"))
    return Column(dataset_name(dataset), title, names, ranked)


def _decimals(score: str) -> int:
    return MEASURES[score].decimals if score in MEASURES else 2


def _number(cell: Cell) -> float | None:
    return None if cell.values[0] is None else float(cell.values[0])
