"""From a finished training to the record that ``result.json`` holds."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gift_vit import __version__, distributed
from gift_vit.backbones import weights_source
from gift_vit.config import RunConfig, protocol_changes
from gift_vit.data import VisionDataset
from gift_vit.engine import Evaluation, FitResult
from gift_vit.environment import describe_environment, git_state, peak_rss_mib
from gift_vit.methods import count_parameters
from gift_vit.methods.adapter import applied_method
from gift_vit.methods.registry import spec_of
from gift_vit.results.schema import CostRecord, DataRecord, ParamRecord, Result, RunRecord


@dataclass(frozen=True)
class Call:
    """How a run was started: the command line and its overrides."""

    command: str
    overrides: list[str]


@dataclass(frozen=True)
class RunParts:
    """What a run is built from: the data, and the model with its method applied, on its device; how that is accelerated."""

    data: VisionDataset
    model: nn.Module
    device: torch.device
    acceleration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """The call that started a run, when (ISO 8601, UTC), and the clock's seconds then."""

    call: Call
    at: str
    clock: float


def build_result(
    cfg: RunConfig, parts: RunParts, fitted: FitResult, test: Evaluation | None, adapter: Path, start: Start
) -> Result:
    """Everything that is known of a finished run; ``test`` is None in the search phase, ``adapter`` the saved file.

    All processes of a run take part.
    """
    counts = count_parameters(parts.model)
    return Result(
        run=_run_record(cfg, start),
        data=_data_record(cfg, parts.data),
        backbone={**applied_method(parts.model).backbone, "weights": weights_source(cfg.backbone, parts.model)},
        params=ParamRecord(
            adapter=counts.adapter,
            head=counts.head,
            backbone=counts.backbone,
            total=sum(parameter.numel() for parameter in parts.model.parameters()),
            percent=counts.percent,
        ),
        metrics=_metrics(fitted, test),
        cost=_cost(fitted, parts.device, time.perf_counter() - start.clock, adapter),
        env={
            **describe_environment(parts.device),
            "acceleration": parts.acceleration,
            "parallel_runs": max(int(record.get("parallel_runs", 1)) for record in fitted.history),
        },
    )


def _metrics(fitted: FitResult, test: Evaluation | None) -> dict[str, float | int | None]:
    scored = [record for record in fitted.history if "val_top1" in record]
    best = max(scored, key=lambda record: record["val_top1"], default=None)
    return {
        "train_loss": fitted.history[-1]["train_loss"],
        "val_top1": scored[-1]["val_top1"] if scored else None,
        "best_val_top1": best["val_top1"] if best else None,
        "best_val_epoch": int(best["epoch"]) if best else None,
        "test_top1": test.top1 if test else None,
        "test_loss": test.loss if test else None,
        "epochs": len(fitted.history),
    }


def _run_record(cfg: RunConfig, start: Start) -> RunRecord:
    sha, dirty = git_state()
    return RunRecord(
        name=cfg.run_name,
        phase=cfg.phase,
        dataset=cfg.dataset.name,
        benchmark=cfg.dataset.benchmark,
        method=cfg.method_name,
        kind=spec_of(cfg.method).kind,
        backbone=cfg.backbone.name,
        protocol=cfg.protocol.name,
        protocol_changes={key: list(change) for key, change in protocol_changes(cfg).items()},
        seed=cfg.seed,
        config=cfg.values,
        overrides=start.call.overrides,
        command=start.call.command,
        started_at=start.at,
        git_sha=sha,
        git_dirty=dirty,
        gift_vit_version=__version__,
    )


def _data_record(cfg: RunConfig, data: VisionDataset) -> DataRecord:
    def size(split: str) -> int | None:
        return len(data.splits[split]) if split in data.splits else None

    return DataRecord(
        name=data.name,
        fingerprint=data.fingerprint,
        num_classes=data.num_classes,
        train_split=cfg.train_split,
        train_images=sum(len(part) for part in data.parts(cfg.train_split)),
        val_images=size("val"),
        test_images=size("test"),
        decoder=data.decoder,
        source=data.source,
    )


def _cost(fitted: FitResult, device: torch.device, total_seconds: float, adapter: Path) -> CostRecord:
    images = sum(record["images_per_s"] * record["seconds"] for record in fitted.history)
    steps = sum(record["steps"] for record in fitted.history)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return CostRecord(
        train_seconds=fitted.seconds,
        total_seconds=total_seconds,
        images_per_s=images / fitted.seconds,
        step_time_ms=1000 * fitted.seconds / steps,
        peak_memory_mib=_largest(peak),
        peak_rss_mib=_largest(peak_rss_mib()),
        adapter_bytes=adapter.stat().st_size,
    )


def _largest(value: float | None) -> float | None:
    """The largest value among the processes of the run; None where none has one."""
    return max((own for own in distributed.gather(value) if own is not None), default=None)
