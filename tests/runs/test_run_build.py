"""What a run is built from: the images that its method starts from, and draws that are of the run's seed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import gift_vit.runs.build as build_module
import gift_vit.runs.train as run_module
from gift_vit.config import RunConfig
from gift_vit.data.table import PixelTable
from gift_vit.engine.fit import TrainBatches
from gift_vit.runs.build import build_model, initialise, open_data, train_loader
from gift_vit.runs.prefix import token_loaders
from gift_vit.runs.train import Call, train_run
from tests.runs.conftest import check_seeded

CPU = torch.device("cpu")
Configure = Callable[..., RunConfig]


@pytest.mark.parametrize(("phase", "split"), [("search", "train"), ("final", "trainval")])
def test_what_a_method_starts_from_is_what_it_is_trained_on(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, phase: str, split: str
) -> None:
    opened, drawn = list[str](), list[Tensor]()
    pixels = build_module._pixels
    monkeypatch.setattr(build_module, "_pixels", lambda *given, **named: opened.append(given[2]) or pixels(*given, **named))
    monkeypatch.setattr(build_module, "initialise_method", lambda _, batches: drawn.append(next(batches)))
    cfg = configure(f"phase={phase}", "method=lora_eva", "trainer.epochs=1")
    model, data = build_model(cfg, 10), open_data(cfg)
    for seed in (1, 1, 2):
        initialise(replace(cfg, seed=seed), model, data, CPU)
    assert opened == [split] * 3
    first, again, other = drawn
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["files", "table", "tokens"])
def test_images_come_in_the_order_of_the_run_s_seed(configure: Configure, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """From the loader, from pixels on a device as a GPU has them, and as what the first blocks make of them."""
    if kind == "table":
        monkeypatch.setattr(build_module, "_table", lambda pixels, device, _: PixelTable(pixels, device))
    cfg = configure("method=linear", f"dataset.cache={'ram' if kind == 'table' else 'off'}")
    model, data = build_model(cfg, 10), open_data(cfg)

    def loader(seed: int) -> TrainBatches:
        seeded = replace(cfg, seed=seed)
        return token_loaders(seeded, model, data, CPU, 1, {})[0] if kind == "tokens" else train_loader(seeded, model, data, CPU)

    check_seeded(loader)


def test_dropout_is_drawn_from_the_run_s_seed(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    states = list[Tensor]()

    def fit(*_: object) -> None:
        states.append(torch.get_rng_state())
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        train_run(configure("seed=7"), Call("x", []))
    [state] = states
    assert torch.equal(state, torch.Generator().manual_seed(7).get_state())
