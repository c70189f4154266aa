"""Number format and compilation after the machine: what ``trainer.speed=auto`` stands for."""

import os
import shutil
from dataclasses import replace

import torch

from gift_vit.acceleration.config import ComputeConfig
from gift_vit.common.environment import cpu_flags
from gift_vit.engine.config import TrainerConfig

_AMPERE = (8, 0)  # the first compute capability with bf16 and TF32 units
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two ways, and ARM's


def settle_speed(trainer: TrainerConfig, compute: ComputeConfig, device: torch.device) -> TrainerConfig:
    """The trainer with ``precision`` and ``compile`` as ``compute.speed`` wants them; ``exact`` leaves them as they are.

    ``auto`` is bf16 autocast where the device computes bf16 products in hardware, and ``trainer.precision`` where it does not;
    and ``torch.compile`` on a GPU for which its kernels can be built. On a CPU compiling takes longer than it saves.
    """
    if compute.speed == "exact":
        return trainer
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        fast_bf16, compiles = capability >= _AMPERE, shutil.which(os.environ.get("CC", "gcc")) is not None
    else:
        fast_bf16, compiles = bool(_BF16_FLAGS & cpu_flags()), trainer.compile
    return replace(trainer, precision="bf16" if fast_bf16 else trainer.precision, compile=compiles)
