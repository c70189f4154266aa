"""What is done with a finished run: scored again, or merged into a plain timm checkpoint."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path, new_folder
from gift_vit.common.tensors import check_finite, write_tensors
from gift_vit.data.base import VisionDataset
from gift_vit.data.transforms import InputStatistics
from gift_vit.engine.fit import Evaluation
from gift_vit.methods.adapter import merge_method, read_adapter
from gift_vit.runs.build import finished_model, score
from gift_vit.runs.predictions import keep_predictions
from gift_vit.runs.result import PREDICTIONS, write_result
from gift_vit.runs.run import ADAPTER, RESULT, Run, file_hashes

log = logging.getLogger(__name__)


def evaluate_split(run: Run, split: str, device: str = "auto") -> Evaluation:
    """Top-1 and loss of a finished run's model on one split of its data, computed as in training.

    Where its record has another score, that is warned of.

    Raises:
        ConfigError: If the run is not finished, its data or weights are no longer what they were, or there is no such split.
    """
    model, _ = finished_model(run, device)
    evaluation = score_model(run, model, run.data(), split)
    recorded = run.result and run.result.metrics.get(f"{split}_top1")
    if recorded is not None and round(recorded, 2) != round(evaluation.top1, 2):
        log.warning(
            "the record says %.2f %%, here it is %.2f %%: images have changed in place, or this is another kind of machine",
            *(recorded, evaluation.top1),
        )
    return evaluation


def score_model(run: Run, model: nn.Module, data: VisionDataset, split: str, keep_logits: bool = False) -> Evaluation:
    """Top-1 and loss of :func:`finished_model` on one split.

    Its images are read once, here: a cache on disk is used where there is one, and none is made.
    """
    cfg = run.config
    if cfg.dataset.cache == "disk":
        cfg = replace(cfg, dataset=replace(cfg.dataset, cache="auto"))
    return score(cfg, model, data, split, next(model.parameters()).device, keep_logits)


def make_predictions(run: Run, device: str = "auto") -> Evaluation:
    """Keep the predictions of a finished run that has none: of the split it is scored on, and of val where that is another.

    Raises:
        ConfigError: As :func:`evaluate_split` does, and for an imported adapter, which has no record to keep them with.
        RunError: If the files or the scores are not those of the record; nothing is written then.
    """
    run.check_keeps_predictions()
    if run.result is None:
        raise ConfigError(f"{run.folder} is an imported adapter, without a result.json that could vouch for its predictions")
    found = file_hashes(run.folder)
    for name, recorded in (run.result.files or {}).items():
        if name != PREDICTIONS and found.get(name) != recorded:
            raise RunError(
                f"{run.folder}: {name} has another SHA-256 than {RESULT} says, and no predictions are kept; "
                "restore the file, or train the run again"
            )
    data, own = run.data(), run.split()
    model, _ = finished_model(run, device)
    evaluated: dict[str, Evaluation | None] = {}
    for split in (split for split in run.predicted_splits if split == own or split in data.splits):
        evaluation = evaluated[split] = score_model(run, model, data, split, keep_logits=True)
        recorded = run.result.metrics[f"{split}_top1"]
        if recorded is not None and not math.isclose(evaluation.top1, recorded):
            raise RunError(
                f"{run.folder}: {split} {run.result.score_name} is {evaluation.top1:.4f} % here, {recorded:.4f} % in {RESULT}: "
                "these are not the run's own predictions, and none are kept; make them on the kind of machine that trained it"
            )
    predictions = keep_predictions(run.folder, data, evaluated)
    write_result(run.folder / RESULT, replace(run.result, predictions=predictions, files=file_hashes(run.folder)))
    scored = evaluated[own]
    assert scored is not None
    return scored


def _write_text_model(model: Any, run: Run, out: Path) -> str:
    classifies = bool(model.get_classifier())
    if classifies and run.config.dataset.is_regression:
        model.model.config.problem_type = "regression"  # else a pipeline of transformers takes a sigmoid of the number
    elif classifies:
        model.model.config.problem_type = "single_label_classification"  # whatever the pretrained model's was
        names = run.class_names(model.num_classes)
        model.model.config.id2label = dict(enumerate(names))
        model.model.config.label2id = {name: index for index, name in enumerate(names)}
    state = {name: tensor.contiguous() for name, tensor in model.model.state_dict().items()}
    check_finite(f"{out} is not written", **{f"the weights of {name}": tensor for name, tensor in state.items()})
    dataset: Any = run.config.dataset  # of texts
    length = dataset.length_for(model.max_tokens)
    if classifies:
        model.tokenizer.model_max_length = length  # what truncation=True cuts to
    with new_folder(out) as stage:
        model.model.save_pretrained(stage)
        model.tokenizer.save_pretrained(stage)
    dtype = run.config.backbone.dtype
    rounded = "" if dtype == "float32" else f"\nits weights are {dtype}, to which the changes are rounded: logits differ"
    cut = f"\ntexts were cut to {length} tokens, as its tokenizer does with truncation=True" if classifies else ""
    auto = "AutoModelForSequenceClassification" if classifies else "AutoModelForCausalLM"
    return f'wrote {out}; load it with\n    transformers.{auto}.from_pretrained("{out}"){cut}{rounded}'


def preparation(run: Run, stats: InputStatistics) -> dict[str, Any]:
    """How the run's images were decoded, resized, cropped and normalised; None stands for what is not known, or not done."""
    transform = run.config.dataset.transform
    return {
        "decoder": run.result.data.decoder if run.result else None,
        "interpolation": transform.resize or stats.interpolation,
        "crop_ratio": transform.crop_ratio,
        "shorter_side": transform.shorter_side(stats.input_size),
        "input_size": stats.input_size,
        "mean": stats.mean,
        "std": stats.std,
    }


