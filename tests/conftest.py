"""Fixtures shared by all tests: a tiny timm ViT, one thread, no network."""

import os
import socket

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import timm
import torch
from torch import nn

torch.set_num_threads(1)

# absolute and relative tolerance per dtype, for torch.testing.assert_close on whole tensors
TOLERANCE = {
    torch.float64: {"atol": 1e-12, "rtol": 1e-12},
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise RuntimeError(f"a test tried to reach {address}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def tiny_vit() -> nn.Module:
    """timm's test_vit with 10 classes: width 64, depth 6, 160×160 pixels, 0.37 M parameters; freshly and repeatably drawn."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=10).eval()
