"""Steps that are recorded and repeated, against steps that Python launches; a stand-in records, so that a CPU will do."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import gift_vit.engine.step as step_module
from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.engine.capture import CapturedForward, CapturedStep, CudaCapture, undone
from gift_vit.engine.fit import EpochLosses, FitInputs, evaluate, fit
from gift_vit.engine.observer import EpochRecord
from gift_vit.engine.state import Precision, build_optimizer
from gift_vit.engine.step import EagerStep, Step, build_step
from gift_vit.methods import PeftConfig, apply_method
from tests.acceleration.settings import accelerated
from tests.acceleration.test_accelerate import tiny
from tests.engine.stand_in import Rehearsing
from tests.engine.test_fit import Batches, Recorder, network, optim, trainer

CPU = torch.device("cpu")


def exact() -> Precision:
    return Precision("fp32", CPU)


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    return Batches().images[:size], Batches().labels[:size]


def captured(model: nn.Module, optimizer: torch.optim.Optimizer, capture: Any = None) -> CapturedStep:
    return CapturedStep(model, optimizer, exact(), 16, capture or Rehearsing(), batch()[0])


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [v for state in optimizer.state.values() for v in state.values()]
    return [*model.parameters(), *model.buffers(), *moments, torch.get_rng_state()]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("steps_before", [0, 2])
def test_recording_leaves_everything_as_it_was(steps_before: int) -> None:
    model = nn.Sequential(network(dropout=0.3), nn.BatchNorm1d(4))
    optimizer = build_optimizer(model, optim())
    for _ in range(steps_before):
        EagerStep(model, optimizer, exact())(*batch(), 16)
    before = [tensor.clone() for tensor in everything(model, optimizer)]
    step = captured(model, optimizer)
    after = everything(model, optimizer)
    if steps_before == 0:  # the moments have come to be, as an optimiser makes them
        assert not any(moment.any() for state in optimizer.state.values() for moment in state.values())
        after = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    assert_equal(after, before)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert not any(group["capturable"] for group in optimizer.param_groups)
    assert step.captured


def test_steps_equal_those_of_an_eager_twin() -> None:
    model = network(dropout=0.3)
    twin = deepcopy(model)
    optimizer, other = build_optimizer(model, optim()), build_optimizer(twin, optim())
    step, eager = captured(model, optimizer), EagerStep(twin, other, exact())
    state = torch.get_rng_state()
    losses = [[], []]
    for which, (own, run) in enumerate(((optimizer, step), (other, eager))):
        torch.set_rng_state(state)
        for lr in (0.01, 0.01, 0.5, 1e-3):
            for group in own.param_groups:
                group["lr"] = lr
            losses[which].append(run(*batch(), 16))
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1])), "a loss is kept when the next is computed"
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


def test_a_smaller_batch_is_filled_up_with_images_that_do_not_count() -> None:
    model = network()
    optimizer = build_optimizer(model, optim())
    step = captured(model, optimizer)
    step(*batch(), 16)
    twin = deepcopy(model)
    images, labels = batch(5)
    expected = F.cross_entropy(twin(images), labels)
    expected.backward()
    assert step(images, labels, 5).item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    full = step(*batch(), 16)
    assert torch.isfinite(full), "the next whole batch counts whole"


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[Rehearsing]:
    """Trainings of the test find a device that records; what has recorded."""
    made: list[Rehearsing] = []
    monkeypatch.setattr(step_module, "build_capture", lambda _: made.append(Rehearsing()) or made[-1])
    return made


def built(model: nn.Module, **changes: Any) -> Step:
    cfg = trainer(**changes)
    return build_step(model, build_optimizer(model, optim()), Precision(cfg.precision, CPU), cfg)[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "fp16"}, "precision=fp16 asks after every step"),
        ({"grad_accumulation": 2}, "grad_accumulation=2 makes one step out of several pieces"),
    ],
)
@pytest.mark.usefixtures("recording")
def test_what_cannot_be_recorded_is_said(changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gift_vit"):
        assert isinstance(built(network(), **changes), EagerStep)
    [line] = [record.getMessage() for record in caplog.records if record.name == step_module.__name__]
    assert line.startswith(f"steps are launched operation by operation, not as one graph: {reason}")
    with pytest.raises(ConfigError, match=f"step_graph=on is not possible: {reason}"):
        built(network(), **changes, step_graph="on")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.usefixtures("recording")
def test_layers_that_the_cpu_draws_are_not_recorded(dropout: float, caplog: pytest.LogCaptureFixture) -> None:
    options: Any = {"r": 2, "module_dropout": dropout}
    model = apply_method(tiny(), PeftConfig(peft_type="LOHA", target_modules=["attn.proj"], options=options)).train()
    with caplog.at_level(logging.INFO, "gift_vit"):
        built(model)
    assert ("draws on the CPU which layers to leave out" in caplog.text) == bool(dropout)


@pytest.mark.parametrize("memory", ["lean", "minimal", "fast"])
@pytest.mark.usefixtures("recording")
def test_what_is_computed_twice_is_not_recorded(memory: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny().train()
    accelerated(model, memory=memory)
    caplog.clear()
    with caplog.at_level(logging.INFO, "gift_vit"):
        step = built(model)
        step(torch.randn(16, 3, 32, 32), torch.arange(16) % 10, 16)
    assert step.captured == (memory == "fast")
    assert [line for line in caplog.messages if "trainer.memory wants" in line] == caplog.messages
    assert len(caplog.messages) == (memory != "fast")


def test_a_cpu_and_several_processes_record_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gift_vit"):
        assert not built(network()).captured
        monkeypatch.setattr(step_module, "build_capture", lambda _: Rehearsing())
        monkeypatch.setattr(distributed, "_processes", SimpleNamespace(rank=0, size=2))
        assert not built(network()).captured
    assert [line.rsplit(": ", 1)[1] for line in caplog.messages] == [
        "the device is a CPU",
        "several processes meet in every step",
    ]
    caplog.clear()
    assert isinstance(built(network(), step_graph="off"), EagerStep)
    assert not caplog.messages, "nobody asked for it"


@pytest.mark.parametrize("fails_after", [0, 1, 2])
def test_a_model_that_cannot_be_recorded_goes_on_as_if_nothing_had_been_tried(
    fails_after: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(step_module, "build_capture", lambda _: Rehearsing(fails_after))
    model = network(dropout=0.3)
    twin, state = deepcopy(model), torch.get_rng_state()
    step = built(model)
    with caplog.at_level(logging.INFO, "gift_vit"):
        losses = [step(*batch(), 16) for _ in range(3)]
    assert not step.captured
    [line] = caplog.messages
    assert line.endswith("model or method cannot be recorded (operation not permitted when stream is capturing)")
    torch.set_rng_state(state)
    eager = EagerStep(twin, build_optimizer(twin, optim()), exact())
    assert_equal(losses, [eager(*batch(), 16) for _ in range(3)])
    assert_equal(list(model.parameters()), list(twin.parameters()))
    with pytest.raises(ConfigError, match="step_graph=on is not possible: model or method cannot be recorded"):
        built(network(), step_graph="on")(*batch(), 16)


def train(model: nn.Module, folder: Path, stop_epoch: int | None = None, **changes: Any) -> Any:
    inputs = FitInputs(Batches(), [batch(30), batch(20)], identity="data")
    return fit(model, inputs, optim(), trainer(**changes), folder / "last.ckpt", [Recorder()], stop_epoch)


def strip(history: Sequence[EpochRecord]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in {"seconds", "images_per_s"}} for record in history]


def test_a_training_in_recorded_steps(tmp_path: Path, recording: list[Rehearsing]) -> None:
    plain, through, interrupted, resumed = (network() for _ in range(4))
    expected = train(plain, tmp_path / "plain", step_graph="off")
    assert not expected.captured
    assert recording == []
    found = train(through, tmp_path / "through")
    assert found.captured
    assert recording[0].repeats == 4 * 4 + 4 * 2, "steps, and batches of the validation split"
    torch.testing.assert_close(list(through.parameters()), list(plain.parameters()))
    for mine, theirs in zip(strip(found.history), strip(expected.history), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    train(interrupted, tmp_path / "resumed", stop_epoch=2)
    again = train(resumed, tmp_path / "resumed")
    assert strip(again.history) == strip(found.history)
    assert train(network(), tmp_path / "resumed").captured, "with nothing left to do"
    assert_equal(list(resumed.parameters()), list(through.parameters()))


@pytest.mark.usefixtures("recording")
def test_a_checkpoint_is_the_same_file_format_either_way(tmp_path: Path) -> None:
    model = network()
    train(model, tmp_path, stop_epoch=2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer"]
    assert all(isinstance(group["lr"], float) and not group["capturable"] for group in state["param_groups"])
    assert not train(model, tmp_path, step_graph="off").captured, "goes on without recording"


@pytest.mark.parametrize("poisoned", [0, 7, 24, 25, 49])
def test_a_gpu_is_told_of_a_nan_within_50_steps(poisoned: int) -> None:
    losses, added = EpochLosses(3, torch.device("cuda")), []

    def go_on() -> None:
        for step in range(200):
            added.append(step)
            losses.add(torch.tensor(float("nan") if step == poisoned else 1.0), 1)

    with pytest.raises(RunError, match=rf"the loss became nan in epoch 3, step {poisoned}; lower optim\.lr"):
        go_on()
    assert added[-1] - poisoned <= 50


def test_a_nan_at_the_end_of_an_epoch_is_in_its_mean() -> None:
    losses = EpochLosses(3, torch.device("cuda"))
    for value in (1.0, 2.0, float("inf")):
        losses.add(torch.tensor(value), 1)
    with pytest.raises(RunError, match="the loss became inf in epoch 3, step 2"):
        losses.mean()


def test_what_is_shown_of_a_gpu_is_no_loss_that_is_waited_for() -> None:
    losses = EpochLosses(0, torch.device("cuda"))
    for step in range(110):
        losses.add(torch.tensor(float(step)), 1)
        shown = losses.to_show()
        assert (shown and shown.item()) == (None if step < 49 else 25 * ((step + 1) // 25) - 26)
    assert losses.mean() == 54.5


def test_losses_are_waited_for_on_the_device_that_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be the current one; nothing waits for an event of another device."""
    recorded: list[Any] = []
    event = SimpleNamespace(record=lambda *stream: recorded.extend(stream), synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    with FakeTensorMode():
        losses = EpochLosses(0, torch.device("cuda", 1))
        for _ in range(25):
            losses.add(torch.zeros((), device="cuda:1"), 1)
    assert recorded == ["stream of cuda:1"]


def test_gradients_are_clipped_as_they_are_and_not_as_fp16_scales_them() -> None:
    """A loss is scaled by 65,536 there, and a fused optimiser takes that back after its own hooks."""
    norms: list[float] = []
    for precision in ("fp32", "fp16"):
        model = network()
        optimizer = build_optimizer(model, replace(optim(), clip_norm=1e3))  # more than there is

        def note(*_: object, model: nn.Module = model) -> None:
            norms.append(float(nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)))

        optimizer.register_step_pre_hook(note)
        EagerStep(model, optimizer, Precision(precision, CPU))(*batch(), 16)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


