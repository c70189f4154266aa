"""One run from its config to ``result.json``, from top to bottom."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from gift_vit import __version__
from gift_vit.acceleration.accelerate import has_fused_attention
from gift_vit.acceleration.speed import Work, can_build_kernels, prepare_to_train, settle_speed
from gift_vit.backbones.build import weights_source
from gift_vit.common import distributed
from gift_vit.common.environment import describe_environment, git_state, peak_rss_mib, reset_peaks
from gift_vit.common.errors import ConfigError, out_of_memory
from gift_vit.common.files import is_read_only, write_text
from gift_vit.config.keys import config_difference
from gift_vit.config.loader import protocol_changes
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.loaders import TrainLoader, mix_seed
from gift_vit.data.report import DataReport, check_decodable, describe
from gift_vit.engine.fit import Evaluation, FitInputs, FitResult, fit
from gift_vit.engine.observer import Observer
from gift_vit.engine.state import deterministic
from gift_vit.methods.adapter import FINGERPRINTS, applied_method, count_parameters, save_adapter
from gift_vit.methods.config import spec_of
from gift_vit.runs.build import (
    build_to_train,
    eval_loader,
    initialise,
    objective_of,
    open_data,
    resolve_device,
    score,
    train_loader,
)
from gift_vit.runs.fitted import fit_on_features, in_full_precision
from gift_vit.runs.peft_folder import keep_peft_folder
from gift_vit.runs.predictions import keep_predictions
from gift_vit.runs.prefix import blocks_to_keep, taking_tokens, token_loaders
from gift_vit.runs.result import CostRecord, DataRecord, ParamRecord, Result, RunRecord, write_result
from gift_vit.runs.run import (
    ADAPTER,
    CHECKPOINT,
    CONFIG,
    METRICS,
    RESULT,
    MetricsFile,
    Run,
    file_hashes,
    locked_folder,
    recorded,
)
from gift_vit.runs.submission import keep_submission
from gift_vit.tracking.fields import config_fields
from gift_vit.tracking.load import LoadNote
from gift_vit.tracking.progress import Progress
from gift_vit.tracking.wandb_run import RunDescription, WandbTracker, run_id_of

log = logging.getLogger(__name__)

_WEIGHTS = {"backbone.weights", "backbone.model", "method.weights"}  # keys that may name a file or folder of them


@dataclass(frozen=True)
class Call:
    """How a run was started: the command line and its overrides."""

    command: str
    overrides: list[str]


@dataclass(frozen=True)
class Training:
    """What was trained: data and model on their device, how the model was computed, and when it began (ISO 8601, UTC).

    ``report`` is what the main process has said of the data; None in the others. ``code`` is what ``git_state`` said when it
    began: a checkout may change while a run takes its time.
    """

    data: VisionDataset
    report: DataReport | None
    model: nn.Module
    device: torch.device
    acceleration: dict[str, Any]
    call: Call
    started_at: str
    code: tuple[str | None, bool | None]


def train_run(cfg: RunConfig, call: Call, observers: Sequence[Observer] = ()) -> Result:
    """Train and score one run, or return its result where it is finished already; an interrupted run is resumed.

    Under torchrun all processes of the run come here. The main one alone writes and speaks.

    Args:
        cfg: Everything the run depends on.
        call: How it was started; goes into its record.
        observers: Are told of its epochs, beside the metrics file, the tracker and the progress display.

    Raises:
        ConfigError: If the folder holds a run of another configuration, or the configuration does not fit data or model.
        StopTraining: If an observer ends the run early; ``pruned.json`` says why, and the run can be gone on with.
    """
    started_at, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    cfg, folder, main, code = in_full_precision(cfg), cfg.folder, distributed.is_main(), git_state()
    with ExitStack() as stack:
        # ---- The folder is this run's alone, and whatever ends the run early is kept there.
        if main and not is_read_only(folder):  # what is finished may lie there, and nothing else
            stack.enter_context(locked_folder(folder))
        with distributed.main_first():
            finished = _finished_result(cfg)
        if finished is not None:
            return finished
        stack.enter_context(recorded(folder) if main else nullcontext())
        stack.enter_context(_memory_explained())

        # ---- Data and model.
        data, device = open_data(cfg), resolve_device(cfg.compute.device)
        if cfg.trainer.deterministic:
            stack.enter_context(deterministic(device))
        report = _reported(cfg, data) if main else None
        with distributed.main_first():  # it downloads the weights
            model = build_to_train(cfg, data.num_classes)
        cfg = _with_speed_settled(cfg, device, model, data)
        initialise(cfg, model.to(device), data, device)  # of an interrupted run too: what is frozen is in no checkpoint
        acceleration = prepare_to_train(model, cfg.compute, cfg.trainer, Path(cfg.paths.cache_root))
        reset_peaks(device)

        # ---- What is about to be trained.
        if main and not (folder / CHECKPOINT).is_file():
            write_text(folder / CONFIG, _as_yaml(cfg))
        _announce(cfg, data, model, device)

        # ---- Training, on train or train + val, by gradient or by a fit on features; the test split is not in sight.
        training = Training(data, report, model, device, acceleration, call, started_at, code)
        tracker = WandbTracker(cfg.tracker, _describe(cfg)) if main and _is_tracked(cfg) else None
        with tracker or nullcontext():
            with _progress(cfg) if main else nullcontext() as progress:
                note = LoadNote(cfg.loading.workers * distributed.world_size())
                own = filter(None, [MetricsFile(folder / METRICS), tracker, note, progress] if main else [])
                fitted = _fitted(cfg, training, [*own, *observers])

            # ---- The test split, once, in the final phase; and what only a benchmark's server can score.
            keep = cfg.trainer.keep_predictions != "off"
            test = score(cfg, model, data, "test", device, keep, folder) if cfg.scored_split == "test" else None
            keep_submission(cfg, model, data, device)

            # ---- The adapter, the predictions and the record.
            with distributed.main_first():
                if main:
                    save_adapter(model, folder / ADAPTER, dataset=data.name, class_names=data.class_names)
                    keep_peft_folder(cfg, model, folder)
            result = build_result(cfg, training, fitted, test, time.perf_counter() - clock)
            kept = keep_predictions(folder, data, {"test": test, "val": fitted.val}) if main else None
            if tracker is not None:
                summary = {**result.metrics, "params": asdict(result.params), "cost": asdict(result.cost)}
                tracker.finish(summary, folder / ADAPTER)

        # ---- result.json, the last act: from here on the run is done.
        if main:
            result = replace(result, predictions=kept, files=file_hashes(folder))
            if (folder / CONFIG).read_text("utf-8") != (told := _as_yaml(cfg)):  # resumed where the data, say, lies elsewhere
                write_text(folder / CONFIG, told)
            write_result(folder / RESULT, result)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            log.info("finished: %s (%s)", folder, _scores(result))
    return result


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Say of a GPU whose memory is short what would need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = (
            "give trainer.memory=lean or minimal, a larger trainer.grad_accumulation, or, if it was scoring, a smaller "
            "trainer.eval_batch_size"
        )
        raise out_of_memory(error, remedy) from error


def _reported(cfg: RunConfig, data: VisionDataset) -> DataReport:
    """What was read, and said to a person; pictures of one's own that are tested on are decoded before the training."""
    report = describe(data, cfg.dataset.check_duplicates, look=not cfg.dataset.as_published)
    report.log()
    begins = not (cfg.folder / CHECKPOINT).is_file()
    if begins and cfg.phase == "final" and cfg.dataset.thing == "image" and not cfg.dataset.as_published:
        check_decodable(data.splits["test"], cfg.loading.workers)  # a score cannot be had for want of one picture then
    if (cfg.recipe or {}).get("data", data.fingerprint) != data.fingerprint:  # a rate can hold for both, and need not
        log.warning("the recipe of %s was chosen on other data than %s holds now", cfg.method_name, data.name)
    return report


