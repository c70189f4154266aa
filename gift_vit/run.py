"""One run from config to ``result.json``: building its parts, resuming, skipping."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from gift_vit import distributed
from gift_vit.acceleration import accelerate, settle_speed
from gift_vit.backbones import build_backbone, input_statistics
from gift_vit.config import RunConfig, load_config
from gift_vit.data import (
    EvalLoader,
    PixelSource,
    TrainLoader,
    VisionDataset,
    build_dataset,
    build_eval_transform,
    build_train_transform,
    open_pixels,
)
from gift_vit.data.loaders import mix_seed
from gift_vit.data.transforms import ImageTransform
from gift_vit.engine import Evaluation, FitResult, Precision, evaluate, fit
from gift_vit.engine.fit import FitInputs
from gift_vit.environment import reset_peak_rss
from gift_vit.errors import ConfigError
from gift_vit.files import write_text
from gift_vit.keys import config_difference
from gift_vit.layout import ADAPTER, CHECKPOINT, CONFIG, IMPORTED, METRICS, RESULT
from gift_vit.methods import apply_method, count_parameters, load_adapter, save_adapter
from gift_vit.methods.adapter import applied_method
from gift_vit.pruning import Pruner
from gift_vit.record import Call, RunParts, Start, build_result
from gift_vit.results.schema import Result, read_result, write_result
from gift_vit.run_folder import locked_folder, recorded
from gift_vit.tracking import NullTracker, Observers, RunDescription, Tracker, build_tracker
from gift_vit.tracking.fields import config_fields
from gift_vit.tracking.metrics_file import MetricsFile
from gift_vit.tracking.progress import Progress

log = logging.getLogger(__name__)


def execute(cfg: RunConfig, call: Call) -> Result:
    """Train and score one run, or return its result where it is finished already.

    An interrupted run is resumed. Whatever goes wrong is kept in ``failed.json``. Of several processes all come here.

    Raises:
        ConfigError: If the folder holds a run of another configuration, or the configuration does not fit data or model.
        PrunedRun: If ``sweeper=asha`` stops it early; ``pruned.json`` says so, and the run can be gone on with.
    """
    if not distributed.is_main():
        return _execute_alone(cfg, call)
    with locked_folder(cfg.folder):
        return _execute_alone(cfg, call)


def _execute_alone(cfg: RunConfig, call: Call) -> Result:
    with distributed.main_first():  # it has the folder locked
        finished = finished_result(cfg)
    if finished is not None:
        return finished
    if not distributed.is_main():
        return _train_and_score(cfg, call)
    with recorded(cfg.folder):
        result = _train_and_score(cfg, call)
        mark_finished(cfg, result)
    return result


def finished_result(cfg: RunConfig) -> Result | None:
    """The result of a run that is finished already; None: it is not.

    Raises:
        ConfigError: If the folder holds a run of another configuration, or of other data.
    """
    _check_same_config(cfg)
    if not (cfg.folder / RESULT).is_file():
        return None
    result = read_result(cfg.folder / RESULT)
    _check_same_data(cfg, result)
    (cfg.folder / CHECKPOINT).unlink(missing_ok=True)  # there if the process was killed as its last act
    log.info("finished already: %s (%s); nothing to do", cfg.folder, _scores(result.metrics))
    return result


def mark_finished(cfg: RunConfig, result: Result) -> None:
    """Write ``result.json``, the last act of a run."""
    write_result(cfg.folder / RESULT, result)
    (cfg.folder / CHECKPOINT).unlink(missing_ok=True)
    log.info("finished: %s (%s)", cfg.folder, _scores(result.metrics))


def build_model(cfg: RunConfig, num_classes: int) -> nn.Module:
    """The run's backbone with its method applied, on the CPU, drawn from the run's seed."""
    torch.manual_seed(cfg.seed)
    model = build_backbone(cfg.backbone, num_classes, cfg.trainer.drop_path_rate)
    return apply_method(model, cfg.method)


def load_run(folder: Path, dataset_root: str | None = None) -> RunConfig:
    """The config of a run's folder; ``dataset_root`` says where the data lies now, if elsewhere."""
    file = folder / CONFIG
    if not file.is_file():
        raise ConfigError(f"{folder} is no run folder: it holds no {CONFIG}; give run=<a folder below outputs/>")
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    if dataset_root is not None and "root" in cfg.dataset:
        cfg.dataset.root = dataset_root
    return load_config(cfg)


def choose_split(cfg: RunConfig, folder: Path, wanted: str | None = None) -> str:
    """The split of a run to look at: ``wanted``, or for None test, and val in the search phase, which does not see test."""
    if cfg.phase == "search" and wanted == "test":
        raise ConfigError(f"{folder} is a search run, and test is for the final phase; train it with phase=final")
    return wanted or ("test" if cfg.phase == "final" else "val")


