"""Accelerated models against the same models as timm computes them: every method, and every kind of block."""

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from inspect import signature
from itertools import product
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers.config import set_fused_attn
from timm.layers.drop import DropPath
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.acceleration import accelerate
from gift_vit.acceleration.accelerate import all_tokens
from gift_vit.common.errors import ConfigError
from gift_vit.methods import GiftConfig, LoraConfig, VptConfig, apply_method, merge_method
from tests.acceleration.settings import accelerated
from tests.methods.method_examples import all_examples, one_of_a_kind
from tests.tolerance import TOLERANCE

EXAMPLES = all_examples()
# dropout draws other numbers for other tokens, and lily weighs its experts by the mean over all tokens
NO_CLASS_TOKEN = {"adaptformer", "lora_mixed", "lily", "repadapter", "fact_tt", "fact_tk"}
NO_CLASS_TOKEN |= {"convpass", "convpass_attn", "toast", "toast_lite"}
# these draw random numbers before drop path does; adaptformer draws after it
NO_KEPT_SAMPLES = {"lora_mixed", "lily", "loha", "lokr", "repadapter", "repadapter_attn", "fact_tt", "fact_tk"}
NO_KEPT_SAMPLES |= {"toast", "toast_lite"}
NOT_LEAN = {"toast", "toast_lite"}  # blocks of another function
OTHERS = "the numbers would be others"
MEMORY = ("fast", "lean", "minimal")
RECORD = {"precision": "fp32", "compile": False, "plain_attention": False, "onednn_products": False}


def where_timm_takes(name: str, function: Callable[..., Any] = VisionTransformer.__init__) -> pytest.MarkDecorator:
    """For what came after the oldest timm that the project runs with."""
    return pytest.mark.skipif(name not in signature(function).parameters, reason=f"this timm has no {name}")


def _state_after_dropout(size: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        F.dropout(torch.ones(size, dtype=torch.float64))
        return torch.get_rng_state()


where_dropout_draws_for_each_value = pytest.mark.skipif(
    torch.equal(_state_after_dropout(30), _state_after_dropout(300)), reason="this torch draws one seed for all that is dropped"
)


def tiny(**options: Any) -> VisionTransformer:
    """A random ViT of two blocks on 32×32 pixels; the last block drops three of ten samples."""
    torch.manual_seed(0)
    values = {"img_size": 32, "depth": 2, "num_classes": 10, "drop_path_rate": 0.3} | options
    return cast("VisionTransformer", timm.create_model("test_vit", **values))


def trained(model: VisionTransformer) -> VisionTransformer:
    """The model with its trainable parameters moved from their start, by the same numbers every time."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def with_method(config: Any, dtype: torch.dtype = torch.float64, **options: Any) -> VisionTransformer:
    return trained(apply_method(tiny(**options), config).to(dtype))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Loss and gradients of one training step from a fixed seed, and the logits in eval mode."""
    torch.manual_seed(7)
    model.train().zero_grad()
    loss = F.cross_entropy(model(images), torch.arange(len(images)))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        return {"loss": loss.detach(), "logits": model.eval()(images), **gradients}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
    torch.testing.assert_close(one, other, **TOLERANCE[dtype])


def widths(model: nn.Module, name: str) -> list[tuple[int, int]]:
    """Samples and tokens that a module is given in each forward pass from now on."""
    seen: list[tuple[int, int]] = []
    model.get_submodule(name).register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[:2])))
    return seen


@one_of_a_kind(*sorted(NO_CLASS_TOKEN), *sorted(NO_KEPT_SAMPLES))
def test_every_method_keeps_its_losses_gradients_and_logits(label: str, images: Tensor) -> None:
    start = apply_method(tiny(), EXAMPLES[label].config).double()
    expected, names = step(trained(deepcopy(start)), images), list(start.state_dict())
    tolerance = torch.float32 if EXAMPLES[label].merged_in else torch.float64  # it computes in fp32 then
    on = {"cls_last_block": label not in NO_CLASS_TOKEN, "drop_path_on_kept": label not in NO_KEPT_SAMPLES}
    for memory in MEMORY:
        model = deepcopy(start)
        if memory == "lean" and label in NOT_LEAN:
            with pytest.raises(ConfigError, match="memory=lean is not possible"):
                accelerated(model, memory=memory)
            continue
        assert accelerated(model, memory=memory) == RECORD | on | {"memory": memory}
        assert_same(step(trained(model), images), expected, tolerance)
        assert list(model.state_dict()) == names
    assert accelerated(start.float()).items() >= on.items(), "what mixes tokens is seen in fp32 too"


