"""The adapter of a model of transformers as a folder of peft's, which does without this project but for GIFT's own layers."""

import logging
import re
from copy import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gift_vit.common.files import writing
from gift_vit.common.hub import PEFT_CONFIG, PEFT_FOLDER, PEFT_WEIGHTS
from gift_vit.common.tensors import write_tensors
from gift_vit.config.run_config import RunConfig
from gift_vit.methods.hf_peft import REFUSALS, peft_layers
from gift_vit.methods.targets import head_modules

log = logging.getLogger(__name__)

_PLAIN = "model."  # before the names of its modules in our class
_INNER = re.escape(_PLAIN)
_TUNER = "base_model."  # of peft's, around the model
_SHARED = ("vblora_vector_bank", "tinylora_v", "unilora_theta_d")  # of all layers; their tuners save them as their own


def keep_peft_folder(cfg: RunConfig, model: nn.Module, folder: Path) -> None:
    """Write ``adapter/`` into a run's folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``PeftModel.from_pretrained`` puts it on the model that ``cfg.backbone.model`` names, after ``import gift_vit.hf`` where
    the method is GIFT. The new head is among ``modules_to_save``; that of ``pooling: mean``, which no class of transformers
    has, stays in the project's own file. Of a method that has no layers of peft's nothing is written.

    Raises:
        ConfigError: If the folder cannot be written.
        RunError: If the disk is full.
    """
    if not cfg.backbone.is_text or not peft_layers(model):
        return
    from peft import get_peft_model_state_dict  # transformers

    wrapped: Any = model
    inner: nn.Module = wrapped.model
    config = _as_inside(wrapped.peft_config["default"])
    heads = head_modules(model)
    parts = [name for name, module in inner.named_modules() if module in heads]
    head = [name for name in parts if name.rpartition(".")[0] not in parts]
    config.modules_to_save = head or None
    config.base_model_name_or_path, config.revision = cfg.backbone.model, cfg.backbone.revision
    config.task_type = "FEATURE_EXTRACTION" if cfg.backbone.pooling == "mean" else "SEQ_CLS" if head else "CAUSAL_LM"
    vars(inner)["peft_config"] = {"default": config}
    try:  # not "auto": it would ask the hub whether rows were added to the embedding
        tensors = dict(get_peft_model_state_dict(inner, _state(inner), save_embedding_layers=False))
    except REFUSALS as error:  # of a method that a newer peft has: the run and its own file are whole without
        log.warning("peft cannot save its %s: adapter/ is not written (%s: %s)", config.peft_type, type(error).__name__, error)
        return
    finally:
        del vars(inner)["peft_config"]
    if _draws_again(config):
        trained = {parameter.data_ptr() for parameter in inner.parameters() if parameter.requires_grad}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() in trained}
    for name in head:
        tensors |= {f"{name}.{key}": value for key, value in inner.get_submodule(name).state_dict().items()}
    tensors = {
        name if name.startswith(_TUNER) else f"{_TUNER}model.{name}": tensor.cpu().clone().contiguous()
        for name, tensor in tensors.items()
    }
    place = folder / PEFT_FOLDER
    with writing(place / PEFT_CONFIG):
        config.save_pretrained(str(place))
    write_tensors(place / PEFT_WEIGHTS, tensors, {"format": "pt"})


def _state(inner: nn.Module) -> dict[str, Tensor]:
    """All tensors by name; what layers share as a part of peft's tuner is there under the tuner's name too."""
    state = inner.state_dict()
    return state | {
        f"{_TUNER}{name[name.index(part) :]}": tensor
        for name, tensor in state.items()
        for part in _SHARED
        if f".{part}." in name
    }


def _as_inside(config: Any) -> Any:
    """The config for the model inside our class, whose modules' whole names are shorter there."""
    config = copy(config)
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        names = getattr(config, key, None)
        if isinstance(names, str):  # whole names, as they are put together for peft
            inside = [name.removeprefix(_INNER) for name in names.split("|") if name.startswith(_INNER)]
            setattr(config, key, "|".join(inside) or None)
    for key, value in vars(config).items():
        if key.endswith("_pattern") and isinstance(value, dict):
            setattr(config, key, {name.removeprefix(_PLAIN): each for name, each in value.items()})
    if _draws_again(config):
        config.save_projection = False
    return config


def _draws_again(config: Any) -> bool:
    """Whether frozen projections that all layers share, as of VeRA and RandLoRA, come from a seed that the config holds."""
    return hasattr(config, "projection_prng_key")
