"""Verifying finds whatever is changed in a run's folder, and needs neither torch nor data for most of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import sha256_of
from gift_vit.config import RunConfig
from gift_vit.methods.adapter import applied_method, count_parameters, save_adapter
from gift_vit.methods.config import spec_of
from gift_vit.runs.build import build_model
from gift_vit.runs.run import Run
from gift_vit.runs.verify import NoAdapter, NoPredictions, Untruth, _check_adapter, verify_run, verify_runs
from tests.results.conftest import make_result
from tests.warm import run_module

OLD = Path(__file__).parent / "old_run/final/digits/gift/vit_mini/old"

Change = Callable[[Path, dict[str, Any]], None]
Configure = Callable[..., RunConfig]


def text(name: str, old: str, new: str) -> Change:
    """A file's text replaced once, its hash with it."""

    def change(folder: Path, record: dict[str, Any]) -> None:
        before = (folder / name).read_text()
        assert old in before
        (folder / name).write_text(before.replace(old, new, 1))
        if name in record["files"]:
            record["files"][name] = sha256_of(folder / name)

    return change


def value(path: str, new: Any) -> Change:
    """A value of the record; a function is given the old one."""

    def change(_: Path, record: dict[str, Any]) -> None:
        *sections, key = path.split("/")
        for section in sections:
            record = record[section]
        assert key in record
        record[key] = new(record[key]) if callable(new) else new

    return change


def other_label(folder: Path, record: dict[str, Any]) -> None:
    """The label of one image, its hash with it."""
    file = folder / "predictions.parquet"
    table = pq.read_table(file)
    labels = table["label"].to_numpy().copy()
    labels[0] = (labels[0] + 1) % 10
    pq.write_table(table.set_column(2, "label", [labels]), file)
    record["files"]["predictions.parquet"] = sha256_of(file)


def other_adapter(folder: Path, record: dict[str, Any]) -> None:
    """A byte of the last tensor."""
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter.safetensors").write_bytes(data)


def smaller_adapter(folder: Path, record: dict[str, Any]) -> None:
    """A count that suits percent and total, and the head takes the difference."""
    params = record["params"]
    params["head"] += params["adapter"] - 100
    params.update(adapter=100, percent=100 * 100 / params["backbone"], total=params["backbone"] + 100 + params["head"])


def other_rank(folder: Path, record: dict[str, Any]) -> None:
    """In the configuration and in the record."""
    text("config.yaml", "rank: 16", "rank: 4")(folder, record)
    value("run/config/method/rank", 4)(folder, record)


def without(name: str) -> Change:
    return lambda folder, _: (folder / name).unlink()


UNTRUTHS: dict[str, tuple[Change, str]] = {
    "adapter": (other_adapter, "adapter.safetensors has another SHA-256 than result.json says"),
    "predictions gone": (without("predictions.parquet"), "predictions.parquet is not there, result.json has its scores"),
    "predictions unknown": (value("predictions", None), "predictions.parquet is there, result.json knows none"),
    "predictions": (other_label, " by predictions.parquet, "),
    "hash": (value("files/metrics.jsonl", "0" * 64), "metrics.jsonl has another SHA-256"),
    "hashes": (value("files", {}), "result.json has no hash of adapter.safetensors, metrics.jsonl, predictions.parquet"),
    "top-1": (value("metrics/test_top1", lambda top1: top1 + 100 / 797), "test top-1 is "),
    "no share": (value("metrics/test_top1", 50.0), "test_top1 50.0 is no share of 797 images"),
    "val top-1": (value("metrics/val_top1", 50.5), "val_top1 ends with "),
    "loss": (value("metrics/test_loss", lambda loss: loss + 0.05), "the loss on test is "),
    "nll": (value("predictions/scores/nll", 2.0), "nll is "),
    "top-5": (value("predictions/scores/top5", lambda top5: top5 + 100 / 797), "top5 is "),
    "calibration": (value("predictions/scores/ece_scaled", 30.0), "ece_scaled is "),
    "confusions": (value("predictions/confusions", []), "the confusions of result.json are not those"),
    "images": (value("data/test_images", 1594), "has (images, classes) (797, 10) of test, result.json (1594, 10)"),
    "kept images": (value("predictions/images", {"test": 797}), "images are kept"),
    "classes": (value("data/num_classes", 11), "(797, 10) of test, result.json (797, 11)"),
    "trained on": (value("data/train_split", "trainval"), "trained on trainval, its protocol says train"),
    "epochs": (value("metrics/epochs", 2), "metrics.jsonl has 1 epochs, result.json 2"),
    "epoch": (text("metrics.jsonl", '"epoch": 0', '"epoch": 1'), "metrics.jsonl misses an epoch"),
    "train loss": (text("metrics.jsonl", '"train_loss": ', '"train_loss": 1'), "train_loss ends with "),
    "learning rate": (text("config.yaml", "lr: 0.001", "lr: 0.003"), "optim.lr is 0.003 in config.yaml, 0.001 in result.json"),
    "seed": (value("run/seed", 1), "result.json says seed 1, its config 0"),
    "method": (value("run/method", "lora"), "result.json says method lora, its config gift"),
    "kind": (value("run/kind", "lora"), "result.json says kind lora, its config gift"),
    "percent": (value("params/percent", 0.1), "params.percent is 0.1"),
    "parameters": (value("params/head", 10**6), "adapter.safetensors holds "),
    "no head": (value("params/head", 0), "adapter.safetensors holds 2698 parameters, result.json says 2048"),
    "head": (smaller_adapter, "adapter.safetensors has a head of 650 parameters, result.json says 2598"),
    "total": (value("params/total", 5), "params.total is 5, by backbone and adapter.safetensors it is 302794"),
    "rank": (other_rank, "method.rank is 16 in adapter.safetensors, 4 in config.yaml"),
    "protocol": (
        value("run/protocol_changes", {}),
        "the protocol says optim.warmup_epochs 10, the run used 0; result.json says no change",
    ),
    "bytes": (value("cost/adapter_bytes", 5), "bytes, result.json says 5"),
    "weights": (value("backbone/weights_sha256", "0"), "weights_sha256 of the backbone is "),
    "dataset": (value("data/name", "digitz"), "adapter.safetensors is of dataset digits"),
}


