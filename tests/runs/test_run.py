"""A run is a folder: how far it is, and everything that can be read from it, whole or damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf

from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig, load_config
from gift_vit.config.loader import check_present
from gift_vit.engine.state import Precision, product_precision_kept
from gift_vit.runs.build import resolve_device
from gift_vit.runs.run import Run, find_runs, locked_folder
from gift_vit.runs.train import Call, train_run
from gift_vit.runs.verify import Untruth, verify_run
from tests.conf.files import composed

FAILURE = json.dumps({"error": "RunError", "message": "no space left", "failed_at": "2026-01-01", "traceback": "Traceback"})
PRUNED = json.dumps({"message": "stopped after epoch 3", "epochs": 3, "val_top1": 50.0})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The configuration of a finished search run of one epoch."""
    root = tmp_path_factory.mktemp("finished")
    words = ["debug=smoke", "backbone.img_size=32", "trainer.speed=exact", f"paths.output_root={root}"]
    cfg = load_config(composed(*words))
    train_run(cfg, Call("python -m gift_vit.train", []))
    return cfg


@pytest.fixture
def copied(finished: RunConfig, tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return shutil.copytree(finished.folder, tmp_path / "run")


STATES: dict[str, tuple[dict[str, str], str, str]] = {
    "an empty folder": ({}, "missing", ""),
    "a checkpoint": ({"last.ckpt": ""}, "interrupted", ""),
    "a configuration without a checkpoint": ({"config.yaml": "", "train.log": ""}, "missing", ""),
    "a failure": ({"last.ckpt": "", "failed.json": FAILURE}, "failed", "no space left"),
    "a damaged failure": ({"failed.json": "{"}, "failed", "failed.json cannot be read"),
    "a failure of another form": ({"failed.json": '{"message": 1}'}, "failed", "failed.json cannot be read"),
    "stopped early": ({"last.ckpt": "", "pruned.json": PRUNED}, "pruned", "stopped after epoch 3"),
    "stopped early, damaged": ({"pruned.json": "[]"}, "pruned", "pruned.json cannot be read"),
    "a result": ({"result.json": "", "last.ckpt": "", "failed.json": FAILURE}, "done", ""),
}


@pytest.mark.parametrize("name", STATES)
def test_states(tmp_path: Path, name: str) -> None:
    files, state, reason = STATES[name]
    run = Run.open(tmp_path / "run")
    assert (run.state, run.reason) == ("missing", "")
    run.folder.mkdir()
    for file, text in files.items():
        (run.folder / file).write_text(text)
    assert run.state == state
    assert run.reason.removeprefix(f"{run.folder}/") == reason
    with locked_folder(run.folder):
        assert (run.state, run.reason) == (("done" if state == "done" else "running"), "")
    assert run.state == state


def test_a_finished_run_tells_everything(finished: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run")
    assert (run.state, run.result, run.values) == ("missing", None, {})
    shutil.copytree(finished.folder, run.folder)
    assert run.result == Run.open(finished.folder).result, "asked again, now that there is one"
    assert run.values == finished.values
    run = Run.open(finished.folder)
    assert (run.state, run.reason, run.failure, run.imported) == ("done", "", None, None)
    assert run.config == finished
    assert run.values == finished.values
    assert run.result is not None
    assert run.result.metrics["val_top1"] == run.curve()[-1]["val_top1"]
    assert (run.split(), run.split("train")) == ("val", "train")
    with pytest.raises(ConfigError, match=r"is a search run, and test is for the final phase; train it with phase=final"):
        run.split("test")
    assert run.data().fingerprint == run.result.data.fingerprint
    model = run.model()
    assert (next(model.parameters()).device.type, model.training) == ("cpu", False)


def test_what_is_not_there_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "nowhere")
    assert (run.result, run.failure, run.imported, run.values, run.curve()) == (None, None, None, {}, [])
    for ask in (lambda: run.config, run.split, run.model, run.data, run.check_finished):
        with pytest.raises(ConfigError, match=r"nowhere is no run folder: it holds no config.yaml; give run=<a folder below"):
            ask()


def test_a_run_that_is_not_finished_has_no_model(copied: Path) -> None:
    (copied / "result.json").unlink()
    run = Run.open(copied)
    assert run.config.seed == 0
    for ask in (run.model, run.data):
        with pytest.raises(ConfigError, match=r"is not finished: it holds no result.json; start its training again to finish"):
            ask()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [", "config.yaml cannot be read ("),
        ("- 1", "config.yaml is no configuration of a run"),
        ("seed: 0", "the config has no "),
        ("\x00", "config.yaml cannot be read ("),
    ],
)
def test_a_damaged_configuration_is_one_line(copied: Path, text: str, message: str) -> None:
    (copied / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        _ = Run.open(copied).config
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Run.open(copied).values in ({}, {"seed": 0})


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("{", "delete it and start the run again"),
        ("[]", "delete it and start the run again"),
        ('{"schema": 7}', "made by another version of gift_vit; read it with that one, or move it away"),
    ],
)
def test_a_damaged_result_is_one_line(copied: Path, text: str, remedy: str) -> None:
    (copied / "result.json").write_text(text)
    assert Run.open(copied).state == "done"
    with pytest.raises(ConfigError, match=rf"result.json is no readable result: .*; {remedy}"):
        _ = Run.open(copied).result


