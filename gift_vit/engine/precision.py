"""Number formats of training: fp32, TF32 products, and bf16 or fp16 autocast."""

import torch

from gift_vit.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


class Precision:
    """One of :data:`PRECISIONS` on a device.

    ``fp32`` computes products in full float32; ``tf32`` lets a GPU round the factors of float32 products to TF32 (without
    effect where there is no such unit); ``bf16`` and ``fp16`` use autocast with float32 parameters, ``fp16`` with loss scaling.

    Creating one sets torch's process-wide float32 product precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in PRECISIONS:
            raise ConfigError(f"unknown trainer.precision {name!r} (known: {', '.join(PRECISIONS)})")
        self.device_type = device.type
        self.autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = name == "tf32"  # convolutions have a switch of their own, on by default
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device_type, self.autocast_dtype or torch.bfloat16, enabled=enabled)