def changed(run: Run, change: Change) -> Run:
    record = json.loads((run.folder / "result.json").read_text())
    change(run.folder, record)
    (run.folder / "result.json").write_text(json.dumps({key: item for key, item in record.items() if item is not None}))
    return Run.open(run.folder)


@pytest.mark.parametrize("name", UNTRUTHS)
def test_an_untruth_is_found_without_the_data(name: str, copied_run: Run) -> None:
    change, message = UNTRUTHS[name]
    with pytest.raises(Untruth) as caught:
        list(verify_run(changed(copied_run, change), score=False))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_holds_is_said_line_by_line(final_run: Run, copied_run: Run, tmp_path: Path) -> None:
    done = run_module("gift_vit.verify", f"run={copied_run.folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert lines[-1] == "scored again: 0 of 797 images are predicted otherwise"
    assert len(list(verify_run(final_run, score=False))) == 6
    changed(copied_run, value("metrics/epochs", 2))
    done = run_module("gift_vit.verify", f"run={copied_run.folder}", "score=false", cwd=tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 3)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_scoring_again_finds_another_adapter_and_other_data(copied_run: Run, final_run: Run) -> None:
    """The record was changed to suit; over 3 s for two scorings."""

    def retrained(folder: Path, record: dict[str, Any]) -> None:
        file = folder / "adapter.safetensors"
        tensors = load_file(file)
        tensors["head.weight"] = -tensors["head.weight"]
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file(tensors, file, metadata)
        record["files"]["adapter.safetensors"] = sha256_of(file)

    with pytest.raises(Untruth, match=r"of 797 images are predicted otherwise when it is scored again"):
        list(verify_run(changed(copied_run, retrained)))
    restored = Run.open(shutil.copytree(final_run.folder, copied_run.folder, dirs_exist_ok=True))
    file = copied_run.folder / "predictions.parquet"
    table = pq.read_table(file)
    images = [f"other{index}" for index in range(len(table))]
    pq.write_table(table.set_column(1, "image", [images]), file)
    with pytest.raises(Untruth, match=r"has other images or labels of test than digits"):
        list(verify_run(changed(restored, value("files/predictions.parquet", sha256_of(file)))))
    changed(Run.open(shutil.copytree(final_run.folder, copied_run.folder, dirs_exist_ok=True)), value("data/fingerprint", "0"))
    with pytest.raises(Untruth, match=r"was trained on other data than digits holds now"):
        list(verify_run(Run.open(copied_run.folder)))


def test_a_folder_that_is_said_to_hold_the_data_and_does_not_is_an_error(
    final_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(final_run.config.dataset), "check_present", Mock(side_effect=ConfigError("there is no a/train")))
    *_, last = verify_run(final_run)
    assert last == "not scored again: its data is not there (dataset_root=<folder> says where it is)"
    with pytest.raises(ConfigError, match="there is no a/train"):
        list(verify_run(Run.open(final_run.folder, "a")))


def test_a_run_that_is_older_says_what_makes_its_predictions(tmp_path: Path) -> None:
    lines = []
    with pytest.raises(NoPredictions, match=r"make them with `python -m gift_vit.evaluate run=.*old keep_predictions=true`"):
        lines += verify_run(Run.open(OLD), score=False)
    done = run_module("gift_vit.verify", f"run={OLD}", "score=false", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), len(done.stdout.splitlines())) == (2, 1, 5)


