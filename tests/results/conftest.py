"""A factory of fabricated results."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gift_vit.results.schema import CostRecord, DataRecord, ParamRecord, Result, RunRecord, read_result, write_result

Make = Callable[..., Result]

CONFIG: dict[str, Any] = {
    "seed": 0,
    "run_name": "lr0.001_seed0",
    "method": {"kind": "gift", "rank": 16, "target_modules": ["attn.proj"]},
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
    config: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    adapter_bytes: int = 10_240,
    cost: dict[str, Any] | None = None,
    env: dict[str, Any] | None = None,
) -> Result:
    """A final run; ``config`` holds dotted keys to set in the configuration, the others replace fields."""
    resolved = copy.deepcopy(CONFIG) | {"seed": seed, "run_name": f"{method}_seed{seed}"}
    for key, value in (config or {}).items():
        *sections, name = key.split(".")
        target = resolved
        for section in sections:
            target = target[section]
        target[name] = value
    run_values: dict[str, Any] = {
        "name": f"{dataset}/{method}/seed{seed}",
        "phase": "final",
        "dataset": dataset,
        "benchmark": "mini",
        "method": method,
        "kind": "gift",
        "backbone": "vit_mini",
        "protocol": "clean",
        "protocol_changes": {},
        "seed": seed,
        "config": resolved,
        "overrides": [f"seed={seed}"],
        "command": "python -m gift_vit.train",
        "started_at": "2026-01-02T03:04:05+00:00",
        "git_sha": "0123456789abcdef",
        "git_dirty": False,
        "gift_vit_version": "0.1.0",
    }
    data_values: dict[str, Any] = {
        "name": dataset,
        "fingerprint": f"sha-{dataset}",
        "num_classes": 10,
        "train_split": "trainval",
        "train_images": 1000,
        "val_images": None,
        "test_images": 400,
    }
    backbone_values: dict[str, Any] = {
        "architecture": "vit_mini_patch8_64",
        "tag": "tiny_imagenet",
        "input_size": [3, 64, 64],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "weights_sha256": "ab" * 32,
        "weights": "vit_mini.safetensors",
    }
    param_values: dict[str, Any] = {
        "adapter": 6144,
        "head": 1930,
        "backbone": 2_700_000,
        "total": 2_708_074,
        "percent": 0.22755,
    }
    return Result(
        run=RunRecord(**(run_values | (run or {}))),
        data=DataRecord(**(data_values | (data or {}))),
        backbone=backbone_values | (backbone or {}),
        params=ParamRecord(**(param_values | (params or {}))),
        metrics={
            "train_loss": 0.1, "val_top1": None, "best_val_top1": None, "best_val_epoch": None,
            "test_top1": top1, "test_loss": None if top1 is None else 0.3, "epochs": 5,
        },
        cost=CostRecord(**{
            "train_seconds": 12.5, "total_seconds": 20.0, "images_per_s": 400.0, "step_time_ms": 80.0,
            "peak_memory_mib": None, "peak_rss_mib": 900.5, "adapter_bytes": adapter_bytes, **(cost or {}),
        }),
        env={"python": "3.11.7", "torch": "2.6.0", "device": "cpu", "cuda": None, "threads": 2, **(env or {})},
    )  # fmt: skip


@pytest.fixture
def make() -> Make:
    return make_result


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Result]:
    """Write a fabricated result below tmp_path/outputs and read it back."""

    def store(folder: str, **kwargs: Any) -> Result:
        path = tmp_path / "outputs" / folder / "result.json"
        write_result(path, make_result(**kwargs))
        return read_result(path)

    return store
