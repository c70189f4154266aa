"""One run from its configuration to its record: what it leaves, what it refuses, and what interruptions and failures leave.

A run of three epochs takes a second: tests that compare several take over 3 s.
"""

import errno
import io
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import gift_vit.engine.fit as fit_module
import gift_vit.runs.train as run_module
from gift_vit.backbones.build import input_statistics
from gift_vit.common.environment import onednn_is_faster
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path
from gift_vit.config import RunConfig, compose_config, load_config
from gift_vit.config.compose import flatten
from gift_vit.data.base import build_dataset
from gift_vit.data.transforms import build_eval_transform
from gift_vit.engine.fit import Tally
from gift_vit.methods import merge_method
from gift_vit.results.notes import commits
from gift_vit.runs.build import score
from gift_vit.runs.result import read_result, write_result
from gift_vit.runs.run import Run, locked_folder
from gift_vit.runs.train import Call, train_run
from gift_vit.tracking.wandb_run import WandbTracker
from tests.runs.conftest import history
from tests.tolerance import TOLERANCE
from tests.warm import Process

CALL = Call("python -m gift_vit.train", ["debug=smoke"])
FILES = {"config.yaml", "metrics.jsonl", "train.log", "adapter.safetensors", "result.json"}
Configure = Callable[..., RunConfig]


