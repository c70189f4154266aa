"""How a model is made ready for training on its machine; number format and compilation under ``trainer.speed=auto``."""

import os
import shutil
import sysconfig
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gift_vit.acceleration.accelerate import accelerate
from gift_vit.acceleration.config import ComputeConfig
from gift_vit.engine.config import TrainerConfig

_AMPERE = (8, 0)  # the first compute capability with bf16 and TF32 units
_VOLTA = (7, 0)  # the first that Triton builds kernels for
_CACHE = "TORCHINDUCTOR_CACHE_DIR"

# On one H200, ViT-B/16 (34 GFLOP a forward pass) at batch 32: the kernels of a recorded step take 9.5 ms, compiled 6.8. Up to
# the first step, compiling by block takes 20 s longer than recording alone, 6 s with the compiler's cache of earlier runs.
_SAVED_SECONDS = (9.5e-3 - 6.8e-3) / 32 / 34  # by compiling, for each image and GFLOP of its forward pass
_COMPILE_SECONDS, _COMPILE_SECONDS_CACHED = 20.0, 6.0


@dataclass(frozen=True)
class Work:
    """What a run has before it.

    Attributes:
        images: To train on, over all epochs.
        gflop: Of one image's forward pass.
        cached: Whether the compiler has a cache of earlier runs.
    """

    images: int
    gflop: float
    cached: bool

    @classmethod
    def of(cls, model: nn.Module, images: int, cache_root: Path) -> "Work":
        """Of training a ViT: a product with every parameter for every token. Texts, whose length varies, have none to tell."""
        patches = getattr(getattr(model, "patch_embed", None), "num_patches", None) or 0
        tokens = patches + getattr(model, "num_prefix_tokens", 0)
        gflop = 2 * tokens * sum(parameter.numel() for parameter in model.parameters()) / 1e9
        return cls(images, gflop, cached=(_compiler_cache(cache_root) / "fxgraph").is_dir())

    @property
    def repays_compiling(self) -> bool:
        """Whether compiled steps save a GPU more time than the compiler takes."""
        return self.images * self.gflop * _SAVED_SECONDS > (_COMPILE_SECONDS_CACHED if self.cached else _COMPILE_SECONDS)


def prepare_to_train(model: nn.Module, compute: ComputeConfig, trainer: TrainerConfig, cache_root: Path) -> dict[str, Any]:
    """:func:`accelerate` a model in place, and what else is for training; what is on, as plain values for a run's record.

    Frozen products are held in bf16 where that is the precision; on a GPU patches are embedded by a product, and blocks are
    compiled if ``trainer.compile`` says so. What the compiler makes is kept below ``cache_root`` for the next run, or where
    the environment variable ``TORCHINDUCTOR_CACHE_DIR`` says.
    """
    record = accelerate(model, compute, trainer)
    # imported where they are of use: a run in fp32 on a CPU has none for them
    if trainer.precision == "bf16":
        from gift_vit.acceleration.frozen import hold_frozen_products

        record |= {"frozen_in_bf16": True} if hold_frozen_products(model) else {}
    if trainer.compile:
        os.environ[_CACHE] = str(_compiler_cache(cache_root))
    if next(model.parameters()).device.type == "cuda":
        from gift_vit.acceleration.compiling import compile_blocks
        from gift_vit.acceleration.patches import embed_by_product

        record |= {"patches_by_product": True} if embed_by_product(model) else {}
        record |= {"compiled_by_block": True} if trainer.compile and compile_blocks(model) else {}
    return record


def _compiler_cache(cache_root: Path) -> Path:
    own = os.environ.get(_CACHE)
    # importing timm makes newer versions of torch put their default, a folder of the machine's own, into the environment
    return cache_root / "inductor" if own is None or Path(own).name.startswith("torchinductor_") else Path(own)


def settle_speed(
    trainer: TrainerConfig, compute: ComputeConfig, device: torch.device, work: Work
) -> tuple[TrainerConfig, ComputeConfig]:
    """The configs with ``precision`` and ``compile`` as ``speed`` wants them, and ``speed`` as it was obeyed.

    ``exact`` leaves what is given, and so does ``auto`` on a CPU, where it becomes ``exact``. On a GPU ``auto`` puts bf16 in
    the place of fp32 and tf32 if there are units for it, and compiles if kernels can be built and ``work`` repays it.
    """
    if compute.speed == "exact" or device.type != "cuda":
        return trainer, replace(compute, speed="exact")
    capability = torch.cuda.get_device_capability(device)
    precision = "bf16" if capability >= _AMPERE and trainer.precision in ("fp32", "tf32") else trainer.precision
    possible = can_build_kernels(device) and not trainer.deterministic
    return replace(trainer, precision=precision, compile=trainer.compile or (possible and work.repays_compiling)), compute


def can_build_kernels(device: torch.device) -> bool:
    """Whether blocks can be compiled for a device: Triton compiles C against Python's headers, for GPUs that are new enough."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _VOLTA:
        return False
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton takes it
    compiler, headers = shutil.which(os.environ.get("CC", "gcc")), Path(sysconfig.get_path("include", scheme), "Python.h")
    return compiler is not None and find_spec("triton") is not None and headers.is_file()
