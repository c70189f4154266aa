"""The switch to deterministic algorithms, which ends with its context."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gift_vit.engine.step as step_module
from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig
from gift_vit.engine.state import deterministic
from gift_vit.runs.train import Call, train_run
from tests.engine.stand_in import Rehearsing

CPU = torch.device("cpu")
MEMORY: Any = torch.utils.deterministic


def test_it_is_on_within_and_off_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(MEMORY, "fill_uninitialized_memory", True)

    def stop() -> None:
        with deterministic(CPU):
            assert torch.are_deterministic_algorithms_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stop()
    assert not torch.are_deterministic_algorithms_enabled()
    assert MEMORY.fill_uninitialized_memory


def test_a_process_that_has_used_the_gpu_without_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own words for it are seven lines, at the first product of a training."""

    def refuse(*_: object) -> None:
        raise RuntimeError("Deterministic behavior was enabled\nset CUBLAS_WORKSPACE_CONFIG=:4096:8")

    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(ConfigError, match=r"too late for this process.*start a new one") as told, deterministic(CPU):
        pass
    assert "\n" not in str(told.value)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_deterministic_algorithm_is_an_error() -> None:
    with deterministic(CPU), pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))


def test_the_record_of_a_run_says_what_was_used(configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "build_capture", lambda _: Rehearsing())
    result = train_run(configure("trainer.deterministic=true"), Call("python -m gift_vit.train", []))
    used: Any = result.env["acceleration"]
    assert used["deterministic"]
    assert used["step_graph"]
    assert not torch.are_deterministic_algorithms_enabled()
