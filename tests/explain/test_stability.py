"""``python -m gift_vit.explain.stability`` on finished runs: its numbers, and one line for every mistake."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from gift_vit.backbones import input_statistics
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import build_dataset, build_eval_transform
from gift_vit.explain import stability as command
from gift_vit.explain.alignment import ALIGNMENTS
from gift_vit.explain.layers import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.record import Call
from gift_vit.run import execute, load_finished_model, load_run
from tests.explain.calling import call_command

TRAINED = {"zero": ["method=gift", "seed=0"], "one": ["method=gift", "seed=1"], "gelu": ["method=gift_gelu"]}
UNTRAINED = {"rank": ["method=gift", "method.rank=3"], "linear": ["method=linear"], "search": ["method=gift", "phase=search"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by name, and of each a copy, "again"; of those that are refused before an adapter is read the config alone."""
    root = tmp_path_factory.mktemp("outputs")
    folders = {}
    for name, words in {**TRAINED, **UNTRAINED}.items():
        shared = ["debug=smoke", "phase=final", f"run_name={name}", f"paths.output_root={root}", "trainer.epochs=1"]
        cfg = load_config(compose_config([*shared, "optim.warmup_epochs=0", *words]))
        folders[name] = cfg.folder
        if name in TRAINED:
            execute(cfg, Call("python -m gift_vit.train", []))
        else:
            cfg.folder.mkdir(parents=True)
            (cfg.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(cfg.values)))
        folders[f"{name} again"] = Path(shutil.copytree(cfg.folder, root / f"{name}_again"))
    return folders


def listed(runs: dict[str, Path], *names: str) -> str:
    return f"runs=[{','.join(str(runs[name]) for name in names)}]"


def row_of(found: dict[str, Any], layer: str, basis: str, alignment: str) -> dict[str, Any]:
    [row] = [row for row in found["maps"] if (row["layer"], row["basis"], row["alignment"]) == (layer, basis, alignment)]
    return row


