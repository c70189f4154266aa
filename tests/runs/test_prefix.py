"""Training on the kept output of frozen first blocks is training on images, to the bit."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import gift_vit.runs.prefix as prefix_module
from gift_vit.acceleration.patches import embed_by_product
from gift_vit.acceleration.speed import prepare_to_train
from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig
from gift_vit.runs.result import Result
from gift_vit.runs.train import Call, train_run

CALL = Call("python -m gift_vit.train", ["debug=smoke"])
LAST = "method.blocks=[4,5]"
Configure = Callable[..., RunConfig]


@pytest.fixture
def trained(configure: Configure, tmp_path: Path) -> Callable[..., tuple[Result, dict[str, torch.Tensor]]]:
    """Takes ``dataset.cache_features`` and words; a run of one epoch, whose last batch is smaller, and what it learnt."""

    def train(mode: str, *words: str) -> tuple[Result, dict[str, torch.Tensor]]:
        place = (f"paths.cache_root={tmp_path / 'cache'}", f"run_name={mode}", f"dataset.cache_features={mode}")
        cfg = configure("trainer.batch_size=150", "trainer.epochs=1", *place, *words)
        return train_run(cfg, CALL), load_file(cfg.folder / "adapter.safetensors")

    return train


def kept(result: Result) -> object:
    return result.env["acceleration"].get("kept_blocks")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["method=lora", LAST, "method.dropout=0.5", "trainer.epochs=2"], 4),
        (["method=gift", LAST, "phase=final"], 4),
        (["method=adapter_plus", "method.blocks=[2]", "trainer.precision=bf16"], 2),
        (["method=lora", LAST, "trainer.drop_path_rate=0.1"], 1),  # that of the first block is 0
    ],
)
def test_a_run_learns_the_same_bits(trained: Callable, words: list[str], number: int) -> None:
    """The first of two epochs, for the second is in another order; some three seconds: two runs."""
    (plain, expected), (quick, learnt) = trained("off", *words), trained("auto", *words)
    assert (kept(plain), kept(quick)) == (None, number)
    assert learnt.keys() == expected.keys()
    assert all(torch.equal(learnt[name], tensor) for name, tensor in expected.items())
    assert quick.metrics == plain.metrics


def test_patches_that_are_embedded_by_a_product_are_frozen_all_the_same(
    trained: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""

    def prepare(model: nn.Module, *arguments: Any) -> dict[str, Any]:
        assert embed_by_product(model)
        return prepare_to_train(model, *arguments)

    monkeypatch.setattr("gift_vit.runs.train.prepare_to_train", prepare)
    (_, expected), (quick, learnt) = trained("off", LAST), trained("on", LAST)
    assert kept(quick) == 4
    assert all(torch.equal(learnt[name], tensor) for name, tensor in expected.items())


def test_on_keeps_what_auto_leaves(trained: Callable) -> None:
    """A linear probe has every block frozen, and is not told so by blocks=."""
    (plain, expected), (quick, learnt) = trained("auto", "method=linear"), trained("on", "method=linear")
    assert (kept(plain), kept(quick)) == (None, 6)
    assert all(torch.equal(learnt[name], tensor) for name, tensor in expected.items())


def test_what_is_kept_is_computed_once_for_what_depends_on_the_same(
    trained: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over 3 s: a run for each."""
    computed: list[str] = []
    compute = prefix_module.outputs_of
    monkeypatch.setattr(prefix_module, "outputs_of", lambda *args: computed.append(args[4]) or compute(*args))
    first, _ = trained("auto", "method=lora", LAST)
    assert computed == ["train", "val"]
    again, _ = trained("auto", "method=lora", LAST, "optim.lr=0.01", "run_name=faster")
    trained("auto", "method=gift", LAST, "run_name=gift")
    assert computed == ["train", "val"], "of another rate or method they are the same"
    assert first.metrics != again.metrics
    trained("auto", "method=lora", "method.blocks=[5]", "run_name=later")
    trained("auto", "method=lora", LAST, "seed=1", "run_name=weights")  # the backbone is random
    trained("auto", "method=lora", LAST, "backbone.img_size=64", "run_name=size")
    trained("auto", "method=lora", LAST, "trainer.precision=bf16", "run_name=bf16")
    assert computed == ["train", "val"] * 5
    assert len(list((tmp_path / "cache").glob("features-*.safetensors"))) == 10


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method=lora"], "the first block, or what is in front of it, is trained or random"),
        (["method=lora", LAST, "dataset.transform.hflip=0.5"], "training images are cropped or flipped at random"),
        (["method=vpt_deep"], "the first block, or what is in front of it, is trained or random"),
        (["method=bitfit"], "the first block, or what is in front of it, is trained or random"),
        (["method=lora", LAST, "trainer.memory=minimal"], "trainer.compile and trainer.memory=minimal take the whole model"),
    ],
)
def test_why_not_is_said(trained: Callable, words: list[str], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=f"dataset.cache_features=on is not possible: {reason}; set it to auto"):
        trained("on", *words)
    with caplog.at_level(logging.INFO):
        result, _ = trained("auto", *words)
    assert kept(result) is None
    lines = [message for message in caplog.messages if "dataset.cache_features" in message]
    assert [line[:44] for line in lines] == ["the first blocks are computed in every epoch"] * (LAST in words)
