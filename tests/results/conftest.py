"""A factory of fabricated results, and calling a command in this process."""

import copy
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gift_vit.runs.result import CostRecord, DataRecord, ParamRecord, Result, RunRecord, read_result, write_result

CONFIG: dict[str, Any] = {
    "seed": 0,
    "run_name": "lr0.001_seed0",
    "method": {"kind": "gift", "rank": 16, "target_modules": ["attn.proj"]},
    **{"dataset": {}, "backbone": {}, "protocol": {}},
    "optim": {"lr": 0.001, "weight_decay": 0.01, "betas": [0.9, 0.999]},
    "trainer": {"workers": 2, "device": "cpu", "epochs": 5},
    "paths": {"output_root": "outputs", "data": "data"},
    "tracker": {"name": "csv", "mode": "offline"},
}


def make_result(
    method: str = "gift",
    dataset: str = "digits",
    seed: int = 0,
    top1: float | None = 90.0,
    val: float | None = None,
    adapter_bytes: int = 10_240,
    **changes: dict[str, Any],
) -> Result:
    """A final run, or with ``run={"phase": "search"}`` a search run without a test score.

    ``changes`` replace fields of its sections; those to ``config`` have dotted keys.
    """
    assert changes.keys() <= {"config", "run", "data", "backbone", "params", "cost", "env"}
    resolved = copy.deepcopy(CONFIG)
    run_values: dict[str, Any] = {
        "name": f"{dataset}/{method}/seed{seed}", "phase": "final", "dataset": dataset, "benchmark": "mini", "method": method,
        "kind": "gift", "backbone": "vit_mini", "protocol": "clean", "protocol_changes": {}, "seed": seed, "config": resolved,
        "overrides": [f"seed={seed}"], "command": "python -m gift_vit.train", "started_at": "2026-01-02T03:04:05+00:00",
        "git_sha": "0123456789abcdef", "git_dirty": False, "gift_vit_version": "0.1.0",
        **changes.get("run", {}),
    }  # fmt: skip
    facts = {"seed": seed, "run_name": f"{method}_seed{seed}", "phase": run_values["phase"], "dataset.name": dataset}
    facts |= {f"{section}.name": run_values[section] for section in ("method", "backbone", "protocol")}
    for key, value in (facts | {"dataset.benchmark": run_values["benchmark"]} | changes.get("config", {})).items():
        *sections, name = key.split(".")
        reduce(dict.__getitem__, sections, resolved)[name] = value
    scored = top1 is not None and run_values["phase"] == "final"
    data_values: dict[str, Any] = {
        "name": dataset, "fingerprint": f"sha-{dataset}", "num_classes": 10,
        "train_split": "trainval", "train_images": 1000, "val_images": None, "test_images": 400,
    }  # fmt: skip
    backbone_values: dict[str, Any] = {
        "architecture": "vit_mini_patch8_64", "tag": "tiny_imagenet", "input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "weights_sha256": "ab" * 32, "weights": "vit_mini.safetensors",
    }  # fmt: skip
    param_values = {"adapter": 6144, "head": 1930, "backbone": 2_700_000, "total": 2_708_074, "percent": 0.22755}
    return Result(
        run=RunRecord(**run_values),
        data=DataRecord(**(data_values | changes.get("data", {}))),
        backbone=backbone_values | changes.get("backbone", {}),
        params=ParamRecord(**(param_values | changes.get("params", {}))),
        metrics={"train_loss": 0.1, "val_top1": val, "epochs": 5}
        | {"test_top1": top1 if scored else None, "test_loss": 0.3 if scored else None},
        cost=CostRecord(**{
            "train_seconds": 12.5, "total_seconds": 20.0, "images_per_s": 400.0, "step_time_ms": 80.0,
            "peak_memory_mib": None, "peak_rss_mib": 900.5, "adapter_bytes": adapter_bytes, **changes.get("cost", {}),
        }),
        env={"python": "3.11.7", "torch": "2.6.0", "device": "cpu", "cuda": None, "threads": 2} | changes.get("env", {}),
    )  # fmt: skip


def exit_code(main: Callable[[], None], *words: str) -> int:
    """The exit code of a command with these words."""
    with patch.object(sys, "argv", ["command", *words]), pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def refused(command: Callable[..., int], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says to a mistake in its words: one line and exit code 2."""
    assert command(*words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Result]:
    """Write a fabricated result below tmp_path/outputs and read it back."""

    def store(folder: str, **kwargs: Any) -> Result:
        path = tmp_path / "outputs" / folder / "result.json"
        write_result(path, make_result(**kwargs))
        return read_result(path)

    return store
