"""The tokens that a model's frozen first blocks give out, computed once in place of in every epoch of every run.

That is exact where nothing in front of the first trained block is drawn at random: no augmentation, drop path or dropout. The
tokens are kept as :mod:`gift_vit.runs.features` keeps features, under a name that says what they depend on.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.data import default_collate

from gift_vit.acceleration.accelerate import plan_of
from gift_vit.acceleration.patches import is_by_product
from gift_vit.backbones.build import input_statistics
from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset
from gift_vit.data.cache import pixels_key
from gift_vit.data.loaders import EvalLoader, TrainLoader
from gift_vit.data.transforms import ImageTransform, build_train_transform
from gift_vit.engine.state import Precision
from gift_vit.runs.features import Features, digest_of, kept_features, outputs_of

log = logging.getLogger(__name__)
_LARGEST = 2 * 2**30  # bytes of tokens that ``auto`` computes
_STEM = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")
_OWN = ("forward", "forward_features")


class _Tokens:
    """Tokens (N, T, d) with labels (N,), as a source of images is read."""

    def __init__(self, tokens: Tensor, labels: NDArray[np.int64]) -> None:
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.tokens[index], int(self.labels[index])


class _AsTheyAre:
    """The transform of tokens, which are finished."""

    def finish(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        del generator
        return tokens

    def stack(self, items: list[Tensor]) -> Tensor:
        return default_collate(items)

    def normalise(self, tokens: Tensor) -> Tensor:
        return tokens


def blocks_to_keep(cfg: RunConfig, model: nn.Module, data: VisionDataset) -> int:
    """How many of a model's first blocks are computed once for the run, as ``dataset.cache_features`` says.

    The log says why, where the method is given ``blocks`` or it is asked for.

    Raises:
        ConfigError: If it is ``on`` and none can be.
    """
    wanted = cfg.dataset.cache_features
    if wanted == "off" or (wanted == "auto" and getattr(cfg.method, "blocks", None) is None):
        return 0  # most runs: nothing to say
    number, obstacle = 0, _obstacle(cfg, model)
    if obstacle is None:
        number = _frozen_blocks(cast("VisionTransformer", model))
        obstacle = None if number else "the first block, or what is in front of it, is trained or random"
    if obstacle is None:
        obstacle = _found_by_trial(cfg, model, data, number)
    if obstacle is None:
        log.info("the first %d blocks are frozen: their output is computed once (dataset.cache_features)", number)
        return number
    if wanted == "on":
        raise ConfigError(f"dataset.cache_features=on is not possible: {obstacle}; set it to auto")
    log.info("the first blocks are computed in every epoch (dataset.cache_features): %s", obstacle)
    return 0


def _obstacle(cfg: RunConfig, model: nn.Module) -> str | None:
    """Why no block of a run can be computed once, whichever are frozen; None: they may be."""
    own = [name for name in _OWN if getattr(type(model), name, None) is not getattr(VisionTransformer, name)]
    if own or "forward" in vars(model) or "forward_features" in vars(model):
        return f"{type(model).__name__} is not computed as timm's VisionTransformer"
    if cfg.dataset.cache_features == "auto" and next(model.parameters()).device.type != "cpu":
        return "beside a step recorded for a GPU that was not tried yet; set it to on"
    if build_train_transform(cfg.dataset.transform, input_statistics(model)).is_random:
        return "training images are cropped or flipped at random"
    if cfg.trainer.compile or cfg.compute.memory == "minimal":
        return "trainer.compile and trainer.memory=minimal take the whole model"
    if distributed.world_size() > 1:
        return "several processes train"
    return None


def _frozen_blocks(model: VisionTransformer) -> int:
    """How many blocks come before the first that is trained, changed by a method, or random in training."""
    stem = [module for name in _STEM if (module := getattr(model, name, None)) is not None]
    if any(parameter.requires_grad for parameter in model.parameters(recurse=False)) or not all(map(_is_fixed, stem)):
        return 0
    fixed = [_is_fixed(block) for block in model.blocks]
    return fixed.index(False) if False in fixed else len(fixed)


def _is_fixed(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters()) and all(map(_is_plain, module.modules()))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module itself is timm's or torch's as it came, and draws nothing."""
    known = type(module).__module__.startswith(("timm.", "torch.nn.")) and not is_parametrized(module)
    replaced = "forward" in vars(module) and plan_of(module) is None and not is_by_product(module)
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    dropped = module.p if isinstance(module, nn.Dropout) else module.drop_prob if isinstance(module, DropPath) else 0
    return known and not replaced and not hooked and not dropped


