"""Losses and right answers, against sums written out in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gift_vit.common.tensors import IGNORED
from gift_vit.data.loaders import ignored_like
from gift_vit.engine.config import OptimConfig
from gift_vit.engine.fit import Tally
from gift_vit.engine.objective import CLASSES, SEQUENCES, squared_error
from gift_vit.engine.state import Precision, build_optimizer
from gift_vit.engine.step import EagerStep

CPU = torch.device("cpu")
LABELS = torch.tensor([[IGNORED, IGNORED, 1, 2], [0, 3, 2, 1], [IGNORED] * 4])


def outputs() -> Tensor:
    return 3 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


def by_hand(logits: Tensor, labels: Tensor) -> float:
    """The losses of the sequences, each the mean over its labels, summed."""
    total = 0.0
    for row, own in zip(logits.double().numpy(), labels.tolist(), strict=True):
        each = [math.log(np.exp(scores).sum()) - scores[label] for scores, label in zip(row, own, strict=True) if label >= 0]
        total += sum(each) / len(each) if each else 0
    return total


def test_a_sequence_counts_as_the_mean_over_its_labels() -> None:
    assert float(SEQUENCES.loss(outputs(), LABELS)) == pytest.approx(by_hand(outputs(), LABELS), rel=1e-6)
    alone = outputs()[:1, 2:]  # of a batch whose longest sequence was longer
    assert float(SEQUENCES.loss(alone, LABELS[:1])) == pytest.approx(by_hand(alone, LABELS[:1, 2:]), rel=1e-6)


def test_a_sequence_is_right_if_every_label_is_the_first_choice() -> None:
    logits = torch.zeros(3, 4, 5)
    for row, position, choice in [(0, 0, 4), (0, 2, 1), (0, 3, 2), (1, 0, 0), (1, 1, 3), (1, 2, 4), (1, 3, 1)]:
        logits[row, position, choice] = 1
    assert SEQUENCES.correct(logits, LABELS).tolist() == [True, False, True]
    tally = Tally(CPU, SEQUENCES.keeping())
    tally.add(logits[:2], LABELS[:2])
    scores = tally.evaluation()
    assert (scores.top1, scores.images, scores.logits) == (50.0, 2, None)
    assert scores.loss == pytest.approx(by_hand(logits[:2], LABELS[:2]) / 2, rel=1e-6)


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_step_on_sequences_is_the_same_in_pieces(pieces: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    optim = OptimConfig(0.1, 0.0, [0.9, 0.999], 1e-8, 0, 0.0, 0.0, "step")
    step = EagerStep(model, build_optimizer(model, optim), Precision("fp32", CPU), pieces, SEQUENCES)
    inputs = torch.randn(3, 4, 6)
    expected = by_hand(model(inputs).detach(), LABELS) / 3
    assert float(step(inputs, LABELS, 3)) == pytest.approx(expected, rel=1e-6)


def test_classes_are_scored_as_cross_entropy_has_them() -> None:
    logits, labels = outputs()[:, 0], torch.tensor([4, 0, 2])
    expected = sum(by_hand(row[None, None], label[None, None]) for row, label in zip(logits, labels, strict=True))
    assert float(CLASSES.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert CLASSES.correct(logits, logits.argmax(1)).all()


def test_of_numbers_any_may_be_a_label_and_nan_is_none() -> None:
    """−100 marks what does not count among classes alone; a temperature may be that."""
    outputs = torch.tensor([[0.5], [0.0], [2.0]], dtype=torch.float64, requires_grad=True)
    loss = squared_error(outputs, torch.tensor([-100.0, 1.0, math.nan], dtype=torch.float64))
    loss.backward()
    assert loss.item() == 100.5**2 + 1
    assert outputs.grad is not None
    assert outputs.grad.flatten().tolist() == [2 * 100.5, -2.0, 0.0]
    labels = {torch.float32: math.nan, torch.int64: -100}
    for dtype, expected in labels.items():
        assert ignored_like(torch.zeros(2, dtype=dtype)).tolist() == pytest.approx([expected] * 2, nan_ok=True)
