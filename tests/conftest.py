"""Fixtures shared by all tests: a tiny timm ViT, one thread, no network."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import timm
import torch
from torch import nn

from gift_vit.compose import compose_config
from gift_vit.config import RunConfig, load_config

torch.set_num_threads(1)
# a shell starts background jobs with SIGINT ignored, and the processes that tests interrupt would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., RunConfig]:
    """Takes overrides; a checked config of three epochs of the tiny random ViT on digits, below ``tmp_path/outputs``."""

    def build(*overrides: str) -> RunConfig:
        words = ["debug=smoke", "trainer.epochs=3", f"paths.output_root={tmp_path / 'outputs'}", *overrides]
        return load_config(compose_config(words))

    return build
