"""Blocks that share one compilation, and drop path rates in tensors."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from gift_vit.acceleration.compiling import TensorDropPath, compile_blocks
from gift_vit.acceleration.speed import Work, prepare_to_train
from gift_vit.methods import AdaptFormerConfig, FactConfig, GiftConfig, VptConfig, apply_method
from tests.acceleration.settings import accelerated, configs
from tests.acceleration.test_accelerate import step, tiny, trained

FACT = [(FactConfig(form, rank=4), 2) for form in ("tt", "tk")]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
# dynamo looks for gradients of what it is given, which is a block's output
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


# of the first block, whose tokens need no gradient, of those between, and of a last one that computes the class token alone
@pytest.mark.parametrize(("config", "graphs"), [(GiftConfig(rank=4), 3), (VptConfig(), 3), (AdaptFormerConfig(), 2), *FACT])
def test_six_blocks_of_different_rates_share_one_compilation(config: Any, graphs: int) -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10, img_size=32, drop_path_rate=0.3)
    accelerated(trained(cast("Any", apply_method(model, config))))
    names = list(model.state_dict())
    with torch.no_grad():
        expected = model.eval()(IMAGES)
    assert compile_blocks(model, backend="eager")
    assert list(model.state_dict()) == names
    step(model, IMAGES)
    assert counters["stats"]["unique_graphs"] == graphs
    with torch.no_grad():
        assert torch.equal(model.eval()(IMAGES), expected)
    assert counters["stats"]["unique_graphs"] == graphs, "evaluation compiles nothing"


def test_compiled_blocks_give_the_gradients_of_blocks_that_are_not() -> None:
    plain = trained(cast("Any", apply_method(tiny(drop_path_rate=0.0), GiftConfig(rank=4))))
    accelerated(plain)
    compiled = deepcopy(plain)
    assert compile_blocks(compiled, backend="eager")
    torch.testing.assert_close(step(compiled, IMAGES), step(plain, IMAGES))


def test_many_models_in_one_process_are_all_compiled() -> None:
    """Of one function dynamo makes eight variants, and runs what comes after without them."""
    torch._dynamo.reset()
    counters.clear()
    for _ in range(5):
        model = apply_method(tiny(drop_path_rate=0.0), GiftConfig(rank=4))
        accelerated(model)
        compile_blocks(model, backend="eager")
        model.train()(IMAGES)
    assert counters["stats"]["unique_graphs"] == 5 * 2, "two blocks each"


def test_a_model_of_other_blocks_is_left_to_the_whole_graph() -> None:
    assert not compile_blocks(nn.Sequential(nn.Linear(2, 2)))
    assert not compile_blocks(tiny(block_fn=timm.models.vision_transformer.ResPostBlock, init_values=0.1))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_drop_path_keeps_as_often_and_scales_as_timms_does(rate: float, scale: bool) -> None:
    x = torch.ones(20_000, 2, 3)
    own, timms = TensorDropPath(rate, scale, torch.device("cpu")), DropPath(rate, scale)
    torch.manual_seed(0)
    found, expected = own(x), timms(x)
    assert found.unique().tolist() == pytest.approx(expected.unique().tolist())
    assert (found[:, :1, :1] == found).all(), "a sample is dropped whole"
    kept = (found[:, 0, 0] > 0).float().mean().item()
    assert kept == pytest.approx(1 - rate, abs=4 * (0.25 / 20_000) ** 0.5)
    assert own.eval()(x) is x


def prepared(cache_root: Path, **values: Any) -> dict[str, Any]:
    trainer, compute = configs(**values)
    return prepare_to_train(apply_method(tiny(), GiftConfig(rank=4)), compute, trainer, cache_root)


def test_the_compilers_cache_lies_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    record = prepared(tmp_path, precision="bf16")
    assert record["frozen_in_bf16"]
    assert "compiled_by_block" not in record
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not Work.of(tiny(), 1, tmp_path).cached
    (tmp_path / "inductor/fxgraph").mkdir(parents=True)
    assert Work.of(tiny(), 1, tmp_path).cached
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    assert "frozen_in_bf16" not in prepared(tmp_path, compile=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    for own in ("", default_cache_dir()):  # which torch itself may have set when timm was imported
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own) if own else monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        assert Work.of(tiny(), 1, tmp_path).cached
        assert not Work.of(tiny(), 1, tmp_path / "other").cached
        prepared(tmp_path, compile=True)
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor") == cache_dir()
