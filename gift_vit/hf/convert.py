"""Adapters of timm ViTs from gift_vit's own file to a peft folder, and back."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gift_vit import __version__
from gift_vit.common.files import expanded
from gift_vit.common.tensors import write_tensors
from gift_vit.methods import GiftConfig as VisionConfig
from gift_vit.methods.adapter import FORMAT, describe_backbone, describe_method, head_names, method_config, read_adapter
from gift_vit.methods.config import QKV_SLICES

from .config import GiftConfig

_PREFIX = "base_model.model."
_KEPT = "gift_vit"  # metadata key of what a peft folder has no place for
_OUTSIDE = r"(?!blocks\.).*"  # an attention pool has an MLP too, which is no target


def from_adapter(file: str | Path, out: str | Path) -> GiftConfig:
    """Write an adapter of gift_vit as a folder that ``PeftModel.from_pretrained`` loads into the same timm model.

    Args:
        file: An adapter of method ``gift``, with whole layers as targets and nothing between φ and ψ.
        out: The folder; made if it is not there.

    Returns:
        The config that was written.

    Raises:
        ConfigError: If ``file`` is no adapter of gift_vit.
        ValueError: If peft has nothing like it: another method, a fused slice, a schema, biases.
    """
    adapter = read_adapter(file)
    vision = method_config(adapter.metadata["method"])
    if not isinstance(vision, VisionConfig):
        raise ValueError(f"{file} is an adapter of {type(vision).__name__}; only GIFT's can be converted")
    sliced = [target for target in vision.target_modules if target in QKV_SLICES]
    if sliced:
        raise ValueError(
            f"{file} adapts {', '.join(sliced)}, of most ViTs a part of a fused layer, which peft cannot; retrain with "
            "attn.qkv, or with attn.q_proj of EVA-02"
        )
    numbered = [target for target in vision.target_modules if any(part.isdigit() for part in target.split("."))]
    if numbered:
        raise ValueError(f"{file} names single layers ({numbered[0]}), which share a pair in peft's GIFT; retrain with blocks=")
    if vision.schema != "linear" or vision.phi_bias or vision.psi_bias:
        raise ValueError(f"{file} has a schema or biases (schema={vision.schema}); peft's GIFT has neither")
    head = sorted(name for name in adapter.tensors if not name.startswith("gift."))
    config = GiftConfig(
        r=vision.rank,
        target_modules=list(vision.target_modules),
        exclude_modules=_OUTSIDE,
        share="all" if vision.share else "target",
        alpha=vision.alpha,
        init_weights="wegeft" if vision.init == "wegeft" else True,
        layers_to_transform=None if vision.blocks is None else list(vision.blocks),
        layers_pattern=None if vision.blocks is None else "blocks",
        modules_to_save=sorted({name.rpartition(".")[0] for name in head}) or None,
        inference_mode=True,
    )
    first = 0 if vision.blocks is None else min(vision.blocks)
    tensors = {f"{_PREFIX}{name}": adapter.tensors[name] for name in head}
    for name in adapter.tensors.keys() - set(head):
        target, _, part = name.removeprefix("gift.").rpartition(".")
        target = vision.target_modules[0] if vision.share else target
        tensors[f"{_PREFIX}blocks.{first}.{target}.gift_pair.{part}"] = adapter.tensors[name]
    out = expanded(out)
    config.save_pretrained(str(out))
    kept = {key: value for key, value in adapter.metadata.items() if key not in ("format", "version", "method")}
    kept["target_modules"] = list(vision.target_modules)  # peft's are a set
    metadata = {"format": "pt", _KEPT: json.dumps(kept)}
    write_tensors(out / SAFETENSORS_WEIGHTS_NAME, tensors, metadata)
    return config


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`from_adapter` has kept of the file it read, and the tensors."""
    try:
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return json.loads((file.metadata() or {}).get(_KEPT, "{}")), tensors
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: its {SAFETENSORS_WEIGHTS_NAME} cannot be read ({error}); save the adapter again"
        ) from error