def test_two_seeds_and_a_copy(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["layers=[1,-1]", "count=10", "batch_size=7", f"out={tmp_path / 'found'}"]
    assert call_command(command, monkeypatch, listed(runs, "zero", "one", "zero again"), *words) == 0
    assert (tmp_path / "found.md").read_text() == capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == {"val": 10, "test": 10}
    assert found["val_seen_in_training"] is True
    assert found["runs"] == ["zero", "one", "zero"]
    assert len(found["maps"]) == 3 * 4 * 4, "all and two layers, four bases, four alignments"
    layers = ("attn.proj of block 1", "attn.proj of block 5")
    for basis, alignment in product(("trained", "canonical", "random φ for each run", "random φ for all runs"), ALIGNMENTS):
        own, *each = (row_of(found, layer, basis, alignment) for layer in ("all", *layers))
        np.testing.assert_allclose(own["by_pair"], np.mean([row["by_pair"] for row in each], 0))
        assert own["mean"] == pytest.approx(np.mean(own["by_pair"]))
        assert own["low"] <= own["mean"] <= own["high"]
        copies = [own["by_pair"][found["pairs"].index([0, 2])], own["by_pair"][found["pairs"].index([2, 0])]]
        if basis != "random φ for each run":
            np.testing.assert_allclose(copies, 1)
        elif alignment != "linear":
            assert max(copies) < 0.95
    first = found["pairs"].index([0, 1])
    for basis, name, seed in (("random φ for all runs", "random", 0), ("trained", "trained", 0), ("canonical", "canonical", 0)):
        value = row_of(found, layers[1], basis, "index")["by_pair"][first]
        assert value == pytest.approx(correlation_by_hand(runs, name, (seed, seed)), abs=1e-4)
    each = row_of(found, layers[1], "random φ for each run", "index")["by_pair"][first]
    assert each == pytest.approx(correlation_by_hand(runs, "random", (0, 1)), abs=1e-4)


def correlation_by_hand(runs: dict[str, Path], basis: str, seeds: tuple[int, int]) -> float:
    """Of the last block's maps of runs zero and one, cluster by cluster, signs by val."""
    cfg = load_run(runs["zero"])
    data = build_dataset(cfg.dataset)
    found = {}
    for split in ("val", "test"):
        source = data.split(split)
        chosen = [source[int(index)][0] for index in np.linspace(0, len(source) - 1, 10).round()]
        maps = []
        for name, seed in zip(("zero", "one"), seeds, strict=True):
            model = load_finished_model(load_run(runs[name]), runs[name])
            transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
            pixels = torch.stack([transform.finish(transform.prepare(image)) for image in chosen])
            maps.append(explain(model, transform.normalise(pixels), MapChoice(blocks=[-1], basis=basis, seed=seed)).post[:, 0])
        found[split] = np.array(
            [[np.corrcoef(*(m[n, k].flatten() for m in maps))[0, 1] for k in range(maps[0].shape[1])] for n in range(10)]
        )
    return float((found["test"] * np.sign(found["val"].mean(0))).mean())


def test_overlap_of_the_spans(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        call_command(command, monkeypatch, listed(runs, "zero", "one"), "layers=[0]", "count=3", f"out={tmp_path / 'found'}")
        == 0
    )
    rows = {row["span"]: row for row in json.loads((tmp_path / "found.json").read_text())["subspaces"]}
    states = [load_finished_model(load_run(runs[name]), runs[name]).state_dict() for name in ("zero", "one")]
    for span, key in (("φ", "gift.attn.proj.phi"), ("ψ", "gift.attn.proj.psi")):
        one, other = (torch.linalg.svd(state[key].double(), full_matrices=False) for state in states)
        bases = (one.U, other.U) if span == "φ" else (one.Vh.T, other.Vh.T)
        expected = (bases[0].T @ bases[1]).square().sum().item() / bases[0].shape[1]
        assert rows[span]["overlap"] == pytest.approx(expected)
        assert rows[span]["chance"] == bases[0].shape[1] / bases[0].shape[0]


def test_other_schemas_have_no_canonical_basis(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        call_command(
            command, monkeypatch, listed(runs, "gelu", "gelu again"), "layers=[0]", "count=3", f"out={tmp_path / 'found'}"
        )
        == 0
    )
    rows = json.loads((tmp_path / "found.json").read_text())["maps"]
    assert [row["basis"] for row in rows[::8]] == ["trained", "random φ for each run", "random φ for all runs"]


MISTAKES = [
    (["zero"], [], "error: runs=[{zero}]: give at least two folders, each once"),
    (["zero", "zero"], [], "error: runs=[{zero},{zero}]: give at least two folders, each once"),
    (["zero", "search"], [], "error: {search} is a search run, and test is for the final phase; train it with phase=final"),
    (["zero", "rank"], [], "error: {rank} has another method than {zero}; give runs that differ in their seed, say"),
    (["linear", "zero"], [], "error: {zero} has another method than {linear}; give runs that differ in their seed, say"),
    (["linear", "linear again"], [], "error: cluster maps explain GIFT; {linear} was trained with method=linear"),
    (["zero", "one"], ["count=0"], "error: count=0: give a positive number of images"),
    (["zero", "one"], ["response=both"], "error: unknown response 'both' (known: post, pre)"),
    (["zero", "one"], ["layers=[9]"], "error: block=9: target 'attn.proj' is not adapted there"),
    (["zero", "none"], [], "error: {none} is no run folder: it holds no config.yaml"),
]


@pytest.mark.parametrize(("names", "words", "message"), MISTAKES)
def test_every_mistake_is_one_line(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    words: list[str],
    message: str,
) -> None:
    folders = {**runs, "none": tmp_path / "none"}
    assert call_command(command, monkeypatch, listed(folders, *names), *words, f"out={tmp_path / 'found'}") == 2
    expected = message
    for name, folder in folders.items():
        expected = expected.replace(f"{{{name}}}", str(folder))
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
    assert not list(tmp_path.iterdir())
