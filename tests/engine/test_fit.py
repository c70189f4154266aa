import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.engine import state
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.engine.fit import FitInputs, Tally, evaluate, fit
from gift_vit.engine.observer import EpochRecord, Observer, StopTraining
from gift_vit.engine.state import Precision


class Batches:
    """Deterministic batches of a linearly separable problem: 50 images of 12 numbers, 4 classes, by 16 (the last has 2)."""

    num_images = 50

    def __init__(self, poison_at: tuple[int, int] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(50, 12, generator=generator)
        self.labels = (self.images @ torch.randn(12, 4, generator=generator)).argmax(1)
        self.poison_at = poison_at

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(50, generator=torch.Generator().manual_seed(epoch))
        for step, index in enumerate(order.split(16)):
            images = self.images[index]
            yield (images * float("nan") if (epoch, step) == self.poison_at else images), self.labels[index]


class Recorder(Observer):
    def __init__(self) -> None:
        self.records: list[EpochRecord] = []
        self.lrs: list[float] = []
        self.history: list[EpochRecord] | None = None
        self.told: list[str] = []

    def resumed(self, history: list[EpochRecord]) -> None:
        self.told.append("resumed")
        self.history = history

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        self.told.append(f"epoch {epoch} of {epochs}")
        assert images == 50

    def step_done(self, loss: Tensor | None, lr: float, images: int) -> None:
        self.told.append(f"step of {images}")
        assert loss is not None
        assert not loss.requires_grad
        self.lrs.append(lr)

    def epoch_done(self, record: EpochRecord) -> None:
        self.told.append("done")
        self.records.append(record)


def optim(lr: float = 0.01) -> OptimConfig:
    schedule: Any = {"warmup_epochs": 1, "warmup_lr": 1e-7, "min_lr": 1e-6, "schedule": "step"}
    return OptimConfig(lr=lr, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8, **schedule)


def trainer(**changes: Any) -> TrainerConfig:
    values: dict[str, Any] = {"epochs": 4, "batch_size": 16, "grad_accumulation": 1, "eval_every": 1, "precision": "fp32"}
    return TrainerConfig(**(values | {"compile": False, "step_graph": "auto", "deterministic": False} | changes))


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))


def train(model: nn.Module, folder: Path, batches: Batches | None = None, **changes: Any) -> tuple[Recorder, Any]:
    recorder = Recorder()
    stop = changes.pop("stop_epoch", None)
    val = [(Batches().images, Batches().labels)]
    inputs = FitInputs(batches or Batches(), val, identity="data")
    result = fit(model, inputs, optim(), trainer(**changes), folder / "last.ckpt", [recorder], stop)
    return recorder, result


def assert_same_weights(one: nn.Module, other: nn.Module, atol: float = 0.0, rtol: float = 0.0) -> None:
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), atol=atol, rtol=rtol)


