"""Runs of methods that are fitted on features kept between runs."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import gift_vit.runs.features as features_module
from gift_vit.config import RunConfig, compose_config, load_config
from gift_vit.engine.observer import Observer
from gift_vit.results.collect import collect_results
from gift_vit.results.mini import mini_table
from gift_vit.results.request import Request
from gift_vit.runs.build import build_model, eval_loader, open_data
from gift_vit.runs.features import Features
from gift_vit.runs.finished import evaluate_split
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from gift_vit.runs.verify import Untruth, verify_run
from gift_vit.sweeps.select import choose, recipe_text

CALL = Call("python -m gift_vit.train", ["debug=smoke"])
Configure = Callable[..., RunConfig]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return [f"paths.cache_root={tmp_path / 'cache'}"]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished search run of linear_exact over two penalties."""
    root = tmp_path_factory.mktemp("probe")
    words = ("debug=smoke", "backbone.img_size=32", "method=linear_exact", "method.penalty=[0.01,0.1]", "phase=search")
    cfg = load_config(compose_config([*words, f"paths.output_root={root}", f"paths.cache_root={root / 'cache'}"]))
    train_run(cfg, CALL)
    return Run.open(cfg.folder)


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
    record = train_run(cfg, CALL).run
    assert (record.chosen, record.chosen_on) == ({"penalty": 0.1}, "config")
    assert len(lines(cfg)) == 1
    assert any(line.endswith("is the config's only setting") for line in verify_run(Run.open(cfg.folder)))


@pytest.mark.parametrize(("method", "words"), [("knn", "method.k=[1,5,9]"), ("linear_exact", "method.penalty=[0.01,0.1]")])
def test_a_probe_is_an_ordinary_run(configure: Configure, options: list[str], tmp_path: Path, method: str, words: str) -> None:
    """From search by recipe to a final run that is verified, scored again and asked; over 3 s for two runs and commands."""
    cfg = configure("phase=search", f"method={method}", words, "trainer.keep_predictions=all", *options)
    search = train_run(cfg, CALL)
    assert collect_results(cfg.paths.output_root) == [search]
    kept = Run.open(cfg.folder).predictions("val")
    assert 100 * kept.correct.mean() == pytest.approx(search.metrics["val_top1"])
    assert list(verify_run(Run.open(cfg.folder)))[5].endswith("settings on val")

    assert search.run.chosen is not None
    choice = choose([search])
    chosen = {f"method.{key}": [value] for key, value in search.run.chosen.items()}
    assert choice.settings[0].values == chosen, "neither a learning rate nor what was tried"
    recipe = yaml.safe_load(recipe_text(choice))
    assert {f"method.{key}": value for key, value in recipe["method"].items()} == chosen

    named = [f"{key}={value}" for key, value in chosen.items()]
    final = train_run(configure("phase=final", f"method={method}", *named, "run_name=named", *options), CALL)
    cfg = configure("phase=final", f"method={method}", words, *options)
    own = train_run(cfg, CALL)
    assert (final.run.chosen_on, own.run.chosen_on, search.run.chosen_on) == ("config", "val", "val")
    assert final.run.chosen == own.run.chosen == search.run.chosen
    assert final.metrics == own.metrics, "the same choice, fitted on train and val"
    assert final.predictions == own.predictions is not None

    told = list(verify_run(Run.open(cfg.folder)))
    assert told[-1] == f"scored again: 0 of {own.data.test_images} images are predicted otherwise"
    Image.new("RGB", (40, 40), "navy").save(tmp_path / "picture.png")
    [prediction] = Run.open(cfg.folder).predict(tmp_path / "picture.png", device="cpu")
    assert (len(prediction.classes), prediction.error) == (5, None)
    [row] = mini_table(Request([own])).rows
    assert row[-1].values == (own.metrics["test_top1"],)


class Killed(Exception):
    """Stands for whatever ends a process."""


class KillsAt(Observer):
    """Ends the run at the n-th setting."""

    def __init__(self, number: int) -> None:
        self.left = number

    def setting_scored(self, record: Mapping[str, float]) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def test_a_killed_run_is_done_again_from_its_features(configure: Configure, options: list[str], tmp_path: Path) -> None:
    words = ("phase=final", "method=linear_exact", "method.penalty=[0.01,0.1,1.0]", *options)
    cfg = configure(*words)
    with pytest.raises(Killed):
        train_run(cfg, CALL, [KillsAt(2)])
    assert len(lines(cfg)) == 2
    assert Run.open(cfg.folder).state == "failed"
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("features-*")}
    again = train_run(cfg, CALL)
    assert Run.open(cfg.folder).state == "done"
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("features-*")} == kept != {}
    assert len(lines(cfg)) == 4, "no line of the first start"
    whole = train_run(configure(*words, "run_name=whole"), CALL)
    assert (again.metrics, again.run.chosen) == (whole.metrics, whole.run.chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": {"penalty": 7.0}}, "which is none of the config's settings"),
        ({"chosen_on": "config"}, "was chosen on config, not on val"),
        ({"chosen": "other"}, "was chosen, the best of metrics.jsonl is"),
    ],
)
def test_verify_finds_another_choice(probe: Run, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = shutil.copytree(probe.folder, tmp_path / "run")
    record = json.loads((folder / "result.json").read_text())
    if changes == {"chosen": "other"}:
        [other] = {0.01, 0.1} - {record["run"]["chosen"]["penalty"]}
        changes = {"chosen": {"penalty": other}}
    record["run"] |= changes
    (folder / "result.json").write_text(json.dumps(record))
    with pytest.raises(Untruth, match=message):
        list(verify_run(Run.open(folder), score=False))


def test_features_are_those_before_the_head_and_are_computed_once(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    compute, cpu = features_module.compute_features, torch.device("cpu")

    def counted(cfg: RunConfig, model: Any, data: Any, split: str, *rest: Any) -> Features:
        computed.append(split)
        return compute(cfg, model, data, split, *rest)

    def opened(*words: str) -> Features:
        cfg = configure("method=knn", f"paths.cache_root={tmp_path / 'cache'}", *words)
        data = open_data(cfg)
        return features_module.open_features(cfg, build_model(cfg, 10).eval(), data, "val", cpu)

    monkeypatch.setattr(features_module, "compute_features", counted)
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
    opened("backbone.img_size=64")
    file.write_bytes(b"damaged")
    opened()
    opened()
    assert len(computed) == 5