class Cuda:
    """What of ``torch.cuda`` a recording calls; notes what is done, and how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.mode: int | str = 0
        stream = SimpleNamespace(wait_stream=lambda _: self.done.append("joined"))
        calls: dict[str, Any] = {
            "graph_pool_handle": lambda: "pool",
            "device": lambda _: nullcontext(),
            "Stream": lambda _: SimpleNamespace(name="its own", wait_stream=lambda _: None),
            "current_stream": lambda: stream,
            "stream": self._on,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.done.append("repeated")),
            "graph": self._graph,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: vars(self).update(mode=mode),
        }
        for name, call in calls.items():
            monkeypatch.setattr(torch.cuda, name, call)

    def _on(self, stream: Any) -> Any:
        self.done.append(f"on {stream.name}")
        return nullcontext()

    def _graph(self, _: Any, pool: str, stream: Any, capture_error_mode: str = "global") -> Any:
        self.done.append(f"recorded in {pool} on {stream.name}, {capture_error_mode}")
        return nullcontext()

    def wait(self) -> None:
        """As ``tensor.item()``, which torch refuses where it is told to."""
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


def test_a_gpu_records_while_other_threads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    repeat = CudaCapture(torch.device("cuda", 0))(lambda: cuda.done.append("run"))
    assert cuda.done == ["on its own", "run", "run", "run", "joined", "recorded in pool on its own, thread_local", "run"]
    repeat()
    assert cuda.done[-1] == "repeated"


def test_what_waits_for_a_gpu_is_refused_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaCapture(torch.device("cuda", 0))(cuda.wait)
    assert cuda.done == ["on its own", "joined"], "what follows comes after what was tried"
    assert cuda.mode == 0


def test_scores_of_a_recorded_forward_pass() -> None:
    model, capture = network(dropout=0.3).eval(), Rehearsing()
    batches = [batch(30), batch(7), (Batches().images[:40], Batches().labels[:40])]
    expected = evaluate(model, batches, CPU, exact())
    assert evaluate(model, batches, CPU, exact(), CapturedForward(model, exact(), capture)) == expected
    assert capture.repeats == 2, "the last batch is larger than what was recorded"
    failing = CapturedForward(model, exact(), Rehearsing(fails_after=0))
    assert evaluate(model, batches, CPU, exact(), failing) == expected


def test_undone_keeps_the_memory_that_was_recorded() -> None:
    model = network()
    optimizer = build_optimizer(model, optim())
    with undone(model, optimizer, CPU):
        EagerStep(model, optimizer, exact())(*batch(), 16)
        places = [tensor.data_ptr() for tensor in everything(model, optimizer)[:-1]]
    assert [tensor.data_ptr() for tensor in everything(model, optimizer)[:-1]] == places


def test_gradients_are_summed_each_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 3).bfloat16(), nn.Linear(3, 2))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.5)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "sum_over_processes", lambda flat: flat.mul_(2))
    loss = torch.tensor(0.25)
    step_module._sum_over_processes(loss, torch.optim.SGD(model.parameters()))
    assert loss == 0.5
    for number, parameter in enumerate(model.parameters()):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 2 * (number + 1.5)), atol=0, rtol=0)


def test_processes_may_leave_out_different_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of two sends is kept, and added to what the other sends."""
    model, sent = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4))), []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for left_out, summed in (((0, 3), lambda flat: sent.append(flat.clone())), ((1, 3), lambda flat: flat.add_(sent[0]))):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = None if number in left_out else torch.full_like(parameter, number + 1.0)
        monkeypatch.setattr(distributed, "sum_over_processes", summed)
        step_module._sum_over_processes(torch.tensor(1.0), torch.optim.SGD(model.parameters()))
    gradients = [None if parameter.grad is None else parameter.grad.unique().tolist() for parameter in model.parameters()]
    assert gradients == [[1.0], [2.0], [6.0], None]


@pytest.mark.parametrize("insist", [True, False])
def test_memory_that_is_short_is_not_taken_for_a_model_that_cannot_be_recorded(insist: bool) -> None:
    def short(images: Tensor) -> Step:
        raise torch.OutOfMemoryError("CUDA out of memory")

    step = step_module._RecordedAtFirst(Mock(), short, insist)
    with pytest.raises(torch.OutOfMemoryError):
        step(torch.zeros(1), torch.zeros(1), 1)
    forward = CapturedForward(network(), exact(), Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        forward(torch.zeros(1))


def test_an_unknown_choice() -> None:
    with pytest.raises(ConfigError, match=r"unknown trainer\.step_graph 'yes'"):
        trainer(step_graph="yes")
