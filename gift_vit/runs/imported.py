"""A checkpoint that the authors of GIFT released, as a folder with an adapter of this project."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from gift_vit.backbones.build import build_backbone
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import write_json, write_text, writing
from gift_vit.config.compose import compose_config, conf_dir
from gift_vit.config.loader import load_config
from gift_vit.config.run_config import RunConfig
from gift_vit.methods.adapter import (
    FINGERPRINTS,
    ParameterCount,
    applied_method,
    apply_method,
    count_parameters,
    describe_method,
    load_adapter_state_dict,
    save_adapter,
)
from gift_vit.runs.released import Released
from gift_vit.runs.run import ADAPTER, CHECKPOINT, CONFIG, IMPORTED, LOG, RESULT, read_imported

_HEADER = "# Made by gift_vit.import_gift, for evaluate and merge. What is known of the training is in imported.json.\n"


def import_checkpoint(released: Released, folder: Path, weights: str | None = None) -> ParameterCount:
    """Check that a released checkpoint fits its backbone and dataset, and write a folder; ``imported.json`` last.

    Args:
        released: What the checkpoint holds.
        folder: The folder to write.
        weights: A local file with the backbone's pretrained weights, which the folder's config then names.

    Raises:
        ConfigError: If the checkpoint does not fit, or the folder is taken.
    """
    _check_free(folder, released.sha256)
    cfg = _run_config(released, weights)
    model = _fill_model(released, cfg)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Which weights exactly the authors' code loaded is not known, only their name.
    backbone = applied_method(model).backbone | dict.fromkeys(FINGERPRINTS)
    save_adapter(model, folder / ADAPTER, dataset=cfg.dataset.name, backbone=backbone)
    write_text(folder / CONFIG, _HEADER + OmegaConf.to_yaml(OmegaConf.create(cfg.values)))
    counts = count_parameters(model)
    write_json(
        folder / IMPORTED,
        {
            "file": released.file.name,
            "sha256": released.sha256,
            "trained_by": "the authors of GIFT (github.com/savadikarc/gift)",
            "dataset": cfg.dataset.name,
            "num_classes": released.num_classes,
            "backbone": backbone,
            "method": describe_method(released.method),
            "params": {**asdict(counts), "percent": counts.percent},
            "epochs": released.epochs,
            "reported": {"split": released.split, "top1": released.top1},
            "arguments": released.arguments,
        },
    )
    return counts


def _run_config(released: Released, weights: str | None) -> RunConfig:
    """The config of the run that the authors' code made, as far as it is known."""
    words = [f"dataset={released.dataset}", f"backbone={_backbone_label(released)}", "method=gift", "protocol=gift_paper"]
    cfg = compose_config([*words, "phase=final", "recipe=none", "run_name=imported"])
    cfg.method.rank, cfg.method.target_modules = released.method.rank, released.method.target_modules
    cfg.backbone.weights = weights
    for key in ("lr", "weight_decay"):
        cfg.optim[key] = released.arguments.get(key)
    cfg.seed = released.arguments.get("seed")
    checked = load_config(cfg)
    if checked.dataset.num_classes != released.num_classes:
        expected = checked.dataset.num_classes
        raise ConfigError(f"{released.file} has a head of {released.num_classes} classes; {released.dataset} has {expected}")
    return checked


def _backbone_label(released: Released) -> str:
    """The config of the backbone with the checkpoint's timm name."""
    labels: dict[str, str] = {}
    for file in sorted((conf_dir() / "backbone").glob("*.yaml")):
        values: Any = OmegaConf.to_container(OmegaConf.load(file))
        if "/_text_backbone" not in values.get("defaults", []):  # no ViT
            labels[values["model"]] = file.stem
    if released.backbone not in labels:
        raise ConfigError(
            f"{released.file} has the backbone {released.backbone}, of which there is no config (known: {', '.join(labels)}); "
            "add a file to conf/backbone"
        )
    return labels[released.backbone]


def _fill_model(released: Released, cfg: RunConfig) -> nn.Module:
    """The checkpoint's backbone, its weights random, with adapter and head loaded: whatever does not fit is an error."""
    try:
        model = build_backbone(replace(cfg.backbone, pretrained=False, weights=None), released.num_classes)
        load_adapter_state_dict(apply_method(model, released.method), released.tensors)
    except ConfigError as error:
        raise ConfigError(f"{released.file} does not fit {released.backbone}: {error}") from error
    return model


def _check_free(folder: Path, sha256: str) -> None:
    """Refuse a folder that holds a run, or another checkpoint."""
    taken = [name for name in (RESULT, CHECKPOINT, LOG) if (folder / name).exists()]
    if (before := read_imported(folder / IMPORTED)) is not None and before["sha256"] != sha256:
        taken.append(IMPORTED)
    if taken:
        raise ConfigError(f"{folder} holds a run or another checkpoint ({taken[0]}); give out=<another folder>")