def _announce(cfg: RunConfig, data: VisionDataset, model: nn.Module, device: torch.device) -> None:
    counts = count_parameters(model)
    log.info(
        "%s on %s with %s: %s adapter parameters (%.3g %% of the backbone), head %s, %s",
        *(cfg.method_name, data.name, cfg.backbone.model),
        *(f"{counts.adapter:,}", counts.percent, f"{counts.head:,}", device),
    )


def _as_yaml(cfg: RunConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(cfg.values))


def _finished_result(cfg: RunConfig) -> Result | None:
    """The result of a run that is finished already; None: it is not.

    Raises:
        ConfigError: If the folder holds a run of another configuration, or of other data, or an imported adapter.
    """
    run = Run.open(cfg.folder)
    if run.imported is not None:
        raise ConfigError(f"{cfg.folder} holds an imported adapter; give run_name=<another name> or delete it")
    _check_same_config(cfg, run)
    if run.result is None:
        return None
    _check_same_data(cfg, run)
    if not is_read_only(cfg.folder):
        (cfg.folder / CHECKPOINT).unlink(missing_ok=True)  # there if the process was killed as its last act
    log.info("finished already: %s (%s); nothing to do", cfg.folder, _scores(run.result))
    return run.result


def _check_same_data(cfg: RunConfig, run: Run) -> None:
    """Refuse other data than a finished run's, at another place or at the same; what is gone from there is not needed."""
    record: Any = run.result and run.result.run.config
    moved = record["dataset"].get("root") != cfg.values["dataset"].get("root")
    if not moved and (cfg.dataset.as_published or "root" not in cfg.values["dataset"]):
        return
    try:
        data = build_dataset(cfg.dataset)
    except ConfigError:
        if moved:
            raise
        return
    run.check_fingerprint(data)


