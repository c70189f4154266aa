"""Models of timm's class ``Eva`` (DINOv3, EVA-02, PE) against themselves as timm computes them, in float64."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from gift_vit.acceleration.accelerate import all_tokens
from gift_vit.acceleration.compiling import compile_blocks
from gift_vit.methods import BitFitConfig, GiftConfig, LinearConfig, LoraConfig, apply_method
from tests.acceleration.settings import accelerated
from tests.acceleration.test_accelerate import RECORD, assert_same, images, step, trained, where_timm_takes, widths

__all__ = ["images"]  # a fixture
# dynamo looks for gradients of what it is given, which is a block's output
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

# what differs in how attention finds queries and keys, in biases, norms, gates and scales
DINOV3 = {"num_reg_tokens": 2, "qkv_bias": False, "init_values": 0.1, "use_abs_pos_emb": False, "dynamic_img_size": True}
ROPE = {"use_rot_pos_emb": True}
KINDS: dict[str, dict[str, Any]] = {
    "dinov3": ROPE | DINOV3,
    "qkvb": ROPE | DINOV3 | {"qkv_bias": True},
    "eva02": ROPE | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True},
    "eva02_clip": ROPE | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True},
    "pe": ROPE | {"attn_type": "rope", "use_pre_transformer_norm": True},
    "no_rope": {"init_values": 0.5},
}
NEWER = {  # not in the oldest timm that the project runs with
    "half": ("rope_rotate_half", ROPE | DINOV3 | {"rope_rotate_half": True}),
    "qk_norm": ("qk_norm", ROPE | {"qk_norm": True}),
    "grouped": ("num_kv_heads", ROPE | {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}),
    "mixed": ("rope_type", ROPE | {"rope_type": "mixed"}),
}
CASES = [pytest.param(options, id=name) for name, options in KINDS.items()]
CASES += [pytest.param(o, id=name, marks=where_timm_takes(key, Eva.__init__)) for name, (key, o) in NEWER.items()]


def tiny_eva(**options: Any) -> Any:
    """Two random blocks on 32×32 pixels; the last one drops three of ten samples."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    model = Eva(**(values | {"global_pool": "token", "drop_path_rate": 0.3} | options))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms from where they do nothing
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.double()


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("config", [GiftConfig(rank=4), LoraConfig(rank=2), BitFitConfig(), LinearConfig()], ids=str)
def test_losses_gradients_and_logits_are_timm_s(options: dict[str, Any], config: Any, images: Tensor) -> None:
    start = apply_method(tiny_eva(**options), config)
    expected = step(trained(deepcopy(start)), images)
    for memory in ("fast", "lean", "minimal"):
        model = deepcopy(start)
        assert accelerated(model, memory=memory, cls_last_block="on") == RECORD | {
            **{"cls_last_block": True, "drop_path_on_kept": True, "memory": memory}
        }
        seen = widths(model, "blocks.1.mlp")
        assert_same(step(trained(model), images), expected)
        assert {tokens for _, tokens in seen} == {1}, "the class token alone"
        assert list(model.state_dict()) == list(start.state_dict())


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_lean_holds_for_every_pooling(pool: str, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = apply_method(tiny_eva(**ROPE, global_pool=pool), GiftConfig(rank=4))
    expected = step(trained(deepcopy(model)), images)
    with caplog.at_level("INFO"):
        record = accelerated(model, memory="lean")
    assert record == RECORD | {"cls_last_block": False, "drop_path_on_kept": True, "memory": "lean"}
    assert f"the head pools '{pool}' and not the class token" in caplog.text
    assert_same(step(trained(model), images), expected)


@pytest.mark.parametrize("options", [{"attn_drop_rate": 0.1}, {"proj_drop_rate": 0.1}, {"use_post_norm": True}], ids=str)
def test_where_it_is_not_exact_it_is_off(options: dict[str, Any], images: Tensor) -> None:
    model = tiny_eva(**ROPE, **options)
    expected = step(model, images)
    assert not accelerated(model)["cls_last_block"]
    assert_same(step(model, images), expected)


@where_timm_takes("attn_mask", Eva.forward)
def test_masks_are_timm_s_business(images: Tensor) -> None:
    model = tiny_eva(**KINDS["dinov3"]).eval()
    mask = torch.zeros(7, 7, dtype=torch.float64).index_fill_(1, torch.tensor([4]), -torch.inf)
    expected = model(images, attn_mask=mask)
    assert not torch.allclose(expected, model(images), atol=1e-3)
    accelerated(model)
    assert_same({"logits": model(images, attn_mask=mask)}, {"logits": expected})


def test_patch_dropout_gives_each_sample_positions_of_its_own(images: Tensor) -> None:
    model = tiny_eva(**ROPE, patch_drop_rate=0.5)
    expected = step(model, images)
    assert accelerated(model)["cls_last_block"]
    assert_same(step(model, images), expected)


def test_hooks_on_a_projection_that_is_not_called_change_nothing(images: Tensor) -> None:
    model = tiny_eva(**KINDS["qkvb"])
    expected = step(model, images)
    accelerated(model)
    model.get_submodule("blocks.1.attn.qkv").register_forward_hook(lambda *_: pytest.fail("called"))
    assert_same(step(model, images), expected)


def test_all_tokens_can_be_had_at_another_size(images: Tensor) -> None:
    model = tiny_eva(**KINDS["dinov3"]).eval()
    images = torch.cat([images, images], dim=-1)
    expected = model.forward_features(images)
    accelerated(model)
    with all_tokens(model):
        assert_same({"tokens": model.forward_features(images)}, {"tokens": expected})
    assert_same({"tokens": model.forward_features(images)}, {"tokens": expected[:, :1]})


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_compiled_blocks_give_the_gradients_of_blocks_that_are_not(memory: str, images: Tensor) -> None:
    """The compiler takes 4 s."""
    model: nn.Module = tiny_eva(**KINDS["dinov3"], drop_path_rate=0.0)
    expected = step(deepcopy(model), images)
    accelerated(model, memory=memory)
    assert compile_blocks(model, backend="eager")
    assert_same(step(model, images), expected)


def test_autocast_in_bf16(images: Tensor) -> None:
    model = tiny_eva(**KINDS["dinov3"]).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(model, images.float())
        accelerated(model, precision="bf16")
        assert_same(step(model, images.float()), expected, torch.bfloat16)


def test_timm_s_own_dinov3_is_one_of_them(images: Tensor) -> None:
    model = timm.create_model("vit_small_patch16_dinov3", depth=2, img_size=32, global_pool="token", num_classes=10).double()
    expected = step(model, images)
    assert accelerated(model, cls_last_block="on")["cls_last_block"]
    assert_same(step(model, images), expected)