@torch.no_grad()
def _found_by_trial(cfg: RunConfig, model: Any, data: VisionDataset, number: int) -> str | None:
    """Why the blocks cannot be computed apart: other bits, seen with noise for images, or too many of them."""
    some, training = next(model.parameters()), model.training
    size = input_statistics(model).input_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(some.device)
    model.eval()
    with Precision(cfg.trainer.precision, some.device).autocast():
        tokens = _to_tokens(model, number, images)
        same = torch.equal(model(images), _from_tokens(model, number, tokens))
    model.train(training)
    if not same:
        return "begun at a later block, the model gives other numbers"
    needed = tokens[0].nbytes * sum(len(data.parts(split)[0]) for split in ("train", "val"))
    if cfg.dataset.cache_features == "auto" and needed > _LARGEST:
        size, most = needed / 1e9, _LARGEST / 1e9
        return f"their output takes {size:.1f} GB, more than {most:.1f} GB; dataset.cache_features=on keeps it"
    return None


def _to_tokens(model: Any, number: int, images: Tensor) -> Tensor:
    """What the first blocks make of images (B, 3, H, W): tokens (B, T, d)."""
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return model.blocks[:number](tokens)


def _from_tokens(model: Any, number: int, tokens: Tensor) -> Tensor:
    return model.forward_head(model.norm(model.blocks[number:](tokens)))


@contextmanager
def taking_tokens(model: nn.Module, number: int) -> Iterator[None]:
    """Let a model take the tokens of its first ``number`` blocks for the time being; with 0, images as before."""
    if number:
        model.forward = partial(_from_tokens, model, number)
    try:
        yield
    finally:
        if number:
            del model.forward


def token_loaders(
    cfg: RunConfig, model: nn.Module, data: VisionDataset, device: torch.device, number: int, acceleration: dict[str, Any]
) -> tuple[TrainLoader, EvalLoader | None]:
    """The run's batches of training, and of val where it is not trained on, in the order of the images they are made of.

    Raises:
        ConfigError: If an image cannot be read, or with ``dataset.cache=disk`` the folder cannot be written.
        RunError: If a token is NaN or infinite, or with ``dataset.cache=disk`` the disk is full.
    """
    splits = ["train", "val"] if cfg.train_split == "trainval" else ["train"]
    parts = [_open(cfg, model, data, split, device, number, acceleration) for split in splits]
    trained = sum(parts[1:], parts[0])
    as_they_are = cast("ImageTransform", _AsTheyAre())
    train = TrainLoader(_source(trained), as_they_are, cfg.trainer.batch_size, 0, cfg.seed, device)
    if cfg.train_split == "trainval":
        return train, None
    val = _open(cfg, model, data, "val", device, number, acceleration)
    return train, EvalLoader(_source(val), as_they_are, cfg.loading.eval_batch_size, 0, device)


def _source(features: Features) -> Any:
    return _Tokens(features.values, features.labels.numpy())


def _open(
    cfg: RunConfig, model: Any, data: VisionDataset, split: str, device: torch.device, number: int, acceleration: dict[str, Any]
) -> Features:
    [source] = data.parts(split)
    transform = build_train_transform(cfg.dataset.transform, input_statistics(model))
    facts = ["blocks", number, pixels_key(data, source, transform), *astuple(transform.stats), cfg.trainer.batch_size]
    facts += [cfg.backbone.model, device.type, torch.get_num_threads(), acceleration]
    own = [f"blocks.{index}." for index in range(number)] + [f"{name}." for name in _STEM]
    whole = {name: tensor for name, tensor in model.state_dict().items() if "." not in name or name.startswith(tuple(own))}
    in_batches = replace(cfg, loading=replace(cfg.loading, eval_batch_size=cfg.trainer.batch_size))  # computed as in training

    def to_tokens(images: Tensor) -> Tensor:
        return _to_tokens(model, number, images).cpu()

    compute = partial(outputs_of, to_tokens, in_batches, model, data, split, device, cfg.trainer.precision)
    return kept_features(cfg, data, split, torch.device("cpu"), digest_of(facts, whole), compute)