def _check_same_config(cfg: RunConfig, run: Run) -> None:
    """Refuse a folder that another configuration has trained in, or that does not tell; a finished run's own record does."""
    if run.result is None and not (cfg.folder / CHECKPOINT).is_file():
        return
    trained_with = run.result.run.config if run.result else run.values
    if not trained_with:
        raise ConfigError(
            f"{cfg.folder} holds a {CHECKPOINT} and no readable {CONFIG} that says of what; "
            f"give run_name=<another name> or delete the {CHECKPOINT}"
        )
    differences = config_difference(trained_with, cfg.values)
    if differences:
        listed = "; ".join(f"{key} is {old} there, {new} now" for key, (old, new) in list(differences.items())[:4])
        moved = differences.keys() <= _WEIGHTS and all(os.sep in str(new) for _, new in differences.values())
        same = (
            "; if these are the same weights, type their old place, which may be a link to the new one; else" if moved else ";"
        )
        raise ConfigError(
            f"{cfg.folder} holds a run of another configuration ({listed}){same} give run_name=<another name> or delete it"
        )


def _with_speed_settled(cfg: RunConfig, device: torch.device, model: nn.Module, data: VisionDataset) -> RunConfig:
    """The run with what ``trainer.speed`` picks on this machine; an interrupted run goes on with what it began with."""
    if (cfg.folder / CHECKPOINT).is_file():
        begun = Run.open(cfg.folder).config
        trainer, compute = begun.trainer, begun.compute
        if compute.speed == "auto" and not can_build_kernels(device):  # it may have begun on another machine
            trainer = replace(trainer, compile=False)
    else:
        images = (cfg.stop_epoch or cfg.trainer.epochs) * sum(len(part) for part in data.parts(cfg.train_split))
        work = Work.of(model, images, Path(cfg.paths.cache_root))
        trainer, compute = settle_speed(cfg.trainer, cfg.compute, device, work)
    settled = {"precision": trainer.precision, "compile": trainer.compile}
    if compute.speed == "auto":
        log.info("trainer.speed=auto: precision=%(precision)s, compile=%(compile)s", settled)
    values = {**cfg.values, "trainer": {**cfg.values["trainer"], **settled, "speed": compute.speed}}
    compute = replace(cfg.compute, speed=compute.speed)
    return replace(cfg, trainer=replace(cfg.trainer, **settled), compute=compute, values=values)


def _fitted(cfg: RunConfig, training: Training, observers: Sequence[Observer]) -> FitResult:
    """The model trained by gradient, or fitted on features, as its method says."""
    model, device = training.model, training.device
    if spec_of(cfg.method).fit is not None:
        return fit_on_features(cfg, model, training.data, device, observers)
    kept_blocks = blocks_to_keep(cfg, model, training.data)
    inputs = _fit_inputs(cfg, training, kept_blocks)
    # drop path and dropout: other masks for the images of each process, and the same ones whenever the run is repeated
    torch.manual_seed(cfg.seed if distributed.is_main() else mix_seed(cfg.seed, 0, 0, distributed.rank()))
    with taking_tokens(model, kept_blocks):
        return fit(model, inputs, cfg.optim, cfg.trainer, cfg.folder / CHECKPOINT, observers, cfg.stop_epoch)


def _fit_inputs(cfg: RunConfig, training: Training, kept_blocks: int) -> FitInputs:
    """What a method that is trained by gradient is given; the record says of what: pixels on the device, or kept tokens."""
    data, model, device = training.data, training.model, training.device
    has_val, reread = cfg.train_split == "train", cfg.trainer.epochs > 1
    weights = " ".join(applied_method(model).backbone[name] for name in FINGERPRINTS)
    rules: dict[str, Any] = {
        "identity": f"{data.fingerprint} {data.decoder} {data.sample} {weights}",
        "objective": objective_of(cfg.dataset),
        "commit": _commit(training.code),
        "keep_best": cfg.protocol.kept_epoch == "best",
    }
    if kept_blocks:
        train, val = token_loaders(cfg, model, data, device, kept_blocks, training.acceleration)
        training.acceleration["kept_blocks"] = kept_blocks
        return FitInputs(train=train, val=val, **rules)
    inputs = FitInputs(
        train=train_loader(cfg, model, data, device),
        val=eval_loader(cfg, model, data, "val", device, reread) if has_val else None,
        **rules,
    )
    if not isinstance(inputs.train, TrainLoader):
        training.acceleration["data_on_device"] = True
    return inputs


def _is_tracked(cfg: RunConfig) -> bool:
    """Whether the run is recorded in W&B; ``WANDB_MODE=disabled`` in the environment switches that off."""
    return cfg.tracker.kind == "wandb" and os.environ.get("WANDB_MODE") != "disabled"