def load_finished_model(cfg: RunConfig, folder: Path) -> nn.Module:
    """The fine-tuned model of a run's folder, on the CPU; the data need not be there.

    Of an imported adapter only the name of its pretrained weights is known, and checked.
    """
    if is_imported(folder):
        assert cfg.dataset.num_classes is not None, "the import compared it with the head"
        return load_adapter(build_model(cfg, cfg.dataset.num_classes), folder / ADAPTER)
    if not (folder / RESULT).is_file():
        raise ConfigError(f"{folder} is not finished: it holds no {RESULT}; start its training again to finish it")
    result = read_result(folder / RESULT)
    model = build_model(cfg, result.data.num_classes)
    if applied_method(model).backbone["weights_sha256"] != result.backbone["weights_sha256"]:
        raise ConfigError(f"{folder} was trained on other pretrained weights than {cfg.backbone.model} loads now; restore them")
    return load_adapter(model, folder / ADAPTER)


def is_imported(folder: Path) -> bool:
    """Whether a folder's adapter was trained elsewhere: there is no result, and its data's fingerprint is not known."""
    return (folder / IMPORTED).is_file() and not (folder / RESULT).is_file()


def check_fingerprint(folder: Path, data: VisionDataset, result: Result) -> None:
    """Refuse data that is not what a finished run was trained on."""
    if data.fingerprint != result.data.fingerprint:
        raise ConfigError(
            f"{folder} was trained on other data than {data.name} holds now; restore that data, "
            "or start a new run with run_name=<another name>"
        )


def score(cfg: RunConfig, parts: RunParts, split: str) -> Evaluation:
    """Top-1 and loss of a model on one split."""
    loader = eval_loader(cfg, parts, split, reread=False)
    return evaluate(parts.model, loader, parts.device, Precision(cfg.trainer.precision, parts.device))


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<index>`` as a device that this machine has, of several processes for this one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"trainer.device={name!r} is no device; expected auto, cpu, cuda or cuda:<index>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"trainer.device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use trainer.device=auto"
        )
    return distributed.own_device(device)


def _train_and_score(cfg: RunConfig, call: Call) -> Result:
    start = start_now(call)
    data, device = open_data(cfg), resolve_device(cfg.trainer.device)
    cfg = with_speed_settled(cfg, device)
    with distributed.main_first():  # it downloads the weights
        model = build_model(cfg, data.num_classes)
    acceleration = accelerate(model.to(device), cfg.trainer)
    parts, main = RunParts(data, model, device, acceleration), distributed.is_main()
    reset_peaks(device)
    announce(cfg, parts)
    with build_tracker(cfg.tracker, describe(cfg)) if main else NullTracker() as tracker:
        fitted = _fit(cfg, parts, Observers([MetricsFile(cfg.folder / METRICS), tracker] if main else []))
        test = score(cfg, parts, "test") if cfg.phase == "final" else None
        return conclude(cfg, parts, fitted, test, start, tracker)


def start_now(call: Call) -> Start:
    """The start of a run."""
    return Start(call, datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter())


def open_data(cfg: RunConfig) -> VisionDataset:
    """The run's dataset, with all splits it needs."""
    data = build_dataset(cfg.dataset)
    if cfg.phase == "final":
        data.parts("test")  # absent: better said now than after training
    return data


def reset_peaks(device: torch.device) -> None:
    """Let the peaks of memory count from now."""
    reset_peak_rss()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def announce(cfg: RunConfig, parts: RunParts) -> None:
    """Write ``config.yaml`` where the run is not resumed, and log what is about to be trained."""
    if distributed.is_main() and not (cfg.folder / CHECKPOINT).is_file():
        write_text(cfg.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(cfg.values)))
    counts = count_parameters(parts.model)
    log.info(
        "%s on %s with %s: %s adapter parameters (%.3g %% of the backbone), head %s, %s",
        *(cfg.method_name, parts.data.name, cfg.backbone.model),
        *(f"{counts.adapter:,}", counts.percent, f"{counts.head:,}", parts.device),
    )


def conclude(
    cfg: RunConfig, parts: RunParts, fitted: FitResult, test: Evaluation | None, start: Start, tracker: Tracker
) -> Result:
    """Save the adapter of a trained run, and tell the tracker what goes into its result. All processes take part."""
    adapter = cfg.folder / ADAPTER
    with distributed.main_first():
        if distributed.is_main():
            save_adapter(parts.model, adapter, dataset=parts.data.name, class_names=parts.data.class_names)
    result = build_result(cfg, parts, fitted, test, adapter, start)
    # times and memory that are those of several runs would be taken for this one's
    cost = asdict(result.cost) if result.trained_alone else {"adapter_bytes": result.cost.adapter_bytes}
    tracker.finish({**result.metrics, "params": asdict(result.params), "cost": cost}, adapter)
    return result