@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 1e-5},
        {"init_values": 0.5, "qk_norm": True},
        {"reg_tokens": 2},
        {"class_token": True, "no_embed_class": True, "pre_norm": True},
        {"qkv_bias": False},
        pytest.param({"scale_attn_norm": True}, marks=where_timm_takes("scale_attn_norm")),
        {"patch_drop_rate": 0.5},
        {"drop_rate": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [VptConfig(), GiftConfig(rank=4, target_modules=["attn.qkv", "mlp.fc2"])])
def test_every_kind_of_block_that_timm_s_own_is(options: dict[str, Any], config: Any, images: Tensor) -> None:
    model = with_method(config, **options)
    expected = step(model, images)
    assert accelerated(model, cls_last_block="on")["cls_last_block"]
    seen = widths(model, "blocks.1.mlp")
    assert_same(step(model, images), expected)
    assert [tokens for _, tokens in seen] == [1, 1]
    assert seen[0][0] < 8, "drop path dropped none, and nothing was tested"
    assert seen[1][0] == 8


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"global_pool": "avg"}, "the head pools 'avg' and not the class token"),
        ({"global_pool": "map"}, "the head pools 'map' and not the class token"),
        ({"proj_drop_rate": 0.1}, OTHERS),
        ({"attn_drop_rate": 0.1}, OTHERS),
        # it drops nothing, and whoever draws next sees other numbers
        pytest.param({"proj_drop_rate": 1e-9, "drop_path_rate": 0.0}, OTHERS, marks=where_dropout_draws_for_each_value),
        pytest.param({"attn_layer": "diff"}, OTHERS, marks=where_timm_takes("attn_layer")),
        ({"block_fn": ResPostBlock}, OTHERS),
        ({"block_fn": ParallelThingsBlock}, OTHERS),
    ],
    ids=str,
)
def test_where_it_is_not_exact_it_is_off_and_says_so(options: dict[str, Any], reason: str, images: Tensor, caplog: Any) -> None:
    model = tiny(**options).double()
    expected = step(model, images)
    with caplog.at_level("INFO", "gift_vit.acceleration"):
        assert not accelerated(model)["cls_last_block"]
    assert [record.message.startswith("the last block computes all tokens") for record in caplog.records].count(True) == 1
    assert reason in caplog.text
    assert_same(step(model, images), expected)
    with pytest.raises(ConfigError, match=rf"cls_last_block=on is not possible with this model: .*{reason}.*; set it to auto"):
        accelerated(model, cls_last_block="on")


def test_models_of_other_classes_are_left_to_timm(images: Tensor) -> None:
    torch.manual_seed(0)
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2, num_classes=10).double()
    expected = step(distilled, images)
    assert not accelerated(distilled)["cls_last_block"]
    assert_same(step(distilled, images), expected)
    with pytest.raises(ConfigError, match=r"VisionTransformerDistilled has a \w+ of its own"):
        accelerated(distilled, cls_last_block="on")
    with pytest.raises(ConfigError, match="the model is no VisionTransformer of timm's but a Linear"):
        accelerated(nn.Linear(2, 2), cls_last_block="on")


@pytest.mark.parametrize(("drop_path_rate", "scaled"), [(0.3, True), (0.97, True), (0.3, False)])
def test_drop_path_computes_the_kept_samples_alone(drop_path_rate: float, scaled: bool, images: Tensor) -> None:
    model = with_method(GiftConfig(rank=4), drop_path_rate=drop_path_rate)
    for name in ("drop_path1", "drop_path2"):
        cast("DropPath", model.get_submodule(f"blocks.1.{name}")).scale_by_keep = scaled
    reference = deepcopy(model)
    assert accelerated(model, cls_last_block="off")["drop_path_on_kept"]
    seen, kept = widths(model, "blocks.1.attn"), []
    for seed in range(12):
        outcomes = []
        for one in (reference, model):
            torch.manual_seed(seed)
            one.train().zero_grad()
            one(images).square().sum().backward()
            outcomes.append({name: p.grad for name, p in one.named_parameters() if p.grad is not None})
        assert_same(outcomes[1], outcomes[0])
        kept.append(seen[-1][0])
    assert set(kept) >= ({5, 6} if drop_path_rate == 0.3 else {1}), kept
    assert max(kept) <= 8
    with torch.no_grad():
        model.eval()(images)
    assert seen[-1][0] == 8


