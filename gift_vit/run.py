"""One run from config to ``result.json``: building its parts, resuming, skipping, and keeping a record of what happened."""

import fcntl
import logging
import resource
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from gift_vit import __version__
from gift_vit.backbones import build_backbone, input_statistics, weights_source
from gift_vit.config import RunConfig, load_config, protocol_changes
from gift_vit.data import (
    TrainLoader,
    VisionDataset,
    build_dataset,
    build_eval_loader,
    build_eval_transform,
    build_train_transform,
)
from gift_vit.engine import Evaluation, FitResult, Precision, evaluate, fit
from gift_vit.engine.fit import FitInputs
from gift_vit.environment import describe_environment, git_state
from gift_vit.errors import ConfigError
from gift_vit.files import write_json, write_text
from gift_vit.keys import config_difference
from gift_vit.methods import apply_method, count_parameters, get_method, load_adapter, save_adapter
from gift_vit.methods.adapter import applied_method
from gift_vit.results.schema import CostRecord, DataRecord, ParamRecord, Result, RunRecord, read_result, write_result
from gift_vit.tracking import Observers, RunDescription, build_tracker
from gift_vit.tracking.metrics_file import MetricsFile
from gift_vit.tracking.progress import Progress

log = logging.getLogger(__name__)

CONFIG, RESULT, FAILED, ADAPTER, CHECKPOINT = "config.yaml", "result.json", "failed.json", "adapter.safetensors", "last.ckpt"
METRICS, LOG, LOCK = "metrics.jsonl", "train.log", ".lock"


@dataclass(frozen=True)
class Call:
    """How a run was started: the command line and its overrides."""

    command: str
    overrides: list[str]


@dataclass(frozen=True)
class RunParts:
    """What a run is built from: the data, and the model with its method applied, on its device."""

    data: VisionDataset
    model: nn.Module
    device: torch.device


def execute(cfg: RunConfig, call: Call) -> Result:
    """Train and score one run, or return its result where it is finished already.

    An interrupted run is resumed. Whatever goes wrong is kept in ``failed.json``.

    Raises:
        ConfigError: If the folder holds a run of another configuration, or the configuration does not fit data or model.
    """
    folder = cfg.folder
    _check_same_config(cfg)
    if (folder / RESULT).is_file():
        result = read_result(folder / RESULT)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        log.info("finished already: %s (%s); nothing to do", folder, _scores(result.metrics))
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), _logged_to(folder / LOG), _failure_recorded(folder):
        result = _train_and_score(cfg, call)
        write_result(folder / RESULT, result)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        log.info("finished: %s (%s)", folder, _scores(result.metrics))
    return result


def build_model(cfg: RunConfig, num_classes: int) -> nn.Module:
    """The run's backbone with its method applied, on the CPU, drawn from the run's seed."""
    torch.manual_seed(cfg.seed)
    model = build_backbone(cfg.backbone, num_classes, cfg.trainer.drop_path_rate)
    return apply_method(model, cfg.method)


def load_run(folder: Path, data_root: str | None = None) -> RunConfig:
    """The config of a run's folder; ``data_root`` says where the data lies now, if elsewhere."""
    file = folder / CONFIG
    if not file.is_file():
        raise ConfigError(f"{folder} is no run folder: it holds no {CONFIG}; give run=<a folder below outputs/>")
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    if data_root is not None and "root" in cfg.dataset:
        cfg.dataset.root = data_root
    return load_config(cfg)


def load_finished_model(cfg: RunConfig, folder: Path) -> nn.Module:
    """The fine-tuned model of a run's folder, on the CPU; the data need not be there."""
    if not (folder / RESULT).is_file():
        raise ConfigError(f"{folder} is not finished: it holds no {RESULT}; start its training again to finish it")
    result = read_result(folder / RESULT)
    model = build_model(cfg, result.data.num_classes)
    if applied_method(model).backbone["weights_sha256"] != result.backbone["weights_sha256"]:
        raise ConfigError(f"{folder} was trained on other pretrained weights than {cfg.backbone.model} loads now; restore them")
    return load_adapter(model, folder / ADAPTER)


def score(cfg: RunConfig, parts: RunParts, split: str) -> Evaluation:
    """Top-1 and loss of a model on one split."""
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(parts.model))
    loader = build_eval_loader(parts.data.split(split), transform, cfg.trainer.eval_batch_size, cfg.trainer.workers)
    return evaluate(parts.model, loader, parts.device, Precision(cfg.trainer.precision, parts.device))


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<index>`` as a device that this machine has."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"trainer.device={name!r} is no device; expected auto, cpu, cuda or cuda:<index>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"trainer.device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use trainer.device=auto"
        )
    return device


