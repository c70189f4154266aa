"""Ranks and paired statistics against enumeration of all cases, hand computation, and their sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.results.collect import build_grid
from gift_vit.results.comparison import compare_scores, comparison_notes, mean_ranks
from gift_vit.results.mini import mini_table
from gift_vit.results.paper import fgvc_table
from gift_vit.results.request import Request
from gift_vit.runs.result import Result
from tests.results.conftest import make_result as make

FIRST, SECOND = [89.7, 86.3, 99.2, 87.4, 84.3], [88.0, 84.9, 99.3, 85.4, 85.9]


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of the Wilcoxon statistic over all 2^n signs; no two absolute differences are equal."""
    ranks = 1 + np.argsort(np.argsort(np.abs(differences)))
    given = sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0)
    positive = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(ranks))])
    return min(1.0, 2 * min(np.mean(positive <= given), np.mean(positive >= given)))


@pytest.mark.parametrize("n", [2, 6, 12])
def test_wilcoxon_is_the_count_over_all_signs(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        first, second = rng.normal(80.5, 3, n), rng.normal(80, 3, n)
        result = compare_scores(first.tolist(), second.tolist())
        assert result.p_value == pytest.approx(signed_rank_p((first - second).tolist()), abs=1e-12)
    assert compare_scores([80.0 + i for i in range(n)], [70.0] * n).p_value == pytest.approx(2 / 2**n)


def test_the_interval_is_that_of_all_resamples() -> None:
    differences = np.subtract(FIRST, SECOND)
    means = np.array([np.mean(sample) for sample in product(differences, repeat=5)])  # all 3125, equally likely
    low, high = compare_scores(FIRST, SECOND).interval
    error = 4 * (0.025 * 0.975 / 10_000) ** 0.5  # of the drawn resamples
    for tail in (low - means, means - high):
        assert np.mean(tail > 1e-9) - error <= 0.025 <= np.mean(tail > -1e-9) + error
    assert compare_scores(FIRST[::-1], SECOND[::-1]).interval == (low, high)
    assert compare_scores(SECOND, FIRST).interval == pytest.approx((-high, -low), abs=0.1)


def test_equal_as_printed_is_a_tie_but_counts_in_the_difference() -> None:
    result = compare_scores([90.001, 80.0, 70.0], [90.004, 80.0, 69.0])
    assert (result.wins, result.ties, result.losses, result.smallest_p_value) == (1, 2, 0, 0.5)
    assert result.mean_difference == pytest.approx((1 - 0.003) / 3, abs=1e-6)
    equal = compare_scores([0.1 + 0.2, 1.0], [0.3, 1.0])  # but for a rounding
    assert (equal.ties, equal.mean_difference, equal.interval, equal.p_value) == (2, 0.0, (0.0, 0.0), 1.0)
    assert equal.smallest_p_value == 1.0


def test_mean_ranks_by_hand() -> None:
    scores = {("a",): [90.0, 80.0, 70.0], ("b",): [95.0, 80.004, 60.0], ("c",): [85.0, 79.0, 65.0]}
    assert mean_ranks(scores) == {
        ("a",): pytest.approx((2 + 1.5 + 1) / 3),  # 80.00 and 80.00 share the places 1 and 2
        ("b",): pytest.approx((1 + 1.5 + 3) / 3),
        ("c",): pytest.approx((3 + 3 + 2) / 3),
    }


def runs(scores: Mapping[str, Sequence[float]], datasets: Sequence[str]) -> list[Result]:
    cells = [(method, *cell) for method, row in scores.items() for cell in zip(datasets, row, strict=False)]
    return [make(method, dataset, seed, top1=top1 + seed) for method, dataset, top1 in cells for seed in (0, 1)]


FIVE = ("digits", "tiny_mammals", "tiny_insects", "tiny_vehicles", "cifar10_1k")


def test_sentences_below_a_table() -> None:
    everything = runs({"gift": FIRST, "lora": SECOND, "linear": [50.0] * 5}, FIVE)
    plain = mini_table(Request(everything))
    table = mini_table(Request(everything, compare=["gift", "lora"]))
    low, high = compare_scores(FIRST, SECOND).interval
    assert table.notes == (
        *plain.notes,
        "GIFT against LoRA over 5 datasets, means over seeds paired by dataset: wins/ties/losses 3/0/2; mean difference "
        f"+0.68 points, 95% bootstrap interval [{low:+.2f}, {high:+.2f}] (10,000 resamples of the datasets); "
        "Wilcoxon signed-rank p = 0.438. The spread over seeds has no part in this.",
        "Caution: 5 datasets are few; the bootstrap interval is narrower than it should be, and the test cannot fall below "
        "p = 0.0625 whatever the differences. Read both as a description of these datasets.",
        "Mean rank over the 5 datasets that all 3 rows have (1 is best): GIFT 1.40; LoRA 1.60; Linear probing 3.00.",
    )


@pytest.mark.parametrize("apart", [FIVE, FIVE[1:2]])
def test_rows_of_other_seeds_say_so(apart: Sequence[str]) -> None:
    same = runs({"lora": SECOND}, FIVE)
    other = [replace(r, run=replace(r.run, seed=r.run.seed + 7 * (r.run.dataset in apart))) for r in same]
    told, *_ = comparison_notes(build_grid([*runs({"gift": FIRST}, FIVE), *other], "mini"), ["gift", "lora"])
    assert "datasets, means over all seeds of each, which are not the same ones, paired by dataset" in told


@pytest.mark.parametrize(("n", "few", "floor"), [(5, True, True), (6, True, False), (9, True, False), (10, False, False)])
def test_caution_goes_as_datasets_come(n: int, few: bool, floor: bool) -> None:
    scores = {"gift": [80.0 + i for i in range(n)], "lora": [70.0] * n}
    notes = " ".join(comparison_notes(build_grid(runs(scores, [f"d{i}" for i in range(n)]), "mini"), ["gift", "lora"]))
    assert (f"Caution: {n} datasets are few" in notes, "cannot fall below p = " in notes) == (few, floor)


def test_only_shared_datasets_are_compared_and_the_others_named() -> None:
    grid = build_grid(runs({"gift": FIRST, "lora": SECOND[:3], "linear": [50.0]}, FIVE), "mini", FIVE)
    first, _, ranks = comparison_notes(grid, ["gift", "lora"])
    assert first.startswith("GIFT against LoRA over 3 datasets (without Tiny vehicles, CIFAR-10 (1k), where a run is missing),")
    assert "wins/ties/losses 2/0/1" in first
    assert ranks.startswith("Mean rank over the one dataset that all 3 rows have")
    assert comparison_notes(grid, ["lora", "linear"]) == (
        "LoRA against Linear probing: they have 1 of the 5 datasets in common, a comparison needs two.",
    )
    apart = build_grid([*runs({"gift": FIRST, "lora": SECOND}, FIVE[:2]), make("linear", "cifar10_1k")], "mini")
    assert comparison_notes(apart, ["gift", "lora"])[-1] == "No mean rank: no dataset has a run of all 3 rows."


def test_rows_of_an_ablation_are_named_by_their_values() -> None:
    everything = [make(dataset=d, top1=80.0 + rank, config={"method.rank": rank}) for d in FIVE for rank in (2, 16)]
    rows, compared = ["method.rank", "method.target_modules"], ["16, attn.proj", "2, attn.proj"]
    table = mini_table(Request(everything, method="gift", rows=rows, compare=compared))
    assert any(note.startswith("16, attn.proj against 2, attn.proj over 5 datasets") for note in table.notes)


def test_two_different_rows_are_asked_for() -> None:
    wrong = {"gift lra": "there is no row lra", "gift": "it has 1 names", "gift gift": "2 names", "gift lora gift": "3 names"}
    for table, benchmark, dataset in ((mini_table, "mini", "digits"), (fgvc_table, "fgvc", "cub")):
        everything = [make(method, dataset, run={"benchmark": benchmark}) for method in ("gift", "lora")]
        for names, problem in wrong.items():
            with pytest.raises(ConfigError, match=rf"{problem}; name two different rows of gift; lora"):
                table(Request(everything, compare=names.split()))


def test_own_datasets_of_two_kinds_of_score_have_wins_and_no_mean() -> None:
    of = {"birds": None, "stars": "pearson"}
    scores = {"gift": (80.0, 40.0), "lora": (79.0, 60.0)}
    runs = [
        replace(make(m, d, seed, score, run={"benchmark": "own"}), metric=metric)
        for m, both in scores.items()
        for (d, metric), score in zip(of.items(), both, strict=True)
        for seed in (0, 1)
    ]
    first, *_ = comparison_notes(build_grid(runs, "own"), ["gift", "lora"])
    assert first == (
        "GIFT against LoRA over 2 datasets, whose scores are of several kinds and have no mean: wins/ties/losses 1/0/1."
    )
