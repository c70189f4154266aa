"""``python -m gift_vit.explain.stability`` on finished runs: its numbers."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gift_vit.explain.config import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.explain.scoring.alignment import ALIGNMENTS
from gift_vit.explain.setup import check_comparable
from gift_vit.runs.run import Run
from tests.explain.conftest import Command, Runs, opened

Measure = Callable[..., dict[str, Any]]
BASES = ("trained", "canonical", "random φ for each run", "random φ for all runs")


@pytest.fixture
def measure(runs: Runs, tmp_path: Path, call: Command) -> Measure:
    """Takes names of runs, and words; what the command found."""

    def measured(names: list[str], *words: str) -> dict[str, Any]:
        code, printed, _ = call("stability", f"runs=[{','.join(str(runs[n]) for n in names)}]", *words, f"out={tmp_path / 'x'}")
        assert code == 0
        assert (tmp_path / "x.md").read_text() == printed
        return json.loads((tmp_path / "x.json").read_text())

    return measured


def correlation_by_hand(runs: Runs, basis: str, seeds: tuple[int, int]) -> float:
    """Of the last block's maps of runs zero and one, cluster by cluster, signs by val."""
    found = {}
    for split in ("val", "test"):
        maps = []
        for name, seed in zip(("zero", "one"), seeds, strict=True):
            data, model, transform = opened(runs[name])
            source = data.split(split)
            chosen = [source[int(index)][0] for index in np.linspace(0, len(source) - 1, 10).round()]
            pixels = torch.stack([transform.finish(transform.prepare(image)) for image in chosen])
            maps.append(explain(model, transform.normalise(pixels), MapChoice(blocks=[-1], basis=basis, seed=seed)).post[:, 0])
        found[split] = np.array(
            [[np.corrcoef(*(m[n, k].flatten() for m in maps))[0, 1] for k in range(maps[0].shape[1])] for n in range(10)]
        )
    return float((found["test"] * np.sign(found["val"].mean(0))).mean())


def test_runs_may_differ_in_what_moves_no_number(runs: Runs) -> None:
    check_comparable([Run.open(runs[name]) for name in ("zero", "one", "placed")])


def test_two_seeds_and_a_copy(runs: Runs, measure: Measure) -> None:
    found = measure(["zero", "one", "zero again"], "layers=[1,-1]", "count=10", "batch_size=7")
    assert found["images"] == {"val": 10, "test": 10}
    assert found["val_seen_in_training"] is True
    assert found["runs"] == ["zero", "one", "zero"]
    rows = {(row["layer"], row["basis"], row["alignment"]): row for row in found["maps"]}
    layers = ("all", "attn.proj of block 1", "attn.proj of block 5")
    assert len(found["maps"]) == len(rows) == len(layers) * len(BASES) * len(ALIGNMENTS)
    for basis, alignment in product(BASES, ALIGNMENTS):
        own, *each = (rows[layer, basis, alignment] for layer in layers)
        np.testing.assert_allclose(own["by_pair"], np.mean([row["by_pair"] for row in each], 0))
        assert own["mean"] == pytest.approx(np.mean(own["by_pair"]))
        assert own["low"] <= own["mean"] <= own["high"]
        copies = [own["by_pair"][found["pairs"].index(pair)] for pair in ([0, 2], [2, 0])]
        if basis != "random φ for each run":
            np.testing.assert_allclose(copies, 1)
        elif alignment != "linear":
            assert max(copies) < 0.95
    for basis in BASES:
        value = rows[layers[-1], basis, "index"]["by_pair"][found["pairs"].index([0, 1])]
        seeds = (0, 1) if basis == "random φ for each run" else (0, 0)
        assert value == pytest.approx(correlation_by_hand(runs, basis.split()[0], seeds), abs=1e-4)


def test_overlap_of_the_spans(runs: Runs, measure: Measure) -> None:
    rows = {row["span"]: row for row in measure(["zero", "one"], "layers=[0]", "count=3")["subspaces"]}
    gifts = [opened(runs[name])[1].get_submodule("gift.attn.proj") for name in ("zero", "one")]
    spans = {"φ": [gift.get_parameter("phi") for gift in gifts], "ψ": [gift.get_parameter("psi").T for gift in gifts]}
    for span, matrices in spans.items():
        one, other = (torch.linalg.svd(matrix.detach(), full_matrices=False).U for matrix in matrices)
        assert rows[span]["overlap"] == pytest.approx((one.T @ other).square().sum().item() / 16)
        assert rows[span]["chance"] == 16 / 64


def test_other_schemas_have_no_canonical_basis_and_one_image_no_interval(measure: Measure) -> None:
    rows = measure(["gelu", "gelu again"], "layers=[0]", "count=1")["maps"]
    assert {row["low"] for row in rows} == {None}
    assert [row["basis"] for row in rows[::8]] == ["trained", "random φ for each run", "random φ for all runs"]
