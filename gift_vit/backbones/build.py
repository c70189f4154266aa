"""Building a timm ViT with pretrained weights and a new head."""

import logging
import os
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias, cast

import numpy as np
import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.layers import weight_init
from timm.layers.patch_embed import PatchEmbed
from timm.models import PretrainedCfg, _builder, clean_state_dict, is_model_pretrained
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.serialization import safe_globals
from torch.utils._python_dispatch import TorchDispatchMode

import gift_vit.backbones.vit_mini  # noqa: F401 - registers it with timm
from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.hub import hub_asked_once
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import check_readable
from gift_vit.common.vits import architecture, check_vit
from gift_vit.data.transforms import InputStatistics

Adapt: TypeAlias = Callable[[dict[str, Any], nn.Module], dict[str, Any]]

# in the order in which timm looks for them; the last is that of torch's own tutorial
_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_STEMS = ("patch_embed.proj.weight", "visual.conv1.weight")  # CLIP's too
_NOT_RESAMPLED = "timm does not resample this model's positions; leave backbone.img_size out"
log = logging.getLogger(__name__)


def build_backbone(cfg: BackboneConfig, num_classes: int, drop_path_rate: float = 0.0) -> nn.Module:
    """A timm ViT with pretrained weights and a newly drawn head of ``num_classes`` classes, or such a model of transformers.

    The weight of a ViT's head is drawn from a normal distribution of std 0.02 truncated at ±2, its bias is zero, as the
    authors'.

    Raises:
        ConfigError: If timm knows no such model or weights, a local file is missing, unreadable or of another architecture,
            the model is no timm ViT, or it cannot pool so.
        RunError: If the weights cannot be downloaded, or not without a login.
    """
    if cfg.is_text:
        from gift_vit.backbones.text import build_text_model  # transformers

        return build_text_model(cfg, num_classes)
    _check_name(cfg.model)
    kwargs: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": drop_path_rate}
    if cfg.img_size is not None:
        kwargs["img_size"] = cfg.img_size
    with _loading(cfg) as adapting:
        model = _create(cfg, kwargs)
    check_vit(model, cfg.model)
    _check_img_size(model, cfg.img_size)
    if cfg.weights is not None:
        load_local_weights(model, Path(cfg.weights), *adapting)
    if cfg.global_pool is not None:
        set_pooling(model, cfg.global_pool)
    head = model.get_classifier()  # pyright: ignore[reportCallIssue]
    for part in head if isinstance(head, tuple) else (head,):  # of distilled models two, and SAM's is a module around it
        for layer in (module for module in part.modules() if isinstance(module, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return model


def _check_img_size(model: Any, img_size: int | None) -> None:
    """Refuse images whose last rows and columns no patch would cover."""
    if img_size is None or not isinstance(getattr(model, "patch_embed", None), PatchEmbed) or model.patch_embed.dynamic_img_pad:
        return
    patch = max(model.patch_embed.patch_size)
    if img_size % patch:
        below = img_size // patch * patch
        near = f"{below} or {below + patch}" if below else str(patch)
        raise ConfigError(
            f"backbone.img_size={img_size}: the patches of {architecture(model)} are {patch} pixels wide; give {near}"
        )


def set_pooling(model: Any, pooling: str) -> None:
    """Let the head of a timm ViT read ``token``, ``avg`` or ``map``; the head is drawn anew.

    With the weights loaded already: timm puts the final norm elsewhere in a model that is created with another pooling, and
    drops the pretrained one. So every parameter but the head's stays; an attention pool goes where it is no longer read.

    Raises:
        ConfigError: If the model has no class token, or no attention pool, or its class pools in one way only.
    """
    can = _poolings(model)
    if pooling not in can:
        raise ConfigError(f"backbone.global_pool={pooling}: {architecture(model)} can pool {' or '.join(can)}")
    if pooling != model.global_pool:
        model.reset_classifier(model.num_classes, global_pool=pooling)


def _poolings(model: Any) -> list[str]:
    """How a model can pool: as it does, and as its class could with what it has."""
    own = str(getattr(model, "global_pool", "") or "in one way only, its own")
    if not isinstance(model, VisionTransformer | Eva | Beit) or isinstance(model, VisionTransformerDistilled):
        return [own]
    more = ["avg"] if model.cls_token is None else ["token", "avg"]
    return list(dict.fromkeys([own, *more]))


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
    from_file = cfg.weights is not None
    source = cast(PretrainedCfg, timm.get_pretrained_cfg(cfg.model)) if cfg.pretrained and not from_file else None
    if source and cfg.model.startswith("vit_mini") and not Path(str(source.file)).is_file():
        raise ConfigError(f"{source.file} is missing; reinstall the package")
    from_hub = source and source.hf_hub_id
    # of a plain ViT a file holds all but the head, which build_backbone draws
    replaced = cfg.pretrained and cfg.model.startswith("vit_")
    try:
        with _drawn_only() if replaced else nullcontext(), hub_asked_once() if from_hub else nullcontext():
            return timm.create_model(cfg.model, pretrained=cfg.pretrained, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{cfg.model} cannot be built with {', '.join(kwargs)}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not cfg.pretrained or cfg.weights is not None:
            raise
        if not is_model_pretrained(cfg.model):
            remedy = "give backbone.weights=<file>, or backbone.pretrained=false"
            raise ConfigError(f"timm has no weights of {cfg.model}; {remedy}") from error
        if cfg.img_size is not None and "loading state_dict" in str(error):
            raise ConfigError(f"backbone.img_size={cfg.img_size}: {_NOT_RESAMPLED}") from error
        reason = "not reached, and nothing downloaded before"
        if not isinstance(error, LocalEntryNotFoundError):
            reason = str(error).strip().splitlines()[0]
        if isinstance(error, GatedRepoError) or (isinstance(error, RepositoryNotFoundError) and "401" in reason):
            raise RunError(
                f"the weights of {cfg.model} ask for a login: accept their licence at {hub.ENDPOINT}/{from_hub}, then type "
                "hf auth login (or set HF_TOKEN), or give a local file with backbone.weights=<file>"
            ) from error
        raise RunError(
            f"the weights of {cfg.model} could not be had from the hub ({reason}); "
            "connect to the internet or give a local file with backbone.weights=<file>"
        ) from error


@contextmanager
def _drawn_only() -> Iterator[None]:
    """Let torch and timm draw the numbers of uniform and truncated normal distributions and make nothing of them.

    Random numbers that follow are those that would have followed: of each weight as many are drawn. For models whose weights
    are overwritten, all but those that are drawn anew; a ViT-B is then built in a third of the time.
    """
    original: Any = weight_init._trunc_normal_

    def draw(tensor: Tensor, *_: float) -> Tensor:
        return tensor.uniform_()

    weight_init._trunc_normal_ = draw
    try:
        with _Drawing():
            yield
    finally:
        weight_init._trunc_normal_ = original


class _Drawing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.uniform_.default:
            return func(*args, **kwargs or {})
        torch.empty_like(args[0], dtype=torch.uint8).random_()  # takes one number of the generator for each, as uniform_ does
        return args[0]


@contextmanager
def _loading(cfg: BackboneConfig) -> Iterator[list[Adapt | None]]:
    """Let timm load weights of a ViT alone, so that nothing is downloaded for what is refused, and none with a local file.

    The list then gets what would have adapted the weights: each of timm's models has its own, and tells it nobody else.
    """
    original: Any = _builder.load_pretrained
    adapting: list[Adapt | None] = []

    def load(model: nn.Module, *args: Any, filter_fn: Adapt | None = None, **kwargs: Any) -> None:
        check_vit(model, cfg.model)
        _check_img_size(model, cfg.img_size)
        if cfg.weights is None:
            original(model, *args, filter_fn=filter_fn, **kwargs)
        else:
            adapting.append(filter_fn)

    _builder.load_pretrained = load
    try:
        yield adapting
    finally:
        _builder.load_pretrained = original


def load_local_weights(model: nn.Module, path: Path, adapt: Adapt | None = None) -> None:
    """Load a ``.safetensors``, ``.pth`` or original ``.npz`` file into a timm ViT, everything but the head, strictly.

    Args:
        model: The ViT, without adapter.
        path: The file.
        adapt: What brings the weights to the model's names and image size, as timm does with those from the hub.

    Raises:
        ConfigError: If the file is missing, unreadable or of another architecture; names tensors and shapes.
    """
    if not path.is_file():
        raise ConfigError(f"backbone.weights={path}: no such file")
    check_readable(path)
    try:
        if path.suffix == ".npz":
            _check_npz(model, path)
            _read_npz(model, path)
        else:
            _load_tensors(model, path, adapt)
    except ConfigError:
        raise
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"backbone.weights={path} does not fit {architecture(model)}: {reason}") from error
    except Exception as error:  # safetensors and pickle raise classes of their own for files that are none
        reason = " ".join(str(error).split())
        raise ConfigError(f"backbone.weights={path} is not a readable weight file: {reason}") from error


@torch.no_grad()
def _read_npz(model: nn.Module, path: Path) -> None:
    """By timm's reader, which leaves as it is what the file does not have."""
    head = tuple(f"{name}." for name in _classifiers(model))
    expected = {name: parameter for name, parameter in model.named_parameters() if not name.startswith(head)}
    for parameter in expected.values():
        parameter.fill_(torch.nan)
    model.load_pretrained(str(path))  # pyright: ignore[reportCallIssue]
    missing = [f"{name} {tuple(p.shape)}" for name, p in expected.items() if p.isnan().any()]
    _refuse_misfits(model, path, {"missing": missing})


def _load_tensors(model: nn.Module, path: Path, adapt: Adapt | None) -> None:
    state = _unwrapped(clean_state_dict(load_file(path)) if path.suffix == ".safetensors" else _read_checkpoint(path))
    own = model.state_dict()
    own_stem = own.get("patch_embed.proj.weight")
    stems = [tensor for name, tensor in state.items() if name == "conv1.weight" or name.endswith(_STEMS)]
    stem = next((stem for stem in stems if isinstance(stem, Tensor) and stem.ndim == 4), None)
    if stem is not None and own_stem is not None and stem.shape != own_stem.shape:  # adapt would resample it
        raise ConfigError(
            f"backbone.weights={path} does not fit {architecture(model)}: its patch embedding has shape "
            f"{tuple(stem.shape)}, expected {tuple(own_stem.shape)}"
        )
    if adapt is not None:
        state = adapt(state, model)
    head = tuple(f"{name}." for name in _classifiers(model))
    state = {name: tensor for name, tensor in state.items() if not name.startswith((*head, "head_dist.", "pre_logits."))}
    expected = {name: tensor for name, tensor in own.items() if not name.startswith(head)}
    problems = {
        "missing": [f"{name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in state],
        "unknown": [f"{name} {_shape(tensor)}" for name, tensor in state.items() if name not in expected],
        "of another shape": [
            f"{name} {_shape(state[name])} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and _shape(state[name]) != tuple(tensor.shape)
        ],
    }
    _refuse_misfits(model, path, problems)
    problems = {
        "of another type": [
            f"{name} {state[name].dtype}"
            for name, tensor in expected.items()
            if state[name].is_floating_point() != tensor.is_floating_point()
        ],
        "with NaN or infinite numbers": [name for name in expected if not _is_finite(state[name])],
    }
    _refuse_misfits(model, path, problems)
    model.load_state_dict(state, strict=False)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; their sum tells at once, unless it is too large itself."""
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """A ViT's tensors whose names all begin with that of what held it, as ``backbone.`` or ``model.``, without that."""
    wrapper = next((name.removesuffix(_STEMS[0]) for name in state if name.endswith(_STEMS[0])), "")
    if not all(name.startswith(wrapper) for name in state):
        return state
    return {name.removeprefix(wrapper): value for name, value in state.items()}


def _refuse_misfits(model: nn.Module, path: Path, problems: Mapping[str, Sequence[str]]) -> None:
    """Refuse a file with tensors of any kind of problem."""
    listed = "; ".join(
        f"{len(names)} tensors {word} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
        for word, names in problems.items()
        if names
    )
    if listed:
        named = [name for names in problems.values() for name in names]
        remedy = (
            _NOT_RESAMPLED if all(name.startswith("pos_embed ") for name in named) else "give the weights of this architecture"
        )
        raise ConfigError(f"backbone.weights={path} does not fit {architecture(model)}: {listed}; {remedy}")


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The state dict in a file of ``torch.save``; of several timm's choice, which the log names.

    Only tensors, plain values and ``argparse.Namespace`` are unpickled.
    """
    try:
        with safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of TorchScript, which is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error)) or re.search("TorchScript", str(error))
        if found is None:
            raise
        remedy = "only tensors, numbers and texts are read: save the state dict alone"
        raise ConfigError(f"backbone.weights={path} holds {found[found.lastindex or 0]}, and {remedy}") from error
    held = [key for key in _STATE_KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if held:
        others = f" (it also holds {', '.join(held[1:])})" if held[1:] else ""
        log.info("backbone.weights=%s: %s is taken%s", path, held[0], others)
    return clean_state_dict(content[held[0]] if held else content)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else f"(a {type(value).__name__})"


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that classify; of distilled models two."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def _check_npz(model: nn.Module, path: Path) -> None:
    """Refuse a file of another depth, number of heads or patch embedding, which timm's reader cuts to size without a word."""
    own = model.state_dict().get("patch_embed.proj.weight")
    if own is None or not hasattr(model, "load_pretrained"):
        raise ConfigError(f"backbone.weights={path}: timm reads no .npz into {architecture(model)}; give .safetensors or .pth")
    with np.load(path) as file:
        blocks = {int(match[1]) for name in file.files if (match := re.search(r"encoderblock_(\d+)/", name))}
        stem = next((file[name].shape for name in file.files if name.endswith("embedding/kernel")), None)
        query = next(
            (file[name].shape for name in file.files if name.endswith("query/kernel")), None
        )  # width, heads, head size
    own_blocks = model.get_submodule("blocks")
    found = {"blocks": len(blocks), "heads": query and query[1], "patch embedding": stem}
    expected = {
        "blocks": len(own_blocks),  # pyright: ignore[reportArgumentType]
        "heads": own_blocks.get_submodule("0.attn").num_heads,
        "patch embedding": (own.shape[2], own.shape[3], own.shape[1], own.shape[0]),
    }
    if found != expected:
        raise ConfigError(
            f"backbone.weights={path} does not fit {architecture(model)}: {_facts(found)}, expected {_facts(expected)}"
        )


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def input_statistics(model: nn.Module) -> InputStatistics:
    """Input size, mean, std and interpolation that the model's pretrained weights were made for."""
    if hasattr(model, "tokenizer"):
        raise ConfigError(f"{architecture(model)} takes texts, and this is for images")
    facts = resolve_model_data_config(model)
    height, width = cast(tuple[int, int], model.get_submodule("patch_embed").img_size)
    if height != width:
        raise ConfigError(f"{architecture(model)} takes {height}×{width} images; only square inputs are supported")
    return InputStatistics(height, tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"])


def weights_source(cfg: BackboneConfig, model: nn.Module) -> str:
    """Where the weights came from, for the run's record."""
    if not cfg.pretrained:
        return "random"
    if cfg.weights is not None:
        return os.path.basename(cfg.weights)
    facts = getattr(model, "pretrained_cfg", {})
    if cfg.is_text:
        return f"{facts['architecture']}@{cfg.revision}" if cfg.revision else str(facts["architecture"])
    return str(facts.get("hf_hub_id") or os.path.basename(str(facts.get("file") or facts.get("url"))))
