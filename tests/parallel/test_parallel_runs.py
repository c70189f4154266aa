"""Runs trained together against the same runs made one by one by the ordinary loop."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import gift_vit.parallel.fit as parallel_fit
from gift_vit.acceleration.products import onednn_is_faster
from gift_vit.config import RunConfig
from gift_vit.parallel.execute import execute_together
from gift_vit.record import Call
from gift_vit.results.schema import read_result
from gift_vit.run import execute
from gift_vit.run_folder import locked_folder
from gift_vit.tracking import NullTracker
from tests.tolerance import TOLERANCE

CALL = Call("python -m gift_vit.train", ["debug=smoke"])
FILES = {"config.yaml", "metrics.jsonl", "train.log", "adapter.safetensors", "result.json"}
TIMES = {"seconds", "images_per_s", "parallel_runs"}
# three settings; the seeds of the first two are the same
SETTINGS = [("1e-3", "0.1", 0), ("1e-2", "1e-4", 0), ("3e-3", "1e-2", 1)]
Configure = Callable[..., list[RunConfig]]


@pytest.fixture
def configure(configure: Callable[..., RunConfig], tmp_path: Path) -> Configure:
    """The configs of :data:`SETTINGS` or others in folders below ``root``: two epochs on one backbone, with drop path."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=10, img_size=32).state_dict(), tmp_path / "backbone.safetensors")

    def build(*words: str, root: str, settings: list[tuple[str, str, int]] = SETTINGS) -> list[RunConfig]:
        backbone = ["backbone.pretrained=true", f"backbone.weights={tmp_path / 'backbone.safetensors'}", "backbone.img_size=32"]
        schedule = ["trainer.epochs=2", "trainer.batch_size=100", "trainer.drop_path_rate=0.3"]
        # eps: Adam would make steps of a whole learning rate out of the rounding of gradients near zero
        common = [*backbone, *schedule, "optim.eps=1e-3", *words]
        configs = [
            configure(*common, f"optim.lr={lr}", f"optim.weight_decay={wd}", f"seed={seed}", f"run_name=run{index}")
            for index, (lr, wd, seed) in enumerate(settings)
        ]
        for cfg in configs:
            cfg.folder = tmp_path / root / cfg.run_name
        return configs

    return build


def train_together(configs: list[RunConfig]) -> list[int]:
    return execute_together([(cfg, CALL) for cfg in configs])


def records(cfg: RunConfig) -> list[dict]:
    lines = (cfg.folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def known_metrics(cfg: RunConfig) -> dict[str, float]:
    metrics = read_result(cfg.folder / "result.json").metrics
    return {key: value for key, value in metrics.items() if value is not None}


def assert_same_run(together: RunConfig, alone: RunConfig) -> None:
    weights, expected = (load_file(cfg.folder / "adapter.safetensors") for cfg in (together, alone))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            weights[name], tensor, **TOLERANCE[torch.float32], msg=lambda text, name=name: f"{name}: {text}"
        )
    for own, other in zip(records(together), records(alone), strict=True):
        assert own == pytest.approx(other, rel=1e-5, abs=1e-6)
    metrics, other = (known_metrics(cfg) for cfg in (together, alone))
    assert metrics == pytest.approx(other, rel=1e-5)
    configs = [(cfg.folder / "config.yaml").read_text() for cfg in (together, alone)]
    assert configs[0] == configs[1]
    assert "parallel" not in configs[0]


@pytest.mark.parametrize("method", ["linear", "gift", "lora", "bitfit", "vpt_deep", "lora_qv"])
def test_runs_trained_together_are_the_runs_made_one_by_one(configure: Configure, method: str) -> None:
    alone = configure(f"method={method}", root="alone")
    together = configure(f"method={method}", root="together")
    for cfg in alone:
        execute(cfg, CALL)
    assert train_together(together) == [0, 0, 0]
    for own, other in zip(together, alone, strict=True):
        assert_same_run(own, other)
        assert {path.name for path in own.folder.iterdir()} == FILES
    assert records(alone[0]) != records(alone[1]) != records(alone[2])