def test_dropout_everywhere(images: Tensor) -> None:
    model = with_method(LoraConfig(dropout=0.2), proj_drop_rate=0.2, attn_drop_rate=0.2)
    expected = step(model, images)
    for memory in MEMORY:
        off = {"cls_last_block": False, "drop_path_on_kept": False, "memory": memory}
        assert accelerated(model, memory=memory) == RECORD | off
        assert_same(step(model, images), expected)


def test_of_blocks_of_one_kind_one_is_tried_and_its_trial_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[weakref.ref[nn.Module]] = []
    original = accelerate._computes_the_same

    def computes_the_same(block: nn.Module) -> bool:
        tried.append(weakref.ref(block))
        return original(block)

    monkeypatch.setattr(accelerate, "_computes_the_same", computes_the_same)
    model = tiny(drop_path_rate=0.3, depth=5)
    apply_method(model, GiftConfig(rank=4, blocks=[2]))
    gc.disable()
    try:
        assert accelerated(model)["drop_path_on_kept"]
    finally:
        gc.enable()
    # the last for its class token alone; of those with drop path one without GIFT, one with it, and the last
    assert len(tried) == 4
    assert not any(trial() for trial in tried)
    plans = [accelerate.plan_of(block) for block in model.blocks.children()]
    assert [plan is not None and plan.kept_samples_only for plan in plans] == [False, True, True, True, True]
    assert len({id(plan) for plan in plans}) == 5


def test_a_trial_drops_some_samples_and_keeps_others() -> None:
    """Each of a block's two branches; at a rate of 0.1 in the last of twelve blocks six samples would all be kept."""
    torch.manual_seed(0)
    for _ in range(2):
        assert 0 < torch.empty(accelerate._SAMPLES, 1, 1, dtype=torch.float64).bernoulli_(0.5).sum() < accelerate._SAMPLES


@pytest.mark.parametrize("label", sorted(NO_KEPT_SAMPLES))
def test_what_drop_path_keeps_is_computed_alone_in_no_block_whose_method_draws_or_mixes(label: str) -> None:
    model = tiny(drop_path_rate=0.1, depth=12)
    apply_method(model, EXAMPLES[label].config)
    assert not accelerated(model)["drop_path_on_kept"]
    for block in model.blocks.children():
        plan, is_adapted = accelerate.plan_of(block), any(p.requires_grad for p in block.parameters())
        assert not (is_adapted and plan is not None and plan.kept_samples_only)


