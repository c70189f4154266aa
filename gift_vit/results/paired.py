"""Two rows of a table compared image by image, where both kept their predictions of the same images.

What the tests over datasets (:mod:`gift_vit.results.comparison`) ask is another question; the sentences say which is which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gift_vit.results.collect import Grid, Row
from gift_vit.results.names import dataset_name
from gift_vit.results.render import decimal_text
from gift_vit.runs.predictions import Predictions, predictions_of
from gift_vit.runs.result import things_of
from gift_vit.runs.run import Run

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedPair:
    """The first row's model and the second's, of one seed, on the N images of a dataset.

    Attributes:
        gained: Images that the first alone gets right; ``lost``: the second alone.
        difference: Per image 1, 0 or −1: the first's success less the second's, (N,).
    """

    dataset: str
    seed: int
    gained: int
    lost: int
    difference: NDArray[np.int64]

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: a binomial test of the images on which the two differ; 1 where there are none.

        Source: McNemar, Psychometrika 12 (1947).
        """
        from scipy.stats import binomtest

        differing = self.gained + self.lost
        return float(binomtest(self.gained, differing).pvalue) if differing else 1.0


def pair_seed(dataset: str, seed: int, first: Predictions, second: Predictions) -> SeedPair | None:
    """Two models on the same images in the same order; None: the images or their labels are others."""
    if first.images != second.images or not np.array_equal(first.labels, second.labels):
        return None
    return pair_successes(dataset, seed, first.correct, second.correct)


def pair_successes(dataset: str, seed: int, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> SeedPair:
    """Two models of whose N answers it is known whether they are right, (N,), in the same order."""
    difference = first.astype(np.int64) - second
    return SeedPair(dataset, seed, int((difference > 0).sum()), int((difference < 0).sum()), difference)


def bootstrap_images(tasks: Sequence[NDArray[np.floating]]) -> tuple[float, float, float]:
    """Mean over tasks of the mean over images, with its percentile bootstrap interval: images are drawn anew in each task.

    Args:
        tasks: Per task the differences of its images, (N,).

    Returns:
        Mean, and lower and upper end of the 95 % interval.
    """
    generator = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for differences in tasks:
        # few different values occur: how often each is drawn says all about a resample
        values, counts = np.unique(differences, return_counts=True)
        drawn = generator.multinomial(len(differences), counts / len(differences), size=RESAMPLES)
        means += drawn @ values / len(differences) / len(tasks)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.mean([differences.mean() for differences in tasks])), float(low), float(high)


def paired_notes(grid: Grid, first: Row, second: Row, title: str) -> tuple[str, ...]:
    """Sentences that compare two rows over the images of each dataset on which both have a run of the same seed."""
    things, split = things_of(grid.results), grid.results[0].scored_on
    pairs: list[SeedPair] = []
    left_out: list[str] = []
    for dataset in grid.datasets:
        cells = [{result.run.seed: result for result in grid.cells.get((row, dataset), ())} for row in (first, second)]
        seeds = sorted(cells[0].keys() & cells[1].keys())
        left_out += [f"{dataset_name(dataset)}: no seed in common"] if all(cells) and not seeds else []
        for seed in seeds:
            one, other = cells[0][seed], cells[1][seed]
            where = f"{dataset_name(dataset)} seed {seed}"
            if one.metric or other.metric:
                left_out.append(f"{where}: its score is no share of right answers")
                continue
            first_kept, second_kept = (predictions_of(result, result.scored_on) for result in (one, other))
            if first_kept and second_kept:
                pair = pair_seed(dataset, seed, first_kept, second_kept)
                pairs += [pair] if pair else []
                left_out += [] if pair else [f"{where}: their {split} {things} are others"]
            elif lacking := [r.path.parent for r, kept in ((one, first_kept), (other, second_kept)) if r.path and not kept]:
                left_out.append(f"{where}: {Run.open(lacking[0]).how_to_predict()}")
    return (*_sentences(pairs, title, things, split), *_left_out(left_out, things))


def _sentences(pairs: Sequence[SeedPair], title: str, things: str, split: str) -> tuple[str, ...]:
    if not pairs:
        return ()
    tasks = {
        dataset: [pair for pair in pairs if pair.dataset == dataset] for dataset in dict.fromkeys(p.dataset for p in pairs)
    }
    tests = "; ".join(
        f"{dataset_name(dataset)} "
        + ", ".join(f"seed {p.seed} +{p.gained}/−{p.lost} of {len(p.difference):,}, p = {p.p_value:.3g}" for p in members)
        for dataset, members in tasks.items()
    )
    differences = {d: 100 * np.mean([pair.difference for pair in members], axis=0) for d, members in tasks.items()}
    intervals = [f"{dataset_name(d)} {_interval([values])}" for d, values in differences.items()]
    if len(tasks) > 1:
        intervals.append(f"mean over these {len(tasks)} datasets {_interval(list(differences.values()))}")
    corrected = "" if len(pairs) == 1 else f" These are {len(pairs)} tests, and the p values are not corrected for that."
    return (
        f"{title} {things[:-1]} by {things[:-1]}, exact McNemar test for each seed ({things} that only the first gets "
        f"right/only the second): {tests}. It asks whether these two trained models are equally often right on {things} like "
        f"these; about other seeds or datasets it says nothing.{corrected}",
        f"{title}, difference over the {split} {things} in points, averaged over the seeds that both have, {CONFIDENCE:.0%} "
        f"bootstrap interval ({RESAMPLES:,} resamples of the {things}): {'; '.join(intervals)}. It asks how much of the "
        f"difference could come from which {things} are in the {split} split, the trained models being what they are. Whether "
        "one method is better on further datasets is what Wilcoxon's test over datasets asks.",
    )


def _interval(tasks: Sequence[NDArray[np.floating]]) -> str:
    mean, low, high = (decimal_text(value, sign="+") for value in bootstrap_images(tasks))
    return f"{mean} [{low}, {high}]"


def _left_out(reasons: Sequence[str], things: str) -> tuple[str, ...]:
    if not reasons:
        return ()
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return (f"No test over {things} for {reasons[0]}{more}.",)