def _train_and_score(cfg: RunConfig, call: Call) -> Result:
    started, started_at = time.perf_counter(), _now()
    data, device = build_dataset(cfg.dataset), resolve_device(cfg.trainer.device)
    parts = RunParts(data, build_model(cfg, data.num_classes).to(device), device)
    write_text(cfg.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(cfg.values)))
    counts = count_parameters(parts.model)
    log.info(
        "%s on %s with %s: %s adapter parameters (%.3g %% of the backbone), head %s, %s",
        *(cfg.method_name, data.name, cfg.backbone.model),
        *(f"{counts.adapter:,}", counts.percent, f"{counts.head:,}", device),
    )
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)
    with build_tracker(cfg.tracker, _describe(cfg)) as tracker:
        try:
            fitted = _fit(cfg, parts, Observers([MetricsFile(cfg.folder / METRICS), tracker]))
        except BaseException as error:
            tracker.fail(str(error) or type(error).__name__)
            raise
        metrics = _metrics(fitted)
        if cfg.phase == "final":
            scores = score(cfg, parts, "test")
            metrics |= {"test_top1": scores.top1, "test_loss": scores.loss}
        adapter = cfg.folder / ADAPTER
        save_adapter(parts.model, adapter, dataset=parts.data.name, class_names=parts.data.class_names)
        result = Result(
            run=_run_record(cfg, call, started_at),
            data=_data_record(cfg, parts.data),
            backbone={**applied_method(parts.model).backbone, "weights": weights_source(cfg.backbone, parts.model)},
            params=ParamRecord(
                adapter=counts.adapter,
                head=counts.head,
                backbone=counts.backbone,
                total=sum(parameter.numel() for parameter in parts.model.parameters()),
                percent=counts.percent,
            ),
            metrics=metrics,
            cost=_cost(fitted, parts.device, time.perf_counter() - started, adapter),
            env=describe_environment(parts.device),
        )
        tracker.finish(metrics | {"params": vars(result.params), "cost": vars(result.cost)}, adapter)
    return result


def _fit(cfg: RunConfig, parts: RunParts, observers: Observers) -> FitResult:
    stats = input_statistics(parts.model)
    trainer, transform = cfg.trainer, cfg.dataset.transform
    train = TrainLoader(
        parts.data.split(cfg.train_split),
        build_train_transform(transform, stats),
        trainer.batch_size,
        trainer.workers,
        cfg.seed,
    )
    val = None
    if cfg.train_split == "train":
        source = parts.data.split("val")
        val = build_eval_loader(source, build_eval_transform(transform, stats), trainer.eval_batch_size, trainer.workers)
    torch.manual_seed(cfg.seed)
    with Progress() as progress:
        return fit(
            parts.model,
            FitInputs(train, val, identity=parts.data.fingerprint),
            cfg.optim,
            trainer,
            cfg.folder / CHECKPOINT,
            Observers([observers, progress]),
            cfg.stop_epoch,
        )


def _metrics(fitted: FitResult) -> dict[str, float | int | None]:
    scored = [record for record in fitted.history if "val_top1" in record]
    best = max(scored, key=lambda record: record["val_top1"], default=None)
    return {
        "train_loss": fitted.history[-1]["train_loss"],
        "val_top1": scored[-1]["val_top1"] if scored else None,
        "best_val_top1": best["val_top1"] if best else None,
        "best_val_epoch": int(best["epoch"]) if best else None,
        "test_top1": None,
        "test_loss": None,
        "epochs": len(fitted.history),
    }


def _run_record(cfg: RunConfig, call: Call, started_at: str) -> RunRecord:
    sha, dirty = git_state()
    return RunRecord(
        name=cfg.run_name,
        phase=cfg.phase,
        dataset=cfg.dataset.name,
        benchmark=cfg.dataset.benchmark,
        method=cfg.method_name,
        kind=_kind(cfg),
        backbone=cfg.backbone.name,
        protocol=cfg.protocol.name,
        protocol_changes={key: list(change) for key, change in protocol_changes(cfg).items()},
        seed=cfg.seed,
        config=cfg.values,
        overrides=call.overrides,
        command=call.command,
        started_at=started_at,
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
        train_images=len(data.split(cfg.train_split)),
        val_images=size("val"),
        test_images=size("test"),
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
        peak_memory_mib=peak,
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        adapter_bytes=adapter.stat().st_size,
    )


def _describe(cfg: RunConfig) -> RunDescription:
    return RunDescription(
        name=cfg.run_name,
        folder=cfg.folder,
        config=cfg.values,
        group=f"{cfg.dataset.name}/{cfg.method_name}",
        job_type=cfg.phase,
        tags=[cfg.protocol.name, f"seed{cfg.seed}"],
        run_id="-".join(cfg.folder.parts[-5:]).replace(".", "_"),
    )


def _kind(cfg: RunConfig) -> str:
    return get_method(cfg.values["method"]["kind"]).kind


def _check_same_config(cfg: RunConfig) -> None:
    """Refuse a folder that another configuration has trained in."""
    file = cfg.folder / CONFIG
    if not file.is_file():
        return
    there: Any = OmegaConf.to_container(OmegaConf.load(file))
    differences = config_difference(there, cfg.values)
    if differences:
        listed = "; ".join(f"{key} is {old} there, {new} now" for key, (old, new) in list(differences.items())[:4])
        raise ConfigError(
            f"{cfg.folder} holds a run of another configuration ({listed}); give run_name=<another name> or delete it"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a run's folder; the lock ends with the process, however it ends."""
    path = folder / LOCK
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training in {folder}; wait for it or give run_name=<another name>"
            ) from error
        yield
        path.unlink(missing_ok=True)


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not fill the terminal with the log's own troubles."""


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    handler = _QuietFileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def _failure_recorded(folder: Path) -> Iterator[None]:
    """Write ``failed.json`` when the run fails; an interruption is no failure."""
    failed = folder / FAILED
    failed.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        record = {
            "error": type(error).__name__,
            "message": str(error),
            "failed_at": _now(),
            "traceback": traceback.format_exc(),
        }
        try:
            write_json(failed, record)
        except Exception as second:  # the first error is the one to report
            log.warning("could not write %s: %s", failed, second)
        raise
    except KeyboardInterrupt:
        log.info("interrupted: %s can be resumed with the same command", folder)
        raise


def _scores(metrics: dict[str, float | int | None]) -> str:
    shown = {"val_top1": "val top-1", "test_top1": "test top-1"}
    return ", ".join(f"{label} {metrics[key]:.2f} %" for key, label in shown.items() if metrics.get(key) is not None)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