def write_merged(run: Run, out: Path) -> str:
    """Merge a finished run's adapter into its backbone and write the state dict; returns how to load it, for a person.

    Dataset and class names, as far as they are known, and how images were prepared stand beside it: as JSON in the metadata of
    ``.safetensors``, beside ``state_dict`` in ``.pth``.

    Raises:
        ConfigError: If the run is not finished, or its method cannot be merged.
        RunError: If a merged weight is NaN or infinite, or the disk is full.
    """
    backbone = run.config.backbone
    if backbone.pooling == "mean":
        raise ConfigError(f"{run.folder} pools the mean, for which transformers has no class; keep the adapter beside it")
    model = merge_method(run.model())
    if backbone.is_text:
        return _write_text_model(model, run, out)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    check_finite(f"{out} is not written", **{f"the weights of {name}": tensor for name, tensor in state.items()})
    prepared = preparation(run, input_statistics(model))
    metadata = read_adapter(run.folder / ADAPTER).metadata
    facts = {key: value for key in ("dataset", "class_names") if (value := metadata.get(key)) is not None} | prepared
    if out.suffix == ".safetensors":
        write_tensors(out, state, {"format": "pt"} | {key: json.dumps(value) for key, value in facts.items()})
    else:
        with atomic_path(out) as partial, partial.open("wb") as file:
            torch.save({"state_dict": state, **facts}, file)  # by name, it would put the temporary one into the file
    size = f", img_size={backbone.img_size}" if backbone.img_size else ""
    lines = [f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB); load it with"]
    if backbone.model.startswith("vit_mini"):
        lines.append("    import gift_vit.backbones.vit_mini  # registers vit_mini with timm")
    create = f'timm.create_model("{backbone.model}", num_classes={model.num_classes}{size}'
    if backbone.global_pool is None:
        lines.append(f'    {create}, checkpoint_path="{out}")')
    else:  # another pooling at once would put the final norm elsewhere; and resetting draws a head
        lines.append(f"    model = {create})")
        lines.append(f'    model.reset_classifier({model.num_classes}, global_pool="{backbone.global_pool}")')
        lines.append(f'    timm.models.load_checkpoint(model, "{out}")')
    lines.append(f"    # images, as the run prepared them: {json.dumps(prepared)}")
    return "\n".join(lines)
