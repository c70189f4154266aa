"""Runs of methods that are fitted on features kept between runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gift_vit.runs.features as features_module
from gift_vit.config import RunConfig
from gift_vit.runs.build import build_model, eval_loader, open_data
from gift_vit.runs.features import Features
from gift_vit.runs.finished import evaluate_split
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run

CALL = Call("python -m gift_vit.train", ["debug=smoke"])
Configure = Callable[..., RunConfig]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return [f"paths.cache_root={tmp_path / 'cache'}"]


def lines(cfg: RunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (cfg.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "words", "count"), [("knn", "method.k=[1,5]", 8), ("linear_exact", "method.penalty=[0.01,0.1,1.0]", 3)]
)
def test_search_and_final_choose_on_val_and_what_is_recorded_can_be_scored_again(
    configure: Configure, options: list[str], method: str, words: str, count: int
) -> None:
    """Four seconds: two whole runs."""
    cfg = configure("phase=search", f"method={method}", words, "trainer.precision=bf16", *options)
    search = train_run(cfg, CALL)
    scored = lines(cfg)[:-1]
    assert len(scored) == count
    best = max(record["val_top1"] for record in scored)
    assert search.metrics["val_top1"] == best == lines(cfg)[-1]["val_top1"]
    assert search.run.chosen is not None
    first = next(iter(search.run.chosen))  # the option that goes first in a tie
    [chosen] = [record for record in scored if search.run.chosen.items() <= record.items()]
    assert chosen["val_top1"] == best
    assert not [r for r in scored if r["val_top1"] == best and r[first] < chosen[first]], "the smallest"
    assert search.run.config["trainer"]["precision"] == "fp32"  # pyright: ignore[reportIndexIssue]
    assert (search.cost.step_time_ms, search.metrics["epochs"], search.params.adapter) == (None, 1, 0)
    assert [record["epoch"] for record in Run.open(cfg.folder).curve()] == [0]
    assert evaluate_split(Run.open(cfg.folder), "val").top1 == best
    assert train_run(cfg, CALL) == search, "a finished run is not done again"

    cfg = configure("phase=final", f"method={method}", words, *options)
    final = train_run(cfg, CALL)
    assert (final.run.chosen, final.data.train_images) == (search.run.chosen, 1000)
    assert (final.metrics["val_top1"], "val_top1" in lines(cfg)[-1]) == (None, False), "val is trained on"
    again = evaluate_split(Run.open(cfg.folder), "test")
    assert (again.top1, again.loss) == (final.metrics["test_top1"], final.metrics["test_loss"])


def test_a_single_value_is_taken_as_it_is(configure: Configure, options: list[str]) -> None:
    cfg = configure("phase=final", "method=linear_exact", "method.penalty=[0.1]", *options)
    assert train_run(cfg, CALL).run.chosen == {"penalty": 0.1}
    assert len(lines(cfg)) == 1


def test_features_are_those_before_the_head_and_are_computed_once(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    compute, cpu = features_module._compute, torch.device("cpu")

    def counted(cfg: RunConfig, model: Any, data: Any, split: str, *rest: Any) -> Features:
        computed.append(split)
        return compute(cfg, model, data, split, *rest)

    def opened(*words: str) -> Features:
        cfg = configure("method=knn", f"paths.cache_root={tmp_path / 'cache'}", *words)
        data = open_data(cfg)
        return features_module.open_features(cfg, build_model(cfg, 10).eval(), data, "val", cpu)

    monkeypatch.setattr(features_module, "_compute", counted)
    first = opened()
    cfg = configure("method=linear_exact")
    model, seen = build_model(cfg, 10).eval(), []
    model.get_classifier().register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # pyright: ignore[reportCallIssue]
    with torch.inference_mode():
        for images, _ in eval_loader(cfg, model, open_data(cfg), "val", cpu):
            model(images)
    assert torch.equal(first.values, torch.cat(seen)), "what the head sees"
    [file] = (tmp_path / "cache").glob("features-*")
    second = opened("method=linear_exact")
    assert torch.equal(first.values, second.values)
    assert (computed, first.seconds) == (["val"], second.seconds), "kept for other methods, with what they cost"
    opened("dataset.cache=off")
    opened("seed=1")  # whose random backbone is another
    opened("backbone.img_size=32")
    file.write_bytes(b"damaged")
    opened()
    opened()
    assert len(computed) == 5
