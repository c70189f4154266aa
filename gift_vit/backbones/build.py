"""Building a timm ViT with pretrained weights and a new head."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import numpy as np
import requests
import timm
from huggingface_hub import constants as hub
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.data.config import resolve_model_data_config
from timm.layers import weight_init
from timm.models import PretrainedCfg, is_model_pretrained, load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from gift_vit.backbones import vit_mini
from gift_vit.backbones.config import BackboneConfig
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import check_readable
from gift_vit.data.transforms import InputStatistics

log = logging.getLogger(__name__)

HUB_TIMEOUT_S = 5.0


def build_backbone(cfg: BackboneConfig, num_classes: int, drop_path_rate: float = 0.0) -> nn.Module:
    """A timm ViT with pretrained weights and a newly drawn head of ``num_classes`` classes.

    The head's weight is drawn from a normal distribution of std 0.02 truncated at ±2, its bias is zero, as the authors'.

    Raises:
        ConfigError: If timm knows no such model or weights, a local file is missing, unreadable or of another architecture, or
            the model is no timm ViT.
        RunError: If the weights cannot be downloaded.
    """
    _check_name(cfg.model)
    kwargs: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": drop_path_rate}
    if cfg.img_size is not None:
        kwargs["img_size"] = cfg.img_size
    model = _create(cfg, kwargs)
    if not hasattr(model, "blocks"):
        raise ConfigError(f"{cfg.model} is a {type(model).__name__} without blocks; expected a timm ViT")
    if cfg.weights is not None:
        load_local_weights(model, Path(cfg.weights))
    head = model.get_classifier()  # pyright: ignore[reportCallIssue]
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    return model


def _check_name(model: str) -> None:
    if not timm.is_model(model):
        close = get_close_matches(model.partition(".")[0], timm.list_models(), 3)
        hint = f"; did you mean one of {', '.join(close)}?" if close else ""
        raise ConfigError(f"timm has no model {model!r}{hint} (timm.list_models('vit*') lists them)")
    if "." in model and not is_model_pretrained(model):
        name, _, tag = model.partition(".")
        known = ", ".join(model.partition(".")[2] for model in timm.list_pretrained(f"{name}.*"))
        raise ConfigError(f"timm knows no weights {tag!r} of {name} (known: {known})")


def _create(cfg: BackboneConfig, kwargs: dict[str, Any]) -> nn.Module:
    pretrained = cfg.pretrained and cfg.weights is None
    if pretrained and cfg.model.startswith("vit_mini") and not vit_mini.WEIGHTS_FILE.is_file():
        raise ConfigError(f"{vit_mini.WEIGHTS_FILE} is missing; reinstall the package")
    from_hub = pretrained and cast(PretrainedCfg, timm.get_pretrained_cfg(cfg.model)).hf_hub_id
    # of a plain ViT a file holds all but the head, which build_backbone draws
    replaced = cfg.pretrained and cfg.model.startswith("vit_")
    try:
        with _drawn_only() if replaced else nullcontext(), _hub_asked_once() if from_hub else nullcontext():
            return timm.create_model(cfg.model, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{cfg.model} cannot be built with {', '.join(kwargs)}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = "not reached, and nothing downloaded before"
        if not isinstance(error, LocalEntryNotFoundError):
            reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"the weights of {cfg.model} could not be had from the hub ({reason}); "
            "connect to the internet or give a local file with backbone.weights=<file>"
        ) from error


@contextmanager
def _hub_asked_once() -> Iterator[None]:
    """Where the hub does not answer, take at once what was downloaded before: its library would ask for two minutes."""
    if hub.HF_HUB_OFFLINE or _hub_answers():
        yield
        return
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = False
    log.warning("%s does not answer: the weights are those downloaded before", hub.ENDPOINT)


def _hub_answers() -> bool:
    try:
        requests.head(hub.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except requests.RequestException:
        return False
    return True


@contextmanager
def _drawn_only() -> Iterator[None]:
    """Let timm draw the numbers of its truncated normal distributions and make nothing of them.

    Random numbers that follow are those that would have followed: of each weight as many are drawn. For models whose weights
    are overwritten, all but those that are drawn anew; a ViT-B is then built in a fifth of the time.
    """
    original: Any = weight_init._trunc_normal_

    def draw(tensor: Tensor, *_: float) -> Tensor:
        return tensor.uniform_()

    weight_init._trunc_normal_ = draw
    try:
        yield
    finally:
        weight_init._trunc_normal_ = original


def load_local_weights(model: nn.Module, path: Path) -> None:
    """Load a ``.safetensors``, ``.pth`` or original ``.npz`` file into a timm ViT, everything but the head, strictly."""
    if not path.is_file():
        raise ConfigError(f"backbone.weights={path}: no such file")
    check_readable(path)
    try:
        if path.suffix == ".npz":
            _check_npz_depth(model, path)
            model.load_pretrained(str(path))  # pyright: ignore[reportCallIssue]
        else:
            _load_tensors(model, path)
    except ConfigError:
        raise
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"backbone.weights={path} does not fit {_architecture(model)}: {reason}") from error
    except Exception as error:  # safetensors and pickle raise classes of their own for files that are none
        raise ConfigError(f"backbone.weights={path} is not a readable weight file: {error}") from error


def _load_tensors(model: nn.Module, path: Path) -> None:
    state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    stem = state.get("patch_embed.proj.weight")
    own_stem = model.state_dict()["patch_embed.proj.weight"]
    if stem is not None and stem.ndim == 4 and stem.shape != own_stem.shape:
        raise ConfigError(
            f"backbone.weights={path} does not fit {_architecture(model)}: its patch embedding has shape "
            f"{tuple(stem.shape)}, expected {tuple(own_stem.shape)}"
        )
    if isinstance(model, VisionTransformer):
        state = checkpoint_filter_fn(state, model)
    head = {name for name in model.state_dict() if name.startswith("head.")}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "head_dist.", "pre_logits."))}
    outcome = model.load_state_dict(state, strict=False)
    missing = [name for name in outcome.missing_keys if name not in head]
    if missing or outcome.unexpected_keys:
        examples = ", ".join([*missing[:2], *outcome.unexpected_keys[:2]])
        raise ConfigError(
            f"backbone.weights={path} does not fit {_architecture(model)}: {len(missing)} tensors missing and "
            f"{len(outcome.unexpected_keys)} unknown, such as {examples}; give the weights of this architecture"
        )


def _check_npz_depth(model: nn.Module, path: Path) -> None:
    """Refuse a file of another depth or patch embedding: timm's reader takes the blocks it needs and ignores the rest."""
    with np.load(path) as file:
        blocks = {int(match[1]) for name in file.files if (match := re.search(r"encoderblock_(\d+)/", name))}
        stem = next((file[name].shape for name in file.files if name.endswith("embedding/kernel")), None)
    own = model.state_dict()["patch_embed.proj.weight"].shape
    expected = (own[2], own[3], own[1], own[0])
    depth = len(model.get_submodule("blocks"))  # pyright: ignore[reportArgumentType]
    if len(blocks) != depth or stem != expected:
        raise ConfigError(
            f"backbone.weights={path} does not fit {_architecture(model)}: {len(blocks)} blocks and patch embedding {stem}, "
            f"expected {depth} and {expected}"
        )


def _architecture(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))


def input_statistics(model: nn.Module) -> InputStatistics:
    """Input size, mean, std and interpolation that the model's pretrained weights were made for."""
    facts = resolve_model_data_config(model)
    height, width = cast(tuple[int, int], model.get_submodule("patch_embed").img_size)
    if height != width:
        raise ConfigError(f"{_architecture(model)} takes {height}×{width} images; only square inputs are supported")
    return InputStatistics(height, tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"])


def weights_source(cfg: BackboneConfig, model: nn.Module) -> str:
    """Where the weights came from, for the run's record."""
    if not cfg.pretrained:
        return "random"
    if cfg.weights is not None:
        return os.path.basename(cfg.weights)
    facts = getattr(model, "pretrained_cfg", {})
    return str(facts.get("hf_hub_id") or os.path.basename(str(facts.get("file") or facts.get("url"))))