def test_a_finished_search_run_holds_what_the_design_says_and_never_saw_the_test_split(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configure("phase=search")
    monkeypatch.setattr(run_module, "git_state", lambda: ("now", (cfg.folder / "metrics.jsonl").exists()))
    result = train_run(cfg, CALL)
    assert (result.run.git_sha, result.run.git_dirty, result.run.earlier_commits) == ("now", False, None), "of when it began"
    assert {path.name for path in cfg.folder.iterdir()} == FILES
    assert cfg.folder.parts[-5:] == ("search", "digits", "gift", "test_vit", "clean_lr0.001_wd0.0001_seed0")
    assert result.metrics["test_top1"] is None
    assert result.metrics["val_top1"] == history(cfg)[-1]["val_top1"]
    assert result.metrics["train_loss"] == history(cfg)[-1]["train_loss"]
    assert (result.data.train_split, result.data.train_images) == ("train", 800)
    steps, seconds = 3 * -(-800 // cfg.trainer.batch_size), result.cost.train_seconds
    assert result.cost.images_per_s == pytest.approx(3 * 800 / seconds)
    assert result.cost.step_time_ms == pytest.approx(1000 * seconds / steps)
    assert read_result(cfg.folder / "result.json") == result
    assert set(load_file(cfg.folder / "adapter.safetensors")) == {
        "gift.attn.proj.phi",
        "gift.attn.proj.psi",
        "head.weight",
        "head.bias",
    }


def test_a_final_run_trains_on_what_the_protocol_says_and_scores_test_once(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    original = run_module.score
    monkeypatch.setattr(run_module, "score", lambda *given: scored.append(given[3]) or original(*given))
    clean = train_run(configure("phase=final"), CALL)
    assert (clean.data.train_split, clean.data.train_images, clean.data.test_images) == ("trainval", 1000, 797)
    assert clean.metrics["val_top1"] is None
    assert scored == ["test"]
    paper = train_run(configure("phase=final", "protocol=gift_paper", "run_name=paper"), CALL)
    assert (paper.data.train_split, paper.data.train_images) == ("train", 800)
    assert paper.metrics["val_top1"] is not None
    assert scored == ["test", "test"]
    assert paper.run.protocol_changes["trainer.epochs"] == [100, 3]
    assert "optim.schedule" not in paper.run.protocol_changes


def test_test_top1_is_what_the_saved_adapter_scores_by_hand(configure: Configure) -> None:
    cfg = configure("phase=final")
    result = train_run(cfg, CALL)
    run = Run.open(cfg.folder)
    data, model = run.data(), run.model()
    assert score(run.config, model, data, "test", torch.device("cpu")).top1 == result.metrics["test_top1"]
    test = data.split("test")
    transform = build_eval_transform(run.config.dataset.transform, input_statistics(model))
    images = torch.stack([transform(test[i][0]) for i in range(len(test))])
    with torch.no_grad():
        logits = model(images)
        merged = merge_method(model)(images)
    correct = (logits.argmax(1) == torch.from_numpy(test.labels)).double().mean()
    assert result.metrics["test_top1"] == pytest.approx(100 * correct.item(), abs=1e-9)
    torch.testing.assert_close(merged, logits, **TOLERANCE[torch.float32])


def test_a_finished_run_is_a_no_op_and_another_configuration_there_is_an_error(
    configure: Configure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configure("run_name=mine")
    first = train_run(cfg, CALL)
    before = {path: path.stat().st_mtime_ns for path in cfg.folder.iterdir()}
    for name in ("build_dataset", "open_data", "build_to_train"):
        monkeypatch.setattr(run_module, name, None)  # nothing may be built
    with caplog.at_level(logging.INFO):
        assert train_run(configure("run_name=mine", "trainer.workers=3"), CALL) == first
    assert "finished already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in cfg.folder.iterdir()} == before
    with pytest.raises(ConfigError, match=r"another configuration \(optim.lr is 0.001 there, 0.002 now\); give run_name"):
        train_run(configure("run_name=mine", "optim.lr=0.002"), CALL)
    with pytest.raises(ConfigError, match=r"there, /new/w now\); if these are the same weights, type their old place"):
        train_run(configure("run_name=mine", "backbone.model=/new/w"), CALL)


def write_images(root: Path, splits: dict[str, int], shade: int) -> Path:
    for split, count in splits.items():
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (20 + index, 30), (shade, 10 * index, 0)).save(root / split / label / f"{index}.png")
    return root


def test_a_finished_run_does_not_answer_for_other_data(configure: Configure, tmp_path: Path) -> None:
    words = ["dataset=folder", "trainer.batch_size=8", "dataset.val_fraction=0.25"]
    mine = write_images(tmp_path / "mine/images", {"train": 8}, shade=10)
    yours = write_images(tmp_path / "yours/images", {"train": 9}, shade=200)
    first = configure(*words, f"dataset.root={mine}")
    result = train_run(first, CALL)
    other = configure(*words, f"dataset.root={yours}")
    assert other.folder == first.folder
    with pytest.raises(ConfigError, match=r"was trained on other data than folder_images holds now"):
        train_run(other, CALL)
    moved = shutil.copytree(mine, tmp_path / "moved/images")
    assert train_run(configure(*words, f"dataset.root={moved}"), CALL) == result


def test_pictures_that_changed_in_files_of_the_same_size_are_other_data(configure: Configure, tmp_path: Path) -> None:
    for place in ("one", "two"):  # bitmaps, whose size says nothing of what is on them
        root = write_images(tmp_path / place / "images", {"train": 8}, shade=10)
        for number, file in enumerate(sorted(root.rglob("*.png"))):
            Image.new("RGB", (20, 30), (number, 0, 200 * (place == "two"))).save(file, format="bmp")
    one, two = (
        configure(
            "dataset=folder", "trainer.batch_size=8", "dataset.val_fraction=0.25", f"dataset.root={tmp_path / place / 'images'}"
        )
        for place in ("one", "two")
    )
    result = train_run(one, CALL)
    assert build_dataset(one.dataset).fingerprint == build_dataset(two.dataset).fingerprint
    with pytest.raises(ConfigError, match=r"was trained on other data than folder_images holds now"):
        train_run(two, CALL)
    write_result(one.folder / "result.json", replace(result, data=replace(result.data, sample=None)))
    assert train_run(two, CALL).data.sample is None, "an older record does not know"


def test_data_that_has_changed_where_it_lies_is_other_data(configure: Configure, tmp_path: Path) -> None:
    """A finished run does not answer for it; where it is gone the record is what there is."""
    root = write_images(tmp_path / "images", {"train": 8}, shade=10)
    cfg = configure("dataset=folder", f"dataset.root={root}", "trainer.batch_size=8", "dataset.val_fraction=0.25")
    result = train_run(cfg, CALL)
    assert train_run(cfg, CALL) == result
    shutil.copytree(root / "train/a", root / "train/c")
    with pytest.raises(ConfigError, match=r"was trained on other data than folder_images holds now"):
        train_run(cfg, CALL)
    shutil.rmtree(root)
    assert train_run(cfg, CALL) == result


def test_a_picture_to_test_on_that_is_cut_short_is_told_before_the_training(configure: Configure, tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", {"train": 8, "test": 2}, shade=10)
    (root / "test/a/0.png").write_bytes((root / "test/a/0.png").read_bytes()[:60])
    words = ["dataset=folder", f"dataset.root={root}", "phase=final", "dataset.val_fraction=0.25", "trainer.batch_size=8"]
    cfg = configure(*words, "trainer.epochs=1")
    with pytest.raises(ConfigError, match=r"cannot decode image .*/test/a/0\.png"):
        train_run(cfg, CALL)
    assert not (cfg.folder / "metrics.jsonl").exists()
    shutil.copy(root / "test/b/0.png", root / "test/a/0.png")
    assert train_run(cfg, CALL).metrics["test_top1"] is not None


def test_a_start_that_is_refused_leaves_what_was_trained(configure: Configure, tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", {"train": 8}, shade=10)
    cfg = configure("dataset=folder", f"dataset.root={root}", "trainer.batch_size=8", "dataset.val_fraction=0.25")
    interrupted(cfg)
    (cfg.folder / "metrics.jsonl").write_text('{"epoch": 0}\n')
    shutil.copytree(root / "train/a", root / "train/c")
    with pytest.raises(ConfigError, match=r"last.ckpt was trained on other data"):
        train_run(cfg, CALL)
    assert (cfg.folder / "metrics.jsonl").read_text() == '{"epoch": 0}\n'


def test_what_was_read_is_said_and_recorded(configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "images", {"train": 8, "test": 1}, shade=10)  # a and b look the same, as do 0.png
    cfg = configure("dataset=folder", f"dataset.root={root}", "trainer.batch_size=8", "dataset.val_fraction=0.25")
    with caplog.at_level(logging.INFO):
        data = train_run(cfg, CALL).data
    assert "  val: 4 images of 2 classes, from train/; val is split off train: 4 of 16, stratified, seed 0" in caplog.messages
    assert any("pictures are there under more than one label" in message for message in caplog.messages)
    assert data.class_names == ["a", "b"]
    assert data.splits is not None
    assert data.splits["val"]["drawn"] == "split off train: 4 of 16, stratified, seed 0"
    assert {split: (report["images"], report["files"]) for split, report in data.splits.items()} == {
        "train": (12, ["train/"]), "val": (4, ["train/"]), "test": (2, ["test/"]),
    }  # fmt: skip
    assert data.shared["train, test"] + data.shared.get("val, test", 0) >= 1
    assert data.warnings
    unchecked = configure(
        "dataset=folder", f"dataset.root={root}", "dataset.check_duplicates=false", "dataset.val_fraction=0.25"
    )
    assert (unchecked.folder, unchecked.dataset.check_duplicates) == (cfg.folder, False), "it is the same run"


def test_a_final_run_without_a_test_split_says_so_before_it_trains(configure: Configure, tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", {"train": 8}, shade=10)
    cfg = configure("dataset=folder", f"dataset.root={root}", "phase=final", "dataset.val_fraction=0.25")
    with pytest.raises(
        ConfigError, match=r"dataset folder_images has no test split \(it has train, val\), on which .*: add one"
    ):
        train_run(cfg, CALL)
    assert [path.name for path in tmp_path.iterdir()] == ["images"], "nothing is left where nothing began"


def test_a_start_that_never_trained_does_not_block_a_corrected_one(configure: Configure) -> None:
    wrong = configure("method.rank=99", "trainer.epochs=1")
    with pytest.raises(ConfigError, match=r"method.rank=99 is larger than the target.s d_in=64"):
        train_run(wrong, CALL)
    right = configure("method.rank=4", "trainer.epochs=1")
    assert right.folder == wrong.folder
    train_run(right, CALL)
    assert {path.name for path in right.folder.iterdir()} == FILES


def test_a_finished_run_answers_from_a_folder_that_cannot_be_written(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configure("trainer.epochs=1")
    first = train_run(cfg, CALL)
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and writable(path, mode))  # root is refused nothing
    monkeypatch.setattr("gift_vit.runs.train.locked_folder", None)
    assert train_run(cfg, CALL) == first


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(cfg: RunConfig, sabotage: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Run in a child process that kills itself with SIGKILL at the sabotaged moment."""

    def action() -> None:
        with pytest.MonkeyPatch.context() as patch:
            sabotage(patch)
            train_run(cfg, CALL)

    with Process(action) as process:
        assert process.wait().returncode == -signal.SIGKILL, "the run ended before the moment it was to be killed at"


def in_step(patch: pytest.MonkeyPatch) -> None:
    """In the middle of the second epoch."""
    original = torch.optim.AdamW.step
    calls: list[int] = []
    patch.setattr(torch.optim.AdamW, "step", lambda *a, **k: die() if len(calls) == 5 else calls.append(1) or original(*a, **k))


def while_writing_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    original = torch.save
    calls: list[int] = []

    def save(state: object, path: Path) -> None:
        original(state, path)
        calls.append(1)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:1000])
            die()

    patch.setattr(torch, "save", save)


def after_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """Between the checkpoint of the first epoch and its line in metrics.jsonl."""
    original = fit_module.save_checkpoint
    patch.setattr(fit_module, "save_checkpoint", lambda *a: (original(*a), die()))


def before_the_result(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_module, "write_result", die)


MOMENTS = [in_step, while_writing_a_checkpoint, after_a_checkpoint, before_the_result]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that nothing has interrupted."""
    words = [
        "debug=smoke",
        "backbone.img_size=32",
        "trainer.epochs=3",
        "trainer.drop_path_rate=0.2",
        f"paths.output_root={tmp_path_factory.mktemp('a')}",
    ]
    cfg = load_config(compose_config(words))
    train_run(cfg, CALL)
    return cfg


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_killed_and_started_again_ends_bit_identical(
    configure: Configure, whole: RunConfig, moment: Callable[[pytest.MonkeyPatch], None]
) -> None:
    cut = configure("trainer.drop_path_rate=0.2")
    killed(cut, moment)
    assert Run.open(cut.folder).state == "interrupted"
    result = train_run(cut, CALL)
    assert result.metrics == read_result(whole.folder / "result.json").metrics
    assert history(cut) == history(whole)
    assert (cut.folder / "adapter.safetensors").read_bytes() == (whole.folder / "adapter.safetensors").read_bytes()
    assert {path.name for path in cut.folder.iterdir()} == FILES


def test_a_run_does_not_go_on_with_other_pretrained_weights(configure: Configure, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    cfg = configure("backbone.pretrained=true", f"backbone.weights={weights}")
    one, other = (timm.create_model("test_vit", img_size=32).state_dict() for _ in range(2))
    torch.save(one, weights)
    killed(cfg, in_step)
    torch.save(other, weights)
    with pytest.raises(ConfigError, match=r"other pretrained weights than there are now; delete it to start the run over"):
        train_run(cfg, CALL)
    torch.save(one, weights)
    assert train_run(cfg, CALL).metrics["epochs"] == 3


def test_killed_with_loader_workers_on_it_is_started_again_at_once(configure: Configure) -> None:
    """The workers outlive their parent by seconds; they hold neither lock nor folder."""
    cfg = configure("trainer.workers=2", "trainer.drop_path_rate=0.2")
    killed(cfg, in_step)
    assert Run.open(cfg.folder).state == "interrupted"
    assert train_run(cfg, CALL).metrics["epochs"] == 3


def test_killed_between_the_result_and_the_end_is_finished(configure: Configure) -> None:
    cfg = configure()

    def after_the_result(patch: pytest.MonkeyPatch) -> None:
        original = run_module.write_result
        patch.setattr(run_module, "write_result", lambda *a: (original(*a), die()))

    killed(cfg, after_the_result)
    assert (cfg.folder / "last.ckpt").exists()
    assert train_run(cfg, CALL) == read_result(cfg.folder / "result.json")
    assert {path.name for path in cfg.folder.iterdir()} == FILES


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def interrupted(cfg: RunConfig) -> None:
    """Train until the first checkpoint is written, and no further."""
    with pytest.MonkeyPatch.context() as patch:
        original = fit_module.save_checkpoint
        patch.setattr(fit_module, "save_checkpoint", lambda *a: (original(*a), interrupt()))
        with pytest.raises(KeyboardInterrupt):
            train_run(cfg, CALL)


def test_a_run_that_other_code_went_on_with_says_so(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configure()
    for code in (("a" * 40, True), ("b" * 40, False)):
        monkeypatch.setattr(run_module, "git_state", lambda code=code: code)
        if code[1]:
            interrupted(cfg)
    result = train_run(cfg, CALL)
    assert (result.run.git_sha, result.run.git_dirty, result.run.earlier_commits) == ("b" * 40, False, [f"{'a' * 40}-dirty"])
    said = f"goes on with commit {'b' * 40}, and was trained with {'a' * 40}-dirty so far"
    assert said in (cfg.folder / "train.log").read_text()
    assert read_result(cfg.folder / "result.json") == result
    assert commits([result]) == f"{'a' * 12}, {'b' * 12}"


def test_ctrl_c_leaves_a_resumable_run_without_failure(configure: Configure) -> None:
    cfg = configure()
    interrupted(cfg)
    assert (cfg.folder / "last.ckpt").is_file()
    assert not (cfg.folder / "failed.json").exists()
    assert "can be resumed with the same command" in (cfg.folder / "train.log").read_text()
    assert train_run(cfg, CALL).metrics["epochs"] == 3


def test_ctrl_c_before_the_first_checkpoint_says_that_nothing_is_resumed(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "fit", Mock(side_effect=KeyboardInterrupt))
    cfg = configure()
    with pytest.raises(KeyboardInterrupt):
        train_run(cfg, CALL)
    assert Run.open(cfg.folder).state == "missing"
    assert f"interrupted: {cfg.folder} begins anew with the same command" in (cfg.folder / "train.log").read_text()


def test_a_run_that_is_resumed_on_data_that_has_moved_knows_where_it_is_and_says_what_to_do_if_it_moves_again(
    configure: Configure, tmp_path: Path
) -> None:
    words = ["dataset=folder", "trainer.batch_size=8", "dataset.val_fraction=0.25"]
    root = write_images(tmp_path / "images", {"train": 8}, shade=10)
    interrupted(configure(*words, f"dataset.root={root}"))
    (tmp_path / "moved").mkdir()
    moved = root.rename(tmp_path / "moved/images")
    cfg = configure(*words, f"dataset.root={moved}")
    result = train_run(cfg, CALL)
    run = Run.open(cfg.folder)
    assert run.values == result.run.config
    run.check_present()
    moved.rename(root)
    for look in (run.check_present, run.data):
        with pytest.raises(ConfigError, match=r"there is no folder .*; or give dataset_root=<where it is now>$"):
            look()
    Run.open(cfg.folder, str(root)).check_present()


def test_nan_loss_is_recorded_with_its_place_and_a_new_start_removes_the_record(configure: Configure) -> None:
    cfg = configure("optim.lr=1e30", "trainer.precision=fp32")
    with pytest.raises(RunError, match=r"the loss became (nan|inf) in epoch \d, step \d"):
        train_run(cfg, CALL)
    failed = json.loads((cfg.folder / "failed.json").read_text())
    assert failed["error"] == "RunError"
    assert "the loss became" in failed["message"]
    assert "Traceback" in failed["traceback"]
    assert not (cfg.folder / "result.json").exists()


def spoil_logits(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Give NaN for one image of every batch, from one tally on."""
    original, create, calls = Tally.add, Tally.__init__, []
    monkeypatch.setattr(Tally, "__init__", lambda *told, **named: calls.append(told) or create(*told, **named))

    def add(self: Tally, logits: torch.Tensor, labels: torch.Tensor) -> None:
        original(self, logits.index_fill(0, torch.tensor([0]), float("nan")) if len(calls) > call else logits, labels)

    monkeypatch.setattr(Tally, "add", add)


@pytest.mark.parametrize(("phase", "call", "where"), [("search", 1, "on val after epoch 1"), ("final", 0, "on test")])
def test_no_score_is_computed_from_nan(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, phase: str, call: int, where: str
) -> None:
    cfg = configure(f"phase={phase}", "protocol=clean")
    spoil_logits(monkeypatch, call)
    with pytest.raises(RunError, match=rf"no score {where}: logits of \d+ of \d+ examples are NaN or infinite; lower optim.lr"):
        train_run(cfg, CALL)
    assert where in json.loads((cfg.folder / "failed.json").read_text())["message"]
    lines = (cfg.folder / "metrics.jsonl").read_text() if (cfg.folder / "metrics.jsonl").is_file() else ""
    assert "NaN" not in lines
    assert len(lines.splitlines()) == (call if phase == "search" else 3)
    assert not (cfg.folder / "result.json").exists()


def test_a_run_that_cannot_keep_its_predictions_has_failed_for_its_tracker_too(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()

    class Tracker(WandbTracker):
        def __enter__(self) -> "Tracker":
            return self

        def finish(self, summary: object, adapter: object) -> None:
            told.append("finished")

        def fail(self, reason: str) -> None:
            told.append(reason)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(run_module, "WandbTracker", Tracker)
    monkeypatch.setattr(run_module, "keep_predictions", Mock(side_effect=RunError("no space left")))
    with pytest.raises(RunError, match="no space left"):
        train_run(configure("phase=final", "tracker=wandb", "trainer.epochs=1"), CALL)
    assert told == ["RunError: no space left"]


def test_a_rate_that_diverges_within_one_epoch_ends_in_a_failure(configure: Configure) -> None:
    """Its loss is finite: every step but the first would show more, and there is one."""
    cfg = configure("optim.lr=1e30", "optim.warmup_epochs=0", "trainer.epochs=1", "trainer.batch_size=2000")
    with pytest.raises(
        RunError, match=r"no score on val after epoch 0|a weight became NaN or infinite in the last update of epoch 0"
    ):
        train_run(cfg, CALL)


def test_a_finished_folder_without_its_configuration_answers_for_its_own_alone(configure: Configure) -> None:
    cfg = configure("trainer.epochs=1")
    result = train_run(cfg, CALL)
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("{"), lambda path: path.write_text("")):
        damage(cfg.folder / "config.yaml")
        assert train_run(cfg, CALL) == result
        with pytest.raises(ConfigError, match=r"holds a run of another configuration \(method.rank is 16 there, 4 now\)"):
            train_run(configure("method.rank=4", "trainer.epochs=1"), CALL)
        (cfg.folder / "config.yaml").write_text("gone")


def test_a_checkpoint_without_its_configuration_is_not_gone_on_with(configure: Configure) -> None:
    cfg = configure()
    killed(cfg, after_a_checkpoint)
    (cfg.folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"holds a last.ckpt and no readable config.yaml that says of what"):
        train_run(cfg, CALL)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, RunError), (errno.EACCES, ConfigError)])
@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl"])
def test_what_cannot_be_opened_is_one_line(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, name: str, number: int, kind: type[Exception]
) -> None:
    cfg = configure("trainer.epochs=1")
    original = io.open

    def refuse(file: object, mode: str = "r", *args: object, **kwargs: object) -> object:
        if Path(str(file)).name == name and "a" in mode:
            raise OSError(number, os.strerror(number), str(file))
        return original(file, mode, *args, **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(kind, match=f"{name}"):
        train_run(cfg, CALL)
    monkeypatch.undo()
    assert train_run(cfg, CALL).metrics["epochs"] == 1


def test_two_processes_cannot_train_in_one_folder(configure: Configure) -> None:
    cfg = configure("trainer.epochs=1")
    with locked_folder(cfg.folder), pytest.raises(ConfigError, match="another process is training in"):
        train_run(cfg, CALL)
    assert train_run(cfg, CALL).metrics["epochs"] == 1


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configure()
    original, calls = torch.save, []

    def save(state: object, path: Path) -> None:
        calls.append(1)
        if len(calls) > 1:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunError, match=r"no space left on the device while writing .*last.ckpt; free some and start"):
        train_run(cfg, CALL)
    assert torch.load(cfg.folder / "last.ckpt", weights_only=True)["progress"]["epochs_done"] == 1
    assert not list(cfg.folder.glob(".*partial"))
    monkeypatch.undo()
    assert train_run(cfg, CALL).metrics["epochs"] == 3


def test_a_gpu_whose_memory_is_short_is_one_line_with_what_needs_less(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 10.00 GiB of which 1.00 GiB is free."
    monkeypatch.setattr("gift_vit.runs.train.fit", Mock(side_effect=torch.OutOfMemoryError(short)))
    cfg = configure()
    with pytest.raises(RunError, match=r"too small \(CUDA out of memory.*; give trainer.memory=lean or minimal, "):
        train_run(cfg, CALL)
    assert "trainer.grad_accumulation" in json.loads((cfg.folder / "failed.json").read_text())["message"]


def test_a_really_full_device_is_recognised(tmp_path: Path) -> None:
    """On a file system of 256 KiB, where the machine lets us mount one; torch hides the system's error number."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=256k none {mount} 2>/dev/null") != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(RunError, match="no space left on the device"), atomic_path(mount / "last.ckpt") as partial:
            torch.save(torch.zeros(1_000_000), partial)
        assert list(mount.iterdir()) == []
    finally:
        os.system(f"umount -l {mount}")  # torch may still hold the file


def test_the_record_says_what_was_accelerated_and_it_makes_no_other_run(configure: Configure) -> None:
    plain = train_run(configure("trainer.cls_last_block=off", "trainer.drop_path_rate=0.2"), CALL)
    fixed = {"drop_path_on_kept": True, "plain_attention": False, "onednn_products": onednn_is_faster()}
    fixed |= {"precision": "fp32", "compile": False}
    assert plain.env["acceleration"] == {"cls_last_block": False, "memory": "fast"} | fixed
    lean = configure("trainer.memory=lean", "trainer.drop_path_rate=0.2")
    assert train_run(lean, CALL) == plain, "finished already"
    shutil.rmtree(lean.folder)
    result = train_run(lean, CALL)
    assert result.env["acceleration"] == {"cls_last_block": True, "memory": "lean"} | fixed
    assert result.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-3)


def test_a_gpu_settles_the_speed_and_a_resumed_run_keeps_it(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU picks is stood in for, by what a CPU computes as fast as float32; over 3 s."""
    cfg, exact = configure("trainer.speed=auto"), configure("trainer.speed=exact")
    monkeypatch.setattr(run_module, "settle_speed", lambda trainer, compute, *_: (replace(trainer, precision="tf32"), compute))
    interrupted(cfg)
    monkeypatch.setattr(run_module, "settle_speed", lambda trainer, compute, *_: (trainer, compute))  # another machine
    begun = cfg.folder / "config.yaml"
    begun.write_text(begun.read_text().replace("compile: false", "compile: true"))  # where kernels can be built
    result = train_run(cfg, CALL)
    assert dict(flatten(result.run.config))["trainer.compile"] is False
    assert result.env["acceleration"]["precision"] == "tf32"  # pyright: ignore[reportIndexIssue]
    recorded = Run.open(cfg.folder).config
    assert (recorded.trainer.precision, recorded.compute.speed) == ("tf32", "auto")
    assert dict(flatten(result.run.config))["trainer.precision"] == "tf32"
    assert train_run(cfg, CALL) == result, "finished already"
    with pytest.raises(ConfigError, match=r"\(trainer.speed is auto there, exact now\)"):
        train_run(replace(exact, folder=cfg.folder), CALL)


def test_on_a_cpu_the_speed_that_is_picked_is_exact(configure: Configure) -> None:
    cfg, exact = (configure("trainer.epochs=1", f"trainer.speed={speed}") for speed in ("auto", "exact"))
    result = train_run(cfg, CALL)
    assert Run.open(cfg.folder).config.compute.speed == "exact"
    assert train_run(replace(exact, folder=cfg.folder), CALL) == result, "finished already"
    assert train_run(cfg, CALL) == result
    other = replace(configure("trainer.epochs=1", "trainer.precision=bf16"), folder=cfg.folder)
    with pytest.raises(ConfigError, match=r"\(trainer.precision is fp32 there, bf16 now\)"):
        train_run(other, CALL)


@pytest.mark.parametrize("name", ["train.log", "config.yaml", "metrics.jsonl", "pruned.json"])
def test_a_folder_in_the_place_of_a_file_is_one_line(configure: Configure, name: str) -> None:
    cfg = configure("trainer.epochs=1")
    (cfg.folder / name / "x").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"cannot write .*seed0(/{name})? \("):
        train_run(cfg, CALL)
    assert Run.open(cfg.folder).result is None
