"""A checkpoint that is damaged, changed or another run's is never gone on with, and nothing of it gets into the run."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gift_vit.engine.state as state_module
from gift_vit.common.errors import ConfigError
from gift_vit.engine.config import OptimConfig
from gift_vit.engine.observer import EpochRecord
from gift_vit.engine.state import TrainingState, build_optimizer, load_checkpoint, save_checkpoint, trained_state

State = dict[str, Any]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4))


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    values: Any = {"warmup_epochs": 0, "warmup_lr": 1e-7, "min_lr": 1e-6, "schedule": "step"}
    return build_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8, **values))


def scaler(scale: float = 2.0**16) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The checkpoint of one epoch of four."""
    model = network()
    optimizer = optimizer_of(model)
    model(torch.ones(2, 12)).sum().backward()
    optimizer.step()
    record = EpochRecord(epoch=0, train_loss=1.0, lr=0.01, steps=1, seconds=1.0, images_per_s=2.0)
    save_checkpoint(tmp_path / "last.ckpt", TrainingState(1, [record], 1.0), model, optimizer, scaler(1024), "data")
    return tmp_path / "last.ckpt"


def load(path: Path, model: nn.Module | None = None, epochs: int = 4) -> TrainingState:
    model = model or network()
    return load_checkpoint(path, model, optimizer_of(model), scaler(), "data", epochs)


def test_the_random_state_of_a_gpu_goes_to_the_one_that_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, torch.device]] = []
    first, second = (torch.device("cuda", index) for index in range(2))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: 10 + device.index)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((state, device)))
    kept = state_module._random_state(first)
    assert state_module._random_state(torch.device("cpu"))["cuda_rng"] == []
    state_module._set_random_state(kept, second)
    state_module._set_random_state(kept | {"cuda_rng": [1, 2, 3]}, second)  # of all devices, as earlier versions kept them
    state_module._set_random_state(kept | {"cuda_rng": [1]}, first)
    state_module._set_random_state(kept, torch.device("cpu"))
    assert given == [(10, second), (2, second), (1, first)]


def test_the_scale_of_half_precision_s_loss_is_gone_on_with(written: Path) -> None:
    model, own = network(), scaler()
    load_checkpoint(written, model, optimizer_of(model), own, "data", epochs=4)
    assert own.get_scale() == 1024


def refused(path: Path, reason: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=reason) as raised:
        load(path, model)
    assert str(raised.value).startswith(f"{path} ")
    assert str(raised.value).endswith("delete it to start the run over")
    assert "\n" not in str(raised.value)
    assert all(torch.equal(own, first) for own, first in zip(model.parameters(), network().parameters(), strict=True))


def test_writing_copies_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the best epoch lie on the GPU, where a copy of them would raise the peak of memory."""
    written: list[State] = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: (written.append(state), save(state, file)))
    best, model = {"weight": torch.ones(2)}, network()
    save_checkpoint(tmp_path / "last.ckpt", TrainingState(best=best), model, optimizer_of(model), scaler(), "data")
    assert written[0]["progress"]["best"]["weight"] is best["weight"]


def test_tied_weights_that_are_frozen_are_not_in_it() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False), "adapter": nn.Linear(3, 3)})
    model["head"].weight = model["embedding"].weight.requires_grad_(False)
    assert set(trained_state(model)) == {"adapter.weight", "adapter.bias"}


def test_it_ends_in_the_digest_of_what_torch_wrote(written: Path) -> None:
    content = written.read_bytes()
    assert content[-72:] == b"\nsha256 " + hashlib.sha256(content[:-72]).hexdigest().encode()
    assert load(written).epochs_done == 1


def test_any_flipped_bit_is_seen(written: Path) -> None:
    content = written.read_bytes()
    for place in (*range(0, len(content), len(content) // 60), len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        written.write_bytes(changed)
        refused(written, "cannot be read")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -72, -1])
def test_what_is_cut_short_is_seen(written: Path, kept: float) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(written, "it is empty" if kept == 0 else "cannot be read")


def fewer_rows(state: State) -> None:
    state["model"]["1.bias"] = torch.zeros(1)  # could be broadcast


def other_type(state: State) -> None:
    state["model"]["1.bias"] = state["model"]["1.bias"].double()


def small_moment(state: State) -> None:
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1, 12)


CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "too many epochs": (lambda state: state["progress"].update(epochs_done=99), "says that 99 epochs are done"),
    "negative epochs": (lambda state: state["progress"].update(epochs_done=-1), "says that -1 epochs are done"),
    "records of other epochs": (lambda state: state["progress"]["history"][0].update(epoch=3), "has records of 1"),
    "no record": (lambda state: state["progress"]["history"].clear(), "has records of 0"),
    "another shape": (fewer_rows, r"holds 1\.bias as float32 \(1,\), this run trains float32 \(4,\)"),
    "another type": (other_type, r"holds 1\.bias as float64 \(4,\), this run trains float32 \(4,\)"),
    "a tensor less": (lambda state: state["model"].pop("1.bias"), "holds other tensors than this run trains"),
    "a moment of another shape": (small_moment, r"exp_avg has shape \(1, 12\)"),
    "no moments of a group": (lambda state: state["optimizer"]["param_groups"].pop(), "cannot be read"),
    "no model": (lambda state: state.pop("model"), "it has no 'model'"),
    "other data": (lambda state: state.update(identity="else"), "was trained on other data"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_older_version_would_have_written_is_compared_too(written: Path, name: str) -> None:
    """Those had no digest."""
    change, reason = CHANGES[name]
    state = torch.load(written, weights_only=True)
    del state["format"]
    torch.save(state, written)
    assert load(written).epochs_done == 1
    change(state)
    torch.save(state, written)
    refused(written, reason)


def test_a_digest_cannot_be_left_out(written: Path) -> None:
    torch.save(torch.load(written, weights_only=True), written)
    refused(written, "it is cut short or changed: its SHA-256 is missing")


def test_more_epochs_than_the_run_has(written: Path) -> None:
    with pytest.raises(ConfigError, match="says that 1 epochs are done and has records of 1; this run has 0"):
        load(written, epochs=0)
