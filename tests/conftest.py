"""Fixtures shared by all tests: a tiny timm ViT, configurations, commands in this process."""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import ModuleType

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import sklearn.metrics  # noqa: F401 - forks find it imported
import timm
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from gift_vit.config import compose

CONF = Path(tempfile.mkdtemp(prefix="gift_vit_conf_"))  # without the recipes that a person has chosen in this checkout
shutil.copytree(compose.conf_dir(), CONF, ignore=shutil.ignore_patterns("recipe"), dirs_exist_ok=True)
(CONF / "recipe").mkdir()
shutil.copy(compose.conf_dir() / "recipe/none.yaml", CONF / "recipe")
compose.conf_dir = lambda: CONF

from gift_vit import train  # noqa: E402 - takes the configuration of above
from gift_vit.config import RunConfig, load_config  # noqa: E402
from tests.conf.files import composed  # noqa: E402

torch.set_num_threads(1)  # a fork finds no other threads to wait for
# a shell starts background jobs with SIGINT ignored, and the processes that tests interrupt would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """The copy of the configuration goes."""
    shutil.rmtree(CONF, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a browser is among the slow tests."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


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
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not asked: peft would ask it for the config of a base model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@cache
def drawn_vit() -> tuple[nn.Module, Tensor]:
    """The model of :func:`tiny_vit`, and the random state once it is drawn."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=10).eval(), torch.get_rng_state()


@pytest.fixture
def tiny_vit() -> nn.Module:
    """timm's test_vit with 10 classes: width 64, depth 6, 160×160 pixels, 0.37 M parameters; as if freshly drawn."""
    vit, state = drawn_vit()
    torch.set_rng_state(state)
    return deepcopy(vit)


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., RunConfig]:
    """Takes overrides; a checked config of three epochs of the tiny random ViT on digits, below ``tmp_path/outputs``.

    Of 32 × 32 pixels: with the 64 of debug=smoke a run takes three times as long.
    """

    def build(*overrides: str) -> RunConfig:
        cfg = composed("debug=smoke", "backbone.img_size=32", "trainer.epochs=3", *overrides)
        cfg.paths.output_root = str(tmp_path / "outputs")
        return load_config(cfg)

    return build


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Takes a command's module and words; does it in this process; its exit code."""

    def run(module: ModuleType, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [module.__name__, *words])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert isinstance(end.value.code, int)
        return end.value.code

    return run


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Takes words of ``python -m gift_vit.train``, does it in this process, where parts may be replaced; the exit code."""

    def command(*words: str) -> int:
        GlobalHydra.instance().clear()
        # Hydra's logging closes the handlers that other tests' libraries have left, and with them what pytest captures into
        unlogged = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setattr("gift_vit.common.cli.interrupt_on_sigterm", lambda: None)
        monkeypatch.setattr(sys, "argv", ["train", *words, *unlogged])
        try:
            train.main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        return 0

    return command