def with_speed_settled(cfg: RunConfig, device: torch.device) -> RunConfig:
    """The run with what ``trainer.speed`` picks on this machine; an interrupted run goes on with what it began with."""
    if cfg.trainer.speed == "exact":
        return cfg
    begun = (cfg.folder / CHECKPOINT).is_file()
    trainer = load_run(cfg.folder).trainer if begun else settle_speed(cfg.trainer, device)
    settled = {"precision": trainer.precision, "compile": trainer.compile}
    log.info("trainer.speed=auto: precision=%(precision)s, compile=%(compile)s", settled)
    values = {**cfg.values, "trainer": {**cfg.values["trainer"], **settled}}
    return replace(cfg, trainer=replace(cfg.trainer, **settled), values=values)


def _fit(cfg: RunConfig, parts: RunParts, observers: Observers) -> FitResult:
    [inputs] = open_inputs(cfg, parts, [cfg.seed])
    # drop path and dropout: other masks for the images of each process, and the same ones whenever the run is repeated
    torch.manual_seed(cfg.seed if distributed.is_main() else mix_seed(cfg.seed, 0, 0, distributed.rank()))
    with Progress() if distributed.is_main() else NullTracker() as progress:
        return fit(
            parts.model,
            inputs,
            cfg.optim,
            cfg.trainer,
            cfg.folder / CHECKPOINT,
            Observers([observers, progress, *([Pruner(cfg.pruning)] if cfg.pruning else [])]),
            cfg.stop_epoch,
        )


def open_inputs(cfg: RunConfig, parts: RunParts, seeds: Sequence[int]) -> list[FitInputs]:
    """What the run trains on with each of several seeds; the pixels and the validation batches are the same ones."""
    trainer, reread = cfg.trainer, cfg.trainer.epochs > 1
    transform = build_train_transform(cfg.dataset.transform, input_statistics(parts.model))
    pixels = _open_pixels(cfg, parts, cfg.train_split, transform, reread)
    val = eval_loader(cfg, parts, "val", reread) if cfg.train_split == "train" else None
    identity = f"{parts.data.fingerprint} {parts.data.decoder}"
    loaders = (TrainLoader(pixels, transform, trainer.batch_size, trainer.workers, seed, parts.device) for seed in seeds)
    return [FitInputs(train, val, identity) for train in loaders]


def eval_loader(cfg: RunConfig, parts: RunParts, split: str, reread: bool) -> EvalLoader:
    """A split's images in order."""
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(parts.model))
    pixels = _open_pixels(cfg, parts, split, transform, reread)
    return EvalLoader(pixels, transform, cfg.trainer.eval_batch_size, cfg.trainer.workers, parts.device)


def _open_pixels(cfg: RunConfig, parts: RunParts, split: str, transform: ImageTransform, reread: bool) -> PixelSource:
    with distributed.main_first():  # it decodes the images into the cache
        return open_pixels(parts.data, split, transform, cfg.cache, reread)


def describe(cfg: RunConfig) -> RunDescription:
    """What the run's tracker records of it."""
    return RunDescription(
        name=cfg.run_name,
        folder=cfg.folder,
        config=config_fields(cfg.values),
        group=f"{cfg.dataset.name}/{cfg.method_name}",
        job_type=cfg.phase,
        tags=[cfg.protocol.name, cfg.dataset.benchmark, cfg.backbone.name, f"seed{cfg.seed}"],
        # a run that is deleted and trained anew is another one
        run_id=f"{cfg.run_name}-{(cfg.folder / CONFIG).stat().st_mtime_ns}",
    )


def _check_same_config(cfg: RunConfig) -> None:
    """Refuse a folder that another configuration has trained in."""
    if is_imported(cfg.folder):
        raise ConfigError(f"{cfg.folder} holds an imported adapter; give run_name=<another name> or delete it")
    file = cfg.folder / CONFIG
    trained = (cfg.folder / RESULT).is_file() or (cfg.folder / CHECKPOINT).is_file()
    if not trained or not file.is_file():
        return
    there: Any = OmegaConf.to_container(OmegaConf.load(file))
    differences = config_difference(there, cfg.values)
    if differences:
        listed = "; ".join(f"{key} is {old} there, {new} now" for key, (old, new) in list(differences.items())[:4])
        raise ConfigError(
            f"{cfg.folder} holds a run of another configuration ({listed}); give run_name=<another name> or delete it"
        )


def _check_same_data(cfg: RunConfig, result: Result) -> None:
    """A finished run does not answer for data of another place unless it is the same data."""
    trained_on: Any = result.run.config["dataset"]
    if trained_on.get("root") != cfg.values["dataset"].get("root"):
        check_fingerprint(cfg.folder, build_dataset(cfg.dataset), result)


def _scores(metrics: dict[str, float | int | None]) -> str:
    shown = {"val_top1": "val top-1", "test_top1": "test top-1"}
    return ", ".join(f"{label} {metrics[key]:.2f} %" for key, label in shown.items() if metrics.get(key) is not None)