def to_adapter(folder: str | Path, out: str | Path, model: nn.Module | None = None) -> None:
    """Write a peft folder of GIFT on a timm ViT as an adapter file of gift_vit.

    Args:
        folder: What ``save_pretrained`` or :func:`from_adapter` wrote.
        out: The file.
        model: The plain timm model that was adapted, for the file names its backbone; not needed if :func:`from_adapter` wrote
            the folder.

    Raises:
        ValueError: If the folder is another method's, has options that gift_vit's GIFT lacks, adapts other layers than those of
            blocks, holds another part of the model than its head or not that, the backbone is not known, or a file is damaged.
    """
    folder = expanded(folder)
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, GiftConfig):
        raise ValueError(f"{folder} holds an adapter of peft's {config.peft_type}; only GIFT's can be converted")
    if not isinstance(config.target_modules, (set, list)):
        raise ValueError(f"{folder}: target_modules={config.target_modules!r} has no equal in gift_vit; list the layers")
    for option, equal in (("share", ("target", "all")), ("exclude_modules", (None, _OUTSIDE)), ("bias", ("none",))):
        if (value := getattr(config, option)) not in equal:
            raise ValueError(f"{folder}: {option}={value!r} has no equal in gift_vit; retrain without it")
    kept, stored = _read(folder)
    if model is not None:
        kept["backbone"] = describe_backbone(model)
        _check_outside(folder, config, model)
    if "backbone" not in kept:
        raise ValueError(f"{folder} does not say which backbone it adapts; give model=<the plain timm model>")
    layers, in_order = config.layers_to_transform, kept.pop("target_modules", [])
    vision = VisionConfig(
        rank=config.r,
        target_modules=in_order if set(in_order) == set(config.target_modules) else sorted(config.target_modules),
        share=config.share == "all",
        init="wegeft" if config.init_weights == "wegeft" else "gift",
        alpha=config.alpha,
        blocks=[layers] if isinstance(layers, int) else layers,
    )
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        name, found, part = key.removeprefix(_PREFIX).rpartition(".gift_pair.")
        target = next((target for target in vision.target_modules if name.endswith(f".{target}")), None)
        if not found:
            tensors[part] = tensor
        elif target is None or not name.startswith("blocks."):
            raise ValueError(f"{folder} adapts {name}, which is no target of gift_vit's GIFT such as attn.proj")
        else:
            tensors[f"gift.{'shared' if vision.share else target}.{part}"] = tensor.contiguous()
    _check_head(folder, {name for name in tensors if not name.startswith("gift.")}, model)
    facts = {"format": FORMAT, "version": __version__, "method": describe_method(vision), **kept}
    write_tensors(expanded(out), tensors, {key: json.dumps(value) for key, value in facts.items()})


def _check_head(folder: str | Path, whole: Set[str], model: nn.Module | None) -> None:
    """Refuse a folder whose modules that were trained whole, by the names of their tensors, are not a given model's head."""
    head = whole if model is None else set(head_names(model))
    if wrong := sorted(whole - head) or sorted(head - whole):
        modules = sorted({name.rpartition(".")[0] for name in head})
        doing = "holds" if wrong[0] in whole else "lacks"
        raise ValueError(
            f"{folder} {doing} {wrong[0]}, and an adapter of gift_vit is GIFT's pairs and the head; retrain with "
            f"modules_to_save={modules or None}"
        )


def _check_outside(folder: str | Path, config: GiftConfig, model: nn.Module) -> None:
    """Refuse layers outside of blocks that share a pair of the blocks' own: its file names one layer of each pair."""
    targets = tuple(f".{target}" for target in config.target_modules or ())
    for name, layer in model.named_modules() if config.exclude_modules is None else ():
        if isinstance(layer, nn.Linear) and not name.startswith("blocks.") and f".{name}".endswith(targets):
            raise ValueError(f"{folder} adapts {name}, which is no target of gift_vit's GIFT; retrain without it")