def test_loop_equals_a_plain_loop_written_out(tmp_path: Path) -> None:
    model, twin = network(), network()
    recorder, _ = train(model, tmp_path)
    parameters = list(twin.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    steps = [batch for epoch in range(4) for batch in Batches().epoch(epoch)]
    losses = list[float]()
    for (images, labels), lr in zip(steps, recorder.lrs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        F.cross_entropy(logits := twin(images), labels).backward()
        losses += F.cross_entropy(logits.detach(), labels, reduction="none").tolist()
        optimizer.step()
        optimizer.zero_grad()
    assert len(steps) == 16
    means = [sum(losses[start : start + 50]) / 50 for start in range(0, 200, 50)]
    assert [record["train_loss"] for record in recorder.records] == pytest.approx(means, rel=1e-5)
    assert_same_weights(model, twin, atol=1e-6, rtol=1e-5)


def test_it_learns_and_records_every_epoch(tmp_path: Path) -> None:
    recorder, result = train(network(), tmp_path, epochs=20)
    assert [record["epoch"] for record in result.history] == list(range(20))
    assert recorder.records == result.history
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]
    assert result.history[-1]["val_top1"] > 80
    json.dumps(result.history)


def test_observers_are_told_of_everything_in_order(tmp_path: Path) -> None:
    """The first start makes one epoch of two, the second the other."""
    both = [Recorder(), Recorder()]
    inputs = FitInputs(Batches(), None, identity="data")
    for stop in (1, None):
        fit(network(), inputs, optim(), trainer(epochs=2), tmp_path / "last.ckpt", both, stop)
    steps = ["step of 16"] * 3 + ["step of 2"]
    for one in both:
        assert one.told == ["epoch 0 of 1", *steps, "done", "resumed", "epoch 1 of 2", *steps, "done"]
    keys = ["epoch", "train_loss", "lr", "steps", "seconds", "images_per_s"]
    assert [list(record) for record in both[0].records] == [keys, keys]  # in the order of metrics.jsonl


@pytest.mark.parametrize("pieces", [2, 3, 16])
def test_accumulation_gives_the_same_weights(tmp_path: Path, pieces: int) -> None:
    whole, split = network(), network()
    train(whole, tmp_path / "a")
    train(split, tmp_path / "b", grad_accumulation=pieces)
    assert_same_weights(whole, split, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resuming_ends_bit_identical(tmp_path: Path, done: int) -> None:
    through = network(dropout=0.3)
    torch.manual_seed(7)
    _, expected = train(through, tmp_path / "a")
    interrupted, resumed = network(dropout=0.3), network(dropout=0.3)
    torch.manual_seed(7)
    train(interrupted, tmp_path / "b", stop_epoch=done)
    torch.manual_seed(12345)  # whatever the second process starts with
    recorder, result = train(resumed, tmp_path / "b")
    assert len(recorder.records) == 4 - done
    assert recorder.history == result.history[:done]
    assert_same_weights(through, resumed)
    timeless = [[record | {"seconds": 0, "images_per_s": 0} for record in fitted.history] for fitted in (expected, result)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("seconds", "stopped", "written"), [(0.15, None, 12), (2, None, [1, 6, 11, 12]), (2, 2, [1, 3])])
def test_a_checkpoint_that_takes_long_waits_for_ten_times_as_much_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, stopped: int | None, written: Any
) -> None:
    clock, saved = [0.0], []

    def save(path: Path, progress: state.TrainingState, *others: Any) -> None:
        state.save_checkpoint(path, progress, *others)
        saved.append(progress.epochs_done)
        clock[0] += seconds

    class Slow(Observer):
        def __init__(self, stopped: int | None = None) -> None:
            self.stopped = stopped

        def step_done(self, loss: Tensor | None, lr: float, images: int) -> None:
            clock[0] += 1  # four an epoch

        def epoch_done(self, record: EpochRecord) -> None:
            if record["epoch"] == self.stopped:
                raise StopTraining("enough")

    monkeypatch.setattr("gift_vit.engine.fit.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr("gift_vit.engine.fit.save_checkpoint", save)
    model, inputs = network(), FitInputs(Batches(), None, identity="data")
    with nullcontext() if stopped is None else pytest.raises(StopTraining):
        fit(model, inputs, optim(), trainer(epochs=12), tmp_path / "last.ckpt", [Slow(stopped)])
    assert saved == (written if isinstance(written, list) else list(range(1, written + 1)))
    if stopped is None:
        return
    resumed, through = network(), network()
    for path, trained in (("last.ckpt", resumed), ("other", through)):
        fit(trained, inputs, optim(), trainer(epochs=12), tmp_path / path, [Slow()])
    assert_same_weights(resumed, through)


def test_the_search_phase_cuts_the_schedule_and_does_not_rescale_it(tmp_path: Path) -> None:
    whole, _ = train(network(), tmp_path / "a", epochs=10)
    cut, result = train(network(), tmp_path / "b", epochs=10, stop_epoch=3)
    assert cut.lrs == whole.lrs[:12]
    assert len(result.history) == 3


def test_the_epoch_that_scores_best_on_val_is_kept(tmp_path: Path) -> None:
    """Val is labelled as the network has it after two epochs, which further ones lead away from."""
    model, cut = network(), network()
    fit(cut, FitInputs(Batches(), None, identity="data"), optim(), trainer(epochs=8), tmp_path / "cut", [], 2)
    val = [(Batches().images, cut(Batches().images).argmax(1))]
    inputs = FitInputs(Batches(), val, identity="data", keep_best=True)
    result = fit(model, inputs, optim(), trainer(epochs=8), tmp_path / "whole", [])
    assert result.history[-1].get("val_top1") != 100
    assert (result.kept_epoch, result.val_score) == (1, 100)
    assert_same_weights(model, cut)


@pytest.mark.parametrize(("every", "scored"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2, 3]), (0, [3])])
def test_evaluation_as_often_as_asked_and_after_the_last_epoch(tmp_path: Path, every: int, scored: list[int]) -> None:
    often, asked = network(dropout=0.3), network(dropout=0.3)
    torch.manual_seed(1)
    train(often, tmp_path / "a")
    torch.manual_seed(1)
    _, result = train(asked, tmp_path / "b", eval_every=every)
    assert [record["epoch"] for record in result.history if "val_top1" in record] == scored
    assert_same_weights(often, asked)