@pytest.mark.parametrize(
    "words",
    [
        "adapter_houlsby",
        "apla",
        "bitfit",
        "full",
        "gift method.psi_bias=true",
        "knn",
        "lora_fa",
        "pissa",
        "toast_lite",
    ],
)
def test_parameters_add_up_whatever_a_method_keeps_beside_them(words: str, configure: Configure, tmp_path: Path) -> None:
    """Frozen projections, a start, a bank; parameters of the backbone's own."""
    cfg = configure(f"method={words.split()[0]}", *words.split()[1:], "phase=search")
    model = build_model(cfg, 10)
    save_adapter(model, tmp_path / "adapter.safetensors", dataset="digits")
    counts, size = asdict(count_parameters(model)), (tmp_path / "adapter.safetensors").stat().st_size
    backbone, total = applied_method(model).backbone, sum(parameter.numel() for parameter in model.parameters())
    changes = {"params": counts | {"total": total}, "backbone": backbone, "cost": {"adapter_bytes": size}}
    result = make_result(run={"kind": spec_of(cfg.method).kind}, **changes)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(cfg.values)))
    run = Run.open(tmp_path)
    assert "parameters of" in _check_adapter(run, result)
    with pytest.raises(Untruth, match=r"params\.total is "):
        _check_adapter(run, replace(result, params=replace(result.params, total=counts["backbone"] + counts["head"] - 1)))


def test_without_its_adapter_all_else_of_a_run_is_verified(copied_run: Run) -> None:
    run = changed(copied_run, without("adapter.safetensors"))
    with pytest.raises(NoAdapter, match=r"adapter\.safetensors is not there, so what was trained cannot be verified; all else"):
        list(verify_run(run))
    lines: list[str] = []
    with pytest.raises(RunError, match=r"^1 of 1 runs below "):
        lines += verify_runs(str(run.folder))
    assert lines[0].startswith(f"UNVERIFIED: {run.folder}: adapter.safetensors is not there")
    with pytest.raises(Untruth, match="test top-1 is "):
        list(verify_run(changed(run, value("metrics/test_top1", lambda top1: top1 + 100 / 797))))


def test_a_run_that_cannot_be_scored_does_not_hide_the_next(
    final_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(final_run.folder, tmp_path / name)

    for error, told in (
        (RunError("the weights cannot be fetched"), "the weights cannot be fetched"),
        (ValueError("what nobody\nhas foreseen"), "ValueError: what nobody has foreseen"),
    ):
        monkeypatch.setattr("gift_vit.runs.build.finished_model", Mock(side_effect=error))
        lines: list[str] = []
        with pytest.raises(RunError, match=r"^2 of 2 runs below "):
            lines += verify_runs(str(tmp_path))
        assert lines == [f"UNVERIFIED: {tmp_path / name}: {told}" for name in ("a", "b")]


def test_a_folder_of_runs(final_run: Run, tmp_path: Path) -> None:
    for name in ("a", "b", "unread"):
        shutil.copytree(final_run.folder, tmp_path / "runs" / name)
    shutil.copytree(OLD, tmp_path / "runs/old")
    (tmp_path / "runs/unread/result.json").write_text("{")
    changed(Run.open(tmp_path / "runs/b"), value("metrics/epochs", 2))
    done = run_module("gift_vit.verify", "runs=runs", "score=false", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: 2 of 4 runs below runs are not what their records say, or cannot be verified\n",
    )
    a, b, old, unread = done.stdout.splitlines()
    assert a.startswith("ok: runs/a: 6 checks hold; ")
    assert b.startswith("UNTRUE: runs/b: metrics.jsonl has 1 epochs")
    assert old.startswith("ok but for its scores: runs/old keeps no predictions")
    assert unread.startswith("UNVERIFIED: runs/unread/result.json is no readable result")
    with pytest.raises(ConfigError, match=r"runs=.*: there is no finished run below it"):
        list(verify_runs(str(tmp_path / "nowhere")))
