"""Absolute and relative tolerance per dtype, for ``torch.testing.assert_close`` on whole tensors."""

from typing import Any

import torch

TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: {"atol": 1e-12, "rtol": 1e-12},
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}
