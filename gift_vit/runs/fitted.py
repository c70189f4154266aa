"""Methods that are fitted on features in place of being trained: val chooses among their settings."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError
from gift_vit.config.keys import best_of
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset
from gift_vit.engine.fit import Evaluation, FitResult, Tally
from gift_vit.engine.objective import CLASSES, Objective
from gift_vit.engine.observer import EpochRecord, Observer
from gift_vit.methods.config import Candidates, spec_of
from gift_vit.runs.build import objective_of
from gift_vit.runs.features import Features, open_features

log = logging.getLogger(__name__)
_BATCH = 1024  # features scored at a time


def in_full_precision(cfg: RunConfig) -> RunConfig:
    """The run as it is computed if its method is fitted: in float32, whatever the protocol has; any other as it is."""
    if not isinstance(cfg.method, Candidates):
        return cfg
    settled: dict[str, Any] = {"precision": "fp32", "compile": False}
    values = {**cfg.values, "trainer": {**cfg.values["trainer"], **settled, "speed": "exact"}}
    trainer, compute = replace(cfg.trainer, **settled), replace(cfg.compute, speed="exact")
    return replace(cfg, trainer=trainer, compute=compute, values=values)


def fit_on_features(
    cfg: RunConfig, model: nn.Module, data: VisionDataset, device: torch.device, observers: Sequence[Observer]
) -> FitResult:
    """Set a model's head from the features of the training split, with the setting that val chooses.

    Every setting is fitted on train and scored on val; the best one (of equal ones the smallest, as everywhere) is fitted on
    the run's own split. A single setting is fitted on that at once, and scored on val unless val is part of it.

    Args:
        cfg: The run; its method's config is one of :class:`Candidates`.
        model: On its device, with the method applied.
        data: The dataset.
        device: Where to compute.
        observers: Are told of every setting, and of the whole as one epoch without updates.

    Raises:
        ConfigError: If several processes share the run, or an image cannot be read.
        RunError: If a feature or a logit is not finite.
    """
    if distributed.world_size() > 1:
        raise ConfigError(f"method {cfg.method_name} is fitted by one process; start it without torchrun")
    fit, settings = spec_of(cfg.method).fit, cfg.method.settings()
    assert fit is not None, "a config of candidates belongs to a method with a fit"
    with_val, objective = cfg.train_split == "trainval", objective_of(cfg.dataset)
    if cfg.dataset.is_regression:
        raise ConfigError(f"method {cfg.method_name} fits classes, and {cfg.dataset.name} has numbers; give method=linear")
    for observer in observers:
        observer.epoch_started(0, 1, sum(len(part) for part in data.parts(cfg.train_split)))
    train = open_features(cfg, model, data, "train", device)
    val = open_features(cfg, model, data, "val", device)
    started = time.perf_counter()

    scores: list[Evaluation] = []
    for setting in settings if len(settings) > 1 or not with_val else ():
        begun = time.perf_counter()
        fit(model, setting, train.values, train.labels)
        scores.append(scored := score_features(model, val, f"on val with {setting}", objective))
        record = {**setting, "val_top1": scored.top1, "val_loss": scored.loss, "seconds": time.perf_counter() - begun}
        for observer in observers:
            observer.setting_scored(record)
    best = best_of(settings, [scored.top1 for scored in scores]) if scores else 0
    _tell(settings[best], settings)

    images = train + val if with_val else train
    fit(model, settings[best], images.values, images.labels)
    train_loss = score_features(model, images, "on the training examples", objective).loss
    seconds = train.seconds + val.seconds + time.perf_counter() - started
    speed = len(images.labels) / seconds
    record = EpochRecord(epoch=0, train_loss=train_loss, lr=0.0, steps=0, seconds=seconds, images_per_s=speed)
    if not with_val:
        record["val_top1"], record["val_loss"] = scores[best].top1, scores[best].loss
    for observer in observers:
        observer.epoch_done(record)
    keep_val = cfg.trainer.keep_predictions == "all" and not with_val
    kept = score_features(model, val, "on val", objective, keep_logits=True) if keep_val else None
    chosen_on = "val" if len(settings) > 1 else "config"
    return FitResult([record], seconds, chosen=settings[best], chosen_on=chosen_on, val=kept)


@torch.inference_mode()
def score_features(
    model: nn.Module, images: Features, where: str, objective: Objective = CLASSES, keep_logits: bool = False
) -> Evaluation:
    """Score and loss of a model's head on features, and with ``keep_logits`` its logits; a RunError if one is not finite."""
    head = model.get_classifier()  # pyright: ignore[reportCallIssue]
    tally = Tally(images.values.device, objective.keeping(keep_logits))
    for values, labels in zip(images.values.split(_BATCH), images.labels.split(_BATCH), strict=True):
        tally.add(head(values), labels)
    return tally.evaluation(where)


def _tell(chosen: Mapping[str, float], settings: Sequence[Mapping[str, float]]) -> None:
    """What was chosen, and where it is the smallest or largest that was tried."""
    listed = " ".join(f"{key}={value:g}" for key, value in chosen.items())
    source = f"the best of {len(settings)} on val" if len(settings) > 1 else "the only one of the configuration"
    log.info("fitted with %s, %s", listed, source)
    for key, value in chosen.items():
        tried = {setting[key] for setting in settings}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            log.info("method.%s=%g is the %s tried", key, value, "smallest" if value == min(tried) else "largest")