def _describe(cfg: RunConfig) -> RunDescription:
    """What the run's tracker records of it."""
    return RunDescription(
        name=cfg.run_name,
        folder=cfg.folder,
        config=config_fields(cfg.values),
        group=f"{cfg.dataset.name}/{cfg.method_name}",
        job_type=cfg.phase,
        tags=[cfg.protocol.name, cfg.dataset.benchmark, cfg.backbone.name, f"seed{cfg.seed}"],
        run_id=run_id_of(cfg.folder, cfg.run_name, is_resumed=(cfg.folder / CHECKPOINT).is_file()),
    )


def _progress(cfg: RunConfig) -> Progress:
    """What shows a person how far the run is, in the words of its data."""
    dataset = cfg.dataset
    return Progress() if dataset.thing == "image" else Progress(thing=dataset.thing, score=dataset.scores[0])


def _scores(result: Result) -> str:
    shown = {f"{split}_top1": f"{split} {result.score_name}" for split in ("val", "test")}
    return ", ".join(f"{label} {top1:.2f} %" for key, label in shown.items() if (top1 := result.metrics.get(key)) is not None)


def build_result(
    cfg: RunConfig, training: Training, fitted: FitResult, test: Evaluation | None, total_seconds: float
) -> Result:
    """Everything that is known of a finished run whose adapter is saved; ``test`` is None in the search phase.

    All processes of a run take part.
    """
    model, counts = training.model, count_parameters(training.model)
    used = {"step_graph": fitted.captured, "deterministic": cfg.trainer.deterministic}
    scored = test or fitted.val
    acceleration = training.acceleration | {key: True for key, on in used.items() if on}
    return Result(
        run=_run_record(cfg, training, fitted),
        data=_data_record(cfg, training.data, training.report),
        backbone={**applied_method(model).backbone, "weights": weights_source(cfg.backbone, model)},
        params=ParamRecord(
            adapter=counts.adapter,
            head=counts.head,
            backbone=counts.backbone,
            total=sum(parameter.numel() for parameter in model.parameters()),
            percent=counts.percent,
        ),
        metrics=_metrics(fitted, test),
        metric=None if cfg.dataset.scores[0] == "accuracy" else cfg.dataset.scores[0],
        extra_metrics=scored.further or None if scored else None,
        cost=_cost(fitted, training.device, total_seconds, cfg.folder / ADAPTER),
        env={
            **describe_environment(training.device),
            "fused_attention": has_fused_attention(model),
            "acceleration": acceleration,
        },
    )


def _metrics(fitted: FitResult, test: Evaluation | None) -> dict[str, float | int | None]:
    return {
        "train_loss": fitted.history[-1]["train_loss"],
        "val_top1": fitted.val_score,
        "test_top1": test.top1 if test else None,
        "test_loss": test.loss if test else None,
        "epochs": len(fitted.history),
    }


def _commit(code: tuple[str | None, bool | None]) -> str | None:
    """In git's own words for one with changes, ``<sha>-dirty``."""
    sha, dirty = code
    return f"{sha}-dirty" if sha and dirty else sha


def _run_record(cfg: RunConfig, training: Training, fitted: FitResult) -> RunRecord:
    sha, dirty = training.code
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
        overrides=training.call.overrides,
        command=training.call.command,
        started_at=training.started_at,
        git_sha=sha,
        git_dirty=dirty,
        earlier_commits=[commit for commit in fitted.commits if commit != _commit(training.code)] or None,
        gift_vit_version=__version__,
        chosen=fitted.chosen if fitted.kept_epoch is None else {"epoch": fitted.kept_epoch},
        chosen_on=fitted.chosen_on if fitted.kept_epoch is None else "val",
    )


def _data_record(cfg: RunConfig, data: VisionDataset, report: DataReport | None) -> DataRecord:
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
        class_names=data.class_names,
        sample=data.sample,
        **(report.record() if report is not None else {}),
    )


def _cost(fitted: FitResult, device: torch.device, total_seconds: float, adapter: Path) -> CostRecord:
    images = sum(record["images_per_s"] * record["seconds"] for record in fitted.history)
    steps = sum(record["steps"] for record in fitted.history)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return CostRecord(
        train_seconds=fitted.seconds,
        total_seconds=total_seconds,
        images_per_s=images / fitted.seconds,
        step_time_ms=1000 * fitted.seconds / steps if steps else None,
        peak_memory_mib=_largest(peak),
        peak_rss_mib=_largest(peak_rss_mib()),
        adapter_bytes=adapter.stat().st_size,
    )


def _largest(value: float | None) -> float | None:
    """The largest value among the processes of the run; None where none has one."""
    return max((own for own in distributed.gather(value) if own is not None), default=None)