def test_a_block_that_is_hooked_is_tried_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A method may mix samples in one block alone."""
    model = tiny(drop_path_rate=0.3, depth=4)
    model.get_submodule("blocks.2.mlp").register_forward_hook(lambda _, __, output: output + output.mean(0))
    with caplog.at_level("INFO"):
        assert not accelerated(model)["drop_path_on_kept"]
    assert "drop path computes what it drops in 1 of 4 blocks" in caplog.text


def test_accelerating_leaves_weights_modes_and_generator_alone() -> None:
    model = with_method(GiftConfig(rank=4)).train()
    model.get_submodule("blocks.1.attn").eval()
    flags, before = [module.training for module in model.modules()], deepcopy(model.state_dict())
    state = torch.get_rng_state()
    accelerated(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_what_is_on_can_be_changed_and_modules_are_told_whether_mlps_are_computed_twice(images: Tensor) -> None:
    class Listener(nn.Module):
        def set_mlp_recomputed(self, recomputed: bool) -> None:
            self.told = recomputed

    model, listener = with_method(GiftConfig(rank=4)), Listener()
    model.add_module("listener", listener)
    for memory in MEMORY:
        accelerated(model, memory=memory)
        assert (model.grad_checkpointing, listener.told) == (memory == "minimal", memory == "lean")
    accelerated(model, cls_last_block="off")
    seen = widths(model, "blocks.1.mlp")
    model.eval()(images)
    assert seen == [(8, 5)]
    assert not model.grad_checkpointing


@pytest.mark.parametrize("config", [GiftConfig(rank=4), VptConfig(), VptConfig(deep=False)])
def test_all_tokens_can_be_had(config: Any, images: Tensor) -> None:
    model = with_method(config).eval()
    expected = model.forward_features(images)
    accelerated(model)
    with all_tokens(model):
        assert_same({"tokens": model.forward_features(images)}, {"tokens": expected})
    assert_same({"tokens": model.forward_features(images)}, {"tokens": expected[:, :1]})
    with all_tokens(nn.Linear(2, 2)):
        pass


@where_timm_takes("attn_mask", VisionTransformer.forward)
def test_masks_are_timm_s_business(images: Tensor) -> None:
    model = with_method(GiftConfig(rank=4)).eval()
    mask = torch.zeros(5, 5, dtype=torch.float64).index_fill_(1, torch.tensor([2]), -torch.inf)
    expected = model(images, attn_mask=mask)
    assert not torch.allclose(expected, model(images), atol=1e-3)
    accelerated(model)
    assert_same({"logits": model(images, attn_mask=mask)}, {"logits": expected})


COMPILED = {"gift": GiftConfig(rank=4, target_modules=["attn.v", "mlp.fc1"]), "vpt": VptConfig(), "lora": LoraConfig()}
TOGETHER = list(zip(COMPILED, ("lean", "minimal", "fast"), strict=True))  # the other pairs are for the slow suite
APART = [pytest.param(*pair, marks=pytest.mark.slow) for pair in product(COMPILED, MEMORY) if pair not in TOGETHER]


@pytest.mark.parametrize(("method", "memory"), [*TOGETHER, *APART])
def test_training_a_compiled_model(method: str, memory: str, images: Tensor) -> None:
    config = COMPILED[method]
    model = with_method(config, drop_path_rate=0.0)
    expected = step(model, images)
    accelerated(model, memory=memory)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = step(compiled, images)
    assert_same({name.removeprefix("_orig_mod."): tensor for name, tensor in actual.items()}, expected)


def test_a_compiled_model_computes_what_drop_path_drops_and_has_no_graph_breaks(images: Tensor) -> None:
    model = with_method(GiftConfig(rank=4))
    expected = step(model, images)["loss"]
    record = accelerated(model, compile=True)
    assert (record["drop_path_on_kept"], record["compile"]) == (False, True)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    assert_same({"loss": step(compiled, images)["loss"]}, {"loss": expected})


def test_bf16_autocast(images: Tensor) -> None:
    model = with_method(GiftConfig(rank=4, target_modules=["attn.proj", "mlp.fc1"]), torch.float32)
    images = images.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(model, images)
        for memory in MEMORY:
            plain = accelerated(model, memory=memory, precision="bf16")["plain_attention"]
            assert plain == (memory != "lean")
            assert fused(model) == [not plain] * 2
            assert_same(step(model, images), expected, torch.bfloat16)


def fused(model: nn.Module) -> list[bool]:
    return [bool(module.fused_attn) for module in model.modules() if hasattr(module, "fused_attn")]


def test_fp32_keeps_the_fused_kernel_and_whoever_switched_it_off_is_heard() -> None:
    model = tiny()
    assert not accelerated(model)["plain_attention"]
    assert fused(model) == [True, True]
    set_fused_attn(False)
    try:
        accelerated(model)
        assert fused(model) == [False, False]
    finally:
        set_fused_attn(True)


def test_copies_and_merged_models_stay_accelerated(images: Tensor) -> None:
    model = with_method(GiftConfig(rank=4)).eval()
    expected = model(images)
    accelerated(model)
    copy = merge_method(deepcopy(model))
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.fc2.weight").zero_()
    seen = widths(copy, "blocks.1.mlp")
    assert_same({"logits": copy(images)}, {"logits": expected})
    assert seen == [(8, 1)]
    plain = tiny().double().eval()
    plain.load_state_dict(copy.state_dict())
    assert_same({"logits": plain(images)}, {"logits": expected})


def test_lean_and_minimal_need_blocks_they_know() -> None:
    with pytest.raises(ConfigError, match=r"memory=lean is not possible with ResPostBlock: .*; use minimal"):
        accelerated(tiny(block_fn=ResPostBlock), memory="lean")
    with pytest.raises(ConfigError, match="memory=minimal is not possible: Linear cannot checkpoint its blocks"):
        accelerated(nn.Linear(2, 2), memory="minimal")
    convit = timm.create_model("convit_tiny", img_size=32, embed_dim=32, num_heads=4, depth=2, local_up_to_layer=1)
    with pytest.raises(ConfigError, match="memory=minimal is not possible: ConVit cannot checkpoint its blocks"):
        accelerated(convit, memory="minimal")