@pytest.mark.parametrize(
    "words", [["phase=final"], ["trainer.grad_accumulation=3", "trainer.eval_every=0"]], ids=["final", "pieces"]
)
def test_the_test_split_and_pieces_of_a_batch(configure: Configure, words: list[str]) -> None:
    alone, together = (configure(*words, root=name) for name in ("alone", "together"))
    for cfg in alone:
        execute(cfg, CALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # vmap warns where it computes run by run
        assert train_together(together) == [0, 0, 0]
    for own, other in zip(together, alone, strict=True):
        assert_same_run(own, other)


def test_what_each_seed_draws_for_itself_alone_is_its_own(configure: Configure) -> None:
    words = ["method=linear", "backbone.weights=null", "backbone.pretrained=false", "trainer.epochs=1"]  # random backbones
    alone, together = (configure(*words, root=name) for name in ("alone", "together"))
    for cfg in alone:
        execute(cfg, CALL)
    assert train_together(together) == [0, 0, 0]
    for own, other in zip(together, alone, strict=True):
        assert_same_run(own, other)


def test_the_record_says_how_many_shared_the_time_and_each_log_is_of_one_run(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[dict[str, Any]] = []
    monkeypatch.setattr(NullTracker, "finish", lambda *given: tracked.append(given[1]))
    configs = configure("method=linear", root="runs")
    train_together(configs)
    assert [set(summary["cost"]) for summary in tracked] == [{"adapter_bytes"}] * 3
    for cfg in configs:
        result, log = read_result(cfg.folder / "result.json"), (cfg.folder / "train.log").read_text()
        assert result.env["parallel_runs"] == 3
        assert not result.trained_alone
        assert result.env["acceleration"] == {
            "cls_last_block": True,
            "drop_path_on_kept": False,
            "plain_attention": False,
            "onednn_products": onednn_is_faster(),
            "memory": "fast",
            "precision": "fp32",
            "compile": False,
        }
        assert log.count(f"finished: {cfg.folder}") == 1
        assert log.count(f"{cfg.run_name}: epoch ") == log.count(": epoch ") == 2


def test_a_run_that_diverges_fails_alone(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [("1e-2", "0", 0), ("1e30", "0", 0), ("3e-3", "0", 1)]
    alone, together = (configure(root=name, settings=settings) for name in ("alone", "together"))
    assert train_together(together) == [0, 1, 0]
    for index in (0, 2):
        execute(alone[index], CALL)
        assert_same_run(together[index], alone[index])
    failed = json.loads((together[1].folder / "failed.json").read_text())
    assert failed["error"] == "RunError"
    assert failed["message"].startswith("the loss became ")
    assert not (together[1].folder / "result.json").exists()
    assert capsys.readouterr().err.count(f"error: {failed['message']}") == 1
    again = train_together(together)
    assert again == [0, 1, 0], "finished runs are skipped, the failed one fails again"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_interrupted_runs_go_on_together_and_with_a_run_that_is_ahead(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trainer.epochs=3"]
    alone, together = (configure(*words, root=name) for name in ("alone", "together"))
    for cfg in alone:
        execute(cfg, CALL)
    saved: list[Path] = []
    original = parallel_fit.save_checkpoint

    def save(path: Path, *args: object) -> None:
        original(path, *args)  # pyright: ignore[reportArgumentType]
        saved.append(path)
        if len(saved) == 4:  # the second epoch of the first run
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parallel_fit, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            train_together(together)
    done = [torch.load(cfg.folder / "last.ckpt", weights_only=True)["progress"]["epochs_done"] for cfg in together]
    assert done == [2, 1, 1]
    for cfg in together:
        assert "can be resumed with the same command" in (cfg.folder / "train.log").read_text()
        assert not (cfg.folder / "failed.json").exists()
    assert train_together(together) == [0, 0, 0]
    for own, other in zip(together, alone, strict=True):
        assert_same_run(own, other)
        assert {path.name for path in own.folder.iterdir()} == FILES
        assert read_result(own.folder / "result.json").env["parallel_runs"] == 3


def test_a_run_begun_together_may_be_finished_alone_and_the_other_way(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, mixed = (configure(root=name) for name in ("alone", "mixed"))
    for cfg in alone:
        execute(cfg, CALL)
    with monkeypatch.context() as patch:
        patch.setattr("gift_vit.tracking.progress.Progress.epoch_done", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(mixed[0], CALL)
        with pytest.raises(KeyboardInterrupt):
            train_together(mixed[1:])
    assert json.loads((mixed[0].folder / "metrics.jsonl").read_text()).get("parallel_runs") is None
    execute(mixed[1], CALL)
    assert train_together([mixed[0], mixed[2]]) == [0, 0]
    for own, other in zip(mixed, alone, strict=True):
        assert_same_run(own, other)
    assert [read_result(cfg.folder / "result.json").env["parallel_runs"] for cfg in mixed] == [2, 2, 2]


REFUSED = {
    "dropout": (["method=lora", "method.dropout=0.1"], r"draws random numbers \(dropout\); set trainer.parallel_runs=1"),
    "random numbers of peft": (["method=loha"], r"cannot be trained beside others: vmap: called random operation"),
    "control flow": (["method=vblora"], r"cannot be trained beside others: vmap: It looks like"),
    "no such model": (["method.rank=99"], r"method.rank=99 is larger than the target's d_in=64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_together_is_one_line_in_each_folder(
    configure: Configure, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = REFUSED[name]
    configs = configure(*words, root="runs")
    assert train_together(configs) == [2, 2, 2]
    for cfg in configs:
        failed = json.loads((cfg.folder / "failed.json").read_text())
        assert failed["error"] == "ConfigError"
        assert re.search(message, failed["message"])
        assert "\n" not in failed["message"]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_folder_in_use_stops_only_its_own_run(configure: Configure) -> None:
    configs = configure("method=linear", root="runs")
    with locked_folder(configs[1].folder):
        assert train_together(configs) == [0, 2, 0]
    assert train_together(configs) == [0, 0, 0]