def test_a_curve_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    lines = [
        '{"epoch": 0, "train_loss": 2, "val_top1": NaN}',
        "[1]",
        '{"train_loss": 1}',
        '{"epoch": 1, "lr": 0.1}',
        '{"epoch": 2',
    ]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    assert Run.open(tmp_path).curve() == [{"epoch": 0.0, "train_loss": 2.0}, {"epoch": 1.0, "lr": 0.1}]


def test_a_failure_is_told_whole(tmp_path: Path) -> None:
    (tmp_path / "failed.json").write_text(FAILURE)
    failure = Run.open(tmp_path).failure
    assert failure is not None
    assert (failure.error, failure.message, failure.traceback) == ("RunError", "no space left", "Traceback")


def test_a_model_on_other_pretrained_weights_is_refused(tmp_path: Path, configure: Callable[..., RunConfig]) -> None:
    weights = tmp_path / "weights.pth"
    words = ["backbone.pretrained=true", f"backbone.weights={weights}", "trainer.epochs=1", "backbone.img_size=32"]
    torch.manual_seed(1)
    one, other = (timm.create_model("test_vit", img_size=32).state_dict() for _ in range(2))
    torch.save(one, weights)
    cfg = configure(*words)
    train_run(cfg, Call("python -m gift_vit.train", []))
    Run.open(cfg.folder).model()
    torch.save(other, weights)
    with pytest.raises(ConfigError, match=r"was trained on other pretrained weights than test_vit\S* loads now; restore them"):
        Run.open(cfg.folder).model()
    moved = tmp_path / "moved.pth"
    torch.save(one, moved)
    weights.unlink()
    for look in (Run.open(cfg.folder).check_present, Run.open(cfg.folder).model):
        with pytest.raises(ConfigError) as caught:
            look()
        place = f"give backbone.weights=<where it is now>, in {cfg.folder}/config.yaml"
        assert str(caught.value) == f"backbone.weights={weights}: no such file; {place}"
    config = cfg.folder / "config.yaml"
    config.write_text(config.read_text().replace(str(weights), str(moved)))
    assert list(verify_run(Run.open(cfg.folder)))[-1].startswith("scored again: ")
    config.write_text(config.read_text().replace("model: test_vit", "model: test_vit2"))
    with pytest.raises(Untruth, match=r"backbone\.model is test_vit2"):
        list(verify_run(Run.open(cfg.folder)))


def test_the_file_that_toast_started_from_is_not_asked_for_again(configure: Callable[..., RunConfig]) -> None:
    cfg = configure("method=toast", "trainer.epochs=1")
    train_run(cfg, Call("python -m gift_vit.train", []))
    config = OmegaConf.load(cfg.folder / "config.yaml")
    assert config.method.weights is None
    config.method.weights = "/nowhere/decoders.pth"
    OmegaConf.save(config, cfg.folder / "config.yaml")
    run = Run.open(cfg.folder)
    with pytest.raises(ConfigError, match="no such file"):
        check_present(run.config)  # as a new start would
    run.check_present()


def test_runs_are_found_wherever_they_are_below_the_roots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there = {"a/done": "result.json", "a/failed": "failed.json", "b/c/begun": "train.log", "b/imported": "imported.json"}
    for folder, file in {**there, "a/empty": "notes.txt"}.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).touch()
    (tmp_path / "b/c/begun/config.yaml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = [run.folder.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path, tmp_path / "a")]
    assert found == ["a/done", "a/failed", "b/c/begun"]
    assert caplog.messages == []
    assert find_runs(tmp_path / "nowhere") == []
    (tmp_path / "a/elsewhere").symlink_to(tmp_path / "b")  # as a folder of results on another disk
    (tmp_path / "b/c/back").symlink_to(tmp_path / "a")
    found = [run.folder.relative_to(tmp_path / "a").as_posix() for run in find_runs(tmp_path / "a")]
    assert found == ["done", "elsewhere/c/begun", "failed"]
    assert len(find_runs(tmp_path)) == 3


def test_a_device_computes_in_full_float32_whatever_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run draws from its data, maps and inversions come before or without a precision of their own."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with product_precision_kept():
        Precision("tf32", torch.device("cuda"))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        resolve_device("cuda")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