def test_nan_loss_stops_where_it_happens_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the loss became nan in epoch 2, step 1; lower optim.lr"):
        train(network(), tmp_path, batches=Batches(poison_at=(2, 1)))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["progress"]["epochs_done"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_a_weight_spoilt_by_an_epoch_s_last_update_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, original, calls = network(), torch.optim.AdamW.step, []

    def step(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 8:
            model.get_parameter("3.weight").data[0, 0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RunError, match=r"a weight became NaN or infinite in the last update of epoch 1; lower optim.lr"):
        train(model, tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["progress"]["epochs_done"] == 1


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_every_precision_trains_with_fp32_parameters(tmp_path: Path, precision: str) -> None:
    model = network()
    _, result = train(model, tmp_path, precision=precision, epochs=12)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_autocast_is_on_in_bf16_only_where_asked() -> None:
    device = torch.device("cpu")
    for name, dtype in {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        with Precision(name, device).autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
        assert torch.get_float32_matmul_precision() == ("high" if name == "tf32" else "highest")
    Precision("fp32", device)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_cpu_without_instructions_for_the_precision_is_warned_of_once(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state._warn_if_slow.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: True)
    Precision(name, torch.device("cpu"))
    assert not caplog.messages
    state._warn_if_slow.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False)
    for precision in (name, name, "fp32"):
        Precision(precision, torch.device("cpu"))
    [line] = caplog.messages
    assert line == f"trainer.precision={name}, but this CPU has no instructions for it: fp32 is many times as fast"


def test_a_gpu_without_units_for_bf16_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with state.product_precision_kept():
        for supported in (True, False):
            state._warn_if_slow.cache_clear()
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=supported, **_: found)
            Precision("bf16", torch.device("cuda"))
    assert caplog.messages == ["trainer.precision=bf16, but this GPU has no units for it: fp16 and fp32 are faster"]


def test_a_process_with_the_newer_switches_for_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", Mock(side_effect=RuntimeError("mix of the legacy and new APIs")))
    with pytest.raises(ConfigError, match="this process has set fp32_precision"), state.product_precision_kept():
        pass


def test_compile_gives_the_same_weights_and_evaluation_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    training: list[bool] = []
    original = torch.compile

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        training.append(torch.is_grad_enabled())
        return graph

    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or original(model, backend=backend))
    plain, fast = network(), network()
    train(plain, tmp_path / "a")
    train(fast, tmp_path / "b", compile=True)
    assert compiled == [fast]
    assert training
    assert all(training)
    assert_same_weights(plain, fast, atol=1e-5, rtol=1.3e-6)


def test_frozen_parameters_stay_out_of_the_checkpoint(tmp_path: Path) -> None:
    model = network()
    first = model.get_submodule("0").requires_grad_(False)
    before = first.get_parameter("weight").clone()
    train(model, tmp_path)
    assert torch.equal(first.get_parameter("weight"), before)
    assert set(torch.load(tmp_path / "last.ckpt", weights_only=True)["model"]) == {"3.weight", "3.bias"}


def test_checkpoint_of_other_data_or_cut_short_is_refused(tmp_path: Path) -> None:
    train(network(), tmp_path, stop_epoch=1)
    inputs = FitInputs(Batches(), None, identity="other data")
    with pytest.raises(ConfigError, match=r"last.ckpt was trained on other data .* delete it"):
        fit(network(), inputs, optim(), trainer(), tmp_path / "last.ckpt", [Recorder()])
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"last.ckpt cannot be read .* delete it"):
        train(network(), tmp_path)


def test_evaluate_counts_by_hand_and_restores_training_mode() -> None:
    model = network().train()
    batches = [(Batches().images[:30], Batches().labels[:30]), (Batches().images[30:], Batches().labels[30:])]
    scores = evaluate(model, batches, torch.device("cpu"), Precision("fp32", torch.device("cpu")))
    with torch.no_grad():
        logits = model(Batches().images).double()
    assert scores.top1 == pytest.approx(100 * (logits.argmax(1) == Batches().labels).double().mean().item())
    negative_log = -torch.log_softmax(logits, 1)[torch.arange(50), Batches().labels]
    assert scores.loss == pytest.approx(negative_log.mean().item(), rel=1e-5)
    assert scores.images == 50
    assert model.training
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate(model, [], torch.device("cpu"), Precision("fp32", torch.device("cpu")))


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), -float("inf")])
def test_no_score_is_read_from_a_logit_that_is_not_finite(spoilt: float) -> None:
    """Of a class that is not the image's: with -inf the loss is finite."""
    tally = Tally(torch.device("cpu"))
    tally.add(torch.tensor([[1.0, spoilt], [1.0, 0.0]]), torch.tensor([0, 0]))
    with pytest.raises(RunError, match="no score: logits of 1 of 2 examples are NaN or infinite"):
        tally.evaluation()
