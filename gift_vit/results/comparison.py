"""Whether one row of a table is better than another: ranks, wins, and paired statistics over the datasets.

Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006): a dataset is one observation, its score
the mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gift_vit.common.errors import ConfigError
from gift_vit.results.cells import mean_top1
from gift_vit.results.collect import Grid, Row
from gift_vit.results.names import dataset_name
from gift_vit.results.notes import row_name
from gift_vit.results.paired import CONFIDENCE, RESAMPLES, paired_notes
from gift_vit.results.render import decimal_text

_SMALL = 10  # datasets: a bootstrap of fewer is known to be too narrow
_DECIMALS = 6  # of differences: equal scores must not differ by a rounding of their means


@dataclass(frozen=True)
class Comparison:
    """The first row's scores less the second's, dataset by dataset; top-1 points.

    Attributes:
        wins: Datasets on which the first is higher as printed, with two decimals; ``ties``: equal; ``losses``: lower.
        interval: 95 % interval of the mean difference, by the percentile bootstrap over datasets.
        p_value: Two-sided Wilcoxon signed-rank test; zero differences are left out, and without any other it is 1.
        smallest_p_value: The lowest that the test can give for as many differences, whatever they are.
    """

    wins: int
    ties: int
    losses: int
    mean_difference: float
    interval: tuple[float, float]
    p_value: float
    smallest_p_value: float


def compare_scores(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two rows on two or more datasets, in the same order."""
    from scipy.stats import bootstrap, wilcoxon  # half a second to import, for those who compare only

    difference = np.round(np.subtract(first, second), _DECIMALS)
    signs = np.sign([round(a, 2) - round(b, 2) for a, b in zip(first, second, strict=True)])
    drawn = bootstrap(
        (np.sort(difference),),  # the interval does not depend on the order of the datasets
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    changed = difference[difference != 0]
    return Comparison(
        wins=int((signs > 0).sum()),
        ties=int((signs == 0).sum()),
        losses=int((signs < 0).sum()),
        mean_difference=float(difference.mean()),
        interval=(float(drawn.low), float(drawn.high)),
        p_value=float(wilcoxon(changed).pvalue) if len(changed) else 1.0,  # pyright: ignore[reportAttributeAccessIssue]
        smallest_p_value=min(1.0, 2.0 ** (1 - len(changed))),
    )


def mean_ranks(scores: Mapping[Row, Sequence[float]]) -> dict[Row, float]:
    """Each row's rank on every dataset, averaged; 1 is best, and what prints the same shares the mean of its places."""
    from scipy.stats import rankdata

    printed = np.array([[round(score, 2) for score in row] for row in scores.values()])  # as a table's cells are rounded
    return dict(zip(scores, rankdata(-printed, axis=0).mean(axis=1).tolist(), strict=True))


def comparison_notes(grid: Grid, names: Sequence[str]) -> tuple[str, ...]:
    """Sentences that compare two rows, and rank all rows, over the datasets they have in common, and over their images.

    Args:
        grid: The runs of the table.
        names: Two rows by their labels (a row of several keys: ``"16, attn.proj"``); none: no sentence.

    Raises:
        ConfigError: If they are not two different rows of the grid.
    """
    if not names:
        return ()
    first, second = find_rows(grid, names)
    title = f"{row_name(first)} against {row_name(second)}"
    shared, left_out = _shared(grid, (first, second))
    without = f" (without {', '.join(dataset_name(d) for d in left_out)}, where a run is missing)" if left_out else ""
    if len(shared) < 2:
        few = f"{title}: they have {len(shared)} of the {len(grid.datasets)} datasets in common, a comparison needs two."
        return (few, *paired_notes(grid, first, second, title))
    result = compare_scores(_scores(grid, first, shared), _scores(grid, second, shared))
    if mixes_scores(grid):
        counted = f"wins/ties/losses {result.wins}/{result.ties}/{result.losses}"
        said = f"{title} over {len(shared)} datasets{without}, whose scores are of several kinds and have no mean: {counted}."
        return (said, *paired_notes(grid, first, second, title), _rank_note(grid))
    alike = all(_seeds(grid, first, dataset) == _seeds(grid, second, dataset) for dataset in shared)
    seeds = "seeds" if alike else "all seeds of each, which are not the same ones,"
    mean, low, high = (decimal_text(value, sign="+") for value in (result.mean_difference, *result.interval))
    return (
        f"{title} over {len(shared)} datasets{without}, means over {seeds} paired by dataset: "
        f"wins/ties/losses {result.wins}/{result.ties}/{result.losses}; mean difference {mean} points, "
        f"{CONFIDENCE:.0%} bootstrap interval [{low}, {high}] ({RESAMPLES:,} resamples of the datasets); "
        f"Wilcoxon signed-rank p = {result.p_value:.3g}. The spread over seeds has no part in this.",
        *_caution(len(shared), result),
        *paired_notes(grid, first, second, title),
        _rank_note(grid),
    )


def mixes_scores(grid: Grid) -> bool:
    """Whether datasets of a person's own are scored in several ways, so that no mean over them says anything.

    The means of GLUE, which are of several scores too, are its authors' own.
    """
    own = [result.metric or "accuracy" for result in grid.results if result.run.benchmark == "own"]
    return len(set(own)) > 1


def find_rows(grid: Grid, names: Sequence[str]) -> tuple[Row, Row]:
    """The two rows that ``compare=`` names.

    Raises:
        ConfigError: If they are not two different rows of the grid.
    """
    rows = {", ".join(row): row for row in grid.rows}
    unknown = [name for name in names if name not in rows]
    if unknown or len(set(names)) != 2 or len(names) != 2:
        problem = f"there is no row {', '.join(unknown)}" if unknown else f"it has {len(names)} names"
        raise ConfigError(f"compare={list(names)}: {problem}; name two different rows of {'; '.join(rows)}")
    return rows[names[0]], rows[names[1]]


def _shared(grid: Grid, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The datasets that all rows have, and the others."""
    shared = [d for d in grid.datasets if all((row, d) in grid.cells for row in rows)]
    return shared, [d for d in grid.datasets if d not in shared]


def _scores(grid: Grid, row: Row, datasets: Sequence[str]) -> list[float]:
    return [mean for d in datasets if (mean := mean_top1(grid.cells[row, d])) is not None]


def _seeds(grid: Grid, row: Row, dataset: str) -> list[int]:
    return [run.run.seed for run in grid.cells[row, dataset]]


def _caution(count: int, result: Comparison) -> tuple[str, ...]:
    if count >= _SMALL:
        return ()
    text = f"Caution: {count} datasets are few; the bootstrap interval is narrower than it should be"
    if result.smallest_p_value > 1 - CONFIDENCE:
        text += f", and the test cannot fall below p = {result.smallest_p_value:.3g} whatever the differences"
    return (f"{text}. Read both as a description of these datasets.",)


def _rank_note(grid: Grid) -> str:
    datasets, _ = _shared(grid, grid.rows)
    if not datasets:
        return f"No mean rank: no dataset has a run of all {len(grid.rows)} rows."
    ranks = mean_ranks({row: _scores(grid, row, datasets) for row in grid.rows})
    listed = "; ".join(f"{row_name(row)} {ranks[row]:.2f}" for row in sorted(ranks, key=lambda row: ranks[row]))
    over = f"the {len(datasets)} datasets" if len(datasets) > 1 else "the one dataset"
    return f"Mean rank over {over} that all {len(ranks)} rows have (1 is best): {listed}."
