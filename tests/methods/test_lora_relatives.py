"""rsLoRA, LoRA-FA, LoRA+, PiSSA, EVA and WeGeFT's start, each by what tells it from what it is a relative of."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig
from gift_vit.engine.observer import EpochRecord, Observer, StopTraining
from gift_vit.engine.state import Schedule, build_optimizer
from gift_vit.methods import (
    adapter_state_dict,
    apply_method,
    initialise_method,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    read_adapter,
    save_adapter,
)
from gift_vit.methods.config import GiftConfig, LoraConfig, PeftConfig
from gift_vit.methods.lora import initialise_lora
from gift_vit.runs.train import Call, train_run
from tests.engine.test_optim import optim
from tests.methods.checks import drawn, refused
from tests.methods.method_examples import yaml_config

NAME = "blocks.1.attn.proj"
X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def update_of(model: nn.Module, plain: nn.Module, name: str = NAME) -> Tensor:
    return (model.get_submodule(name)(X) - plain.get_submodule(name)(X)).detach()


@pytest.mark.parametrize(("target", "name"), [("attn.proj", NAME), ("attn.q", "blocks.1.attn.qkv")])
def test_rslora_is_lora_times_the_root_of_the_rank(tiny_vit: nn.Module, target: str, name: str) -> None:
    plain = deepcopy(tiny_vit).double()
    updates = []
    for stabilized in (False, True):
        torch.manual_seed(3)
        cfg = LoraConfig(16, target_modules=[target], rank_stabilized=stabilized)
        updates.append(update_of(drawn(deepcopy(tiny_vit), cfg), plain, name))
    torch.testing.assert_close(updates[1], 4 * updates[0])


def test_pissa_takes_the_principal_part_and_a_file_restores_it(tiny_vit: nn.Module, tmp_path: Any) -> None:
    plain = deepcopy(tiny_vit).double()
    model: Any = apply_method(deepcopy(tiny_vit), LoraConfig(8, 2, init="pissa"))
    layer = model.get_submodule(NAME)
    weight = plain.get_parameter(f"{NAME}.weight").detach().numpy()
    residual = weight - 0.25 * (layer.pissa_B0 @ layer.pissa_A0).double().numpy()
    singular = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(residual, compute_uv=False)[:56], singular[8:], atol=1e-5)
    with torch.no_grad():
        layer.lora_A["default"].weight.mul_(1.5)
    images = torch.randn(1, 3, 160, 160)
    logits = model(images)
    save_adapter(model, tmp_path / "pissa.safetensors")
    again: Any = apply_method(deepcopy(tiny_vit), LoraConfig(8, 2, init="pissa"))
    again.get_submodule(NAME).pissa_A0.neg_()  # as another LAPACK might have chosen
    assert torch.equal(load_adapter(again, tmp_path / "pissa.safetensors")(images), logits)
    merged = merge_method(model).get_parameter(f"{NAME}.weight").detach().double().numpy()
    np.testing.assert_allclose(merged, weight + 0.5 * (weight - residual), atol=1e-6)


def test_lora_plus_moves_b_by_its_own_rate_through_the_whole_schedule(tiny_vit: nn.Module) -> None:
    model = drawn(tiny_vit, LoraConfig(4, lr_ratio=16))
    config = optim(lr=1e-3, weight_decay=0.0)
    optimizer = build_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(2, 3, 160, 160, dtype=torch.float64)).square().sum().backward()
    optimizer.step()  # Adam's first step is the learning rate, up or down
    for name, rate in ((f"{NAME}.lora_A.default.weight", 1e-3), (f"{NAME}.lora_B.default.weight", 16e-3), ("head.bias", 1e-3)):
        moved = (model.get_parameter(name) - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=0)
    schedule = Schedule(optimizer, config, epochs=100, steps_per_epoch=5)
    for epoch in (0, 5, 50, 99):
        assert schedule.set_lr(epoch, 0) == optimizer.param_groups[0]["lr"]
        assert optimizer.param_groups[-1]["lr"] == pytest.approx(16 * optimizer.param_groups[0]["lr"], rel=1e-12)


def test_lora_fa_keeps_no_wide_input(tiny_vit: nn.Module) -> None:
    kept: dict[bool, list[int]] = {}
    for frozen in (False, True):
        layer = apply_method(deepcopy(tiny_vit), LoraConfig(4, freeze_a=frozen)).get_submodule(NAME)
        kept[frozen] = []

        def keep(tensor: Tensor, widths: list[int] = kept[frozen]) -> Tensor:
            if tensor.numel() == 2 * 5 * tensor.shape[-1]:
                widths.append(tensor.shape[-1])
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(X.float())
    assert sorted(kept[False]) == [4, 64]
    assert kept[True] == [4]


def inputs_of(model: nn.Module, images: Tensor) -> np.ndarray[Any, Any]:
    seen: list[Tensor] = []
    hook = model.get_submodule(NAME).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    hook.remove()
    return seen[0].detach().flatten(0, 1).numpy()


def test_eva_is_not_trained_before_it_has_its_start(tiny_vit: nn.Module) -> None:
    images = torch.randn(2, 3, 160, 160)
    model, copy = apply_method(deepcopy(tiny_vit), LoraConfig(4, init="eva")), deepcopy(tiny_vit)
    model.eval()(images)
    for own in (model, deepcopy(model)):
        with pytest.raises(ConfigError, match=r"'lora' with {'init': 'eva'} has not had its start; call initialise_method"):
            own.train()(images)
        initialise_method(own, [images])
        assert all(module.training for module in own.modules())
        own(images)
    whole = nn.ModuleDict({"part": apply_method(deepcopy(copy), LoraConfig(4, init="eva"))})
    whole.load_state_dict({f"part.{name}": tensor for name, tensor in model.state_dict().items()})
    apply_method(copy, LoraConfig(4, init="eva"))
    copy.load_state_dict(tiny_vit.state_dict(), strict=False)
    with pytest.raises(ConfigError, match="has not had its start"):
        copy.train()(images)
    load_adapter_state_dict(copy, adapter_state_dict(model))
    assert torch.equal(copy(images), model(images))
    assert torch.equal(whole.train()["part"](images), model(images))
    merged = merge_method(apply_method(deepcopy(tiny_vit), LoraConfig(4, init="eva"))).train()
    assert torch.equal(merged(images), tiny_vit.train()(images)), "a plain model again, to be trained"


@pytest.mark.parametrize(("whole", "found"), [(True, r"shape \(3, 160, 160\)"), (False, "a tuple")])
def test_batches_with_labels_are_told_how_to_give_images(tiny_vit: nn.Module, whole: bool, found: str) -> None:
    images, model = torch.randn(2, 3, 160, 160), apply_method(tiny_vit, LoraConfig(4, init="eva"))
    with pytest.raises(ConfigError, match=rf"expected images \(B, 3, H, W\), not {found}; .* \(images for images, _ in loader"):
        initialise_method(model, images if whole else [(images, torch.zeros(2))])  # pyright: ignore[reportArgumentType]
    loader = [(images, torch.zeros(2))]
    initialise_method(model, (images for images, _ in loader))
    model.train()(images)


def test_whitening_needs_inputs_that_vary_in_as_many_directions(tiny_vit: nn.Module) -> None:
    tiny = timm.create_model("test_vit", num_classes=2, img_size=16)  # two tokens an image
    with pytest.raises(ConfigError, match=r"whiten=true: a layer's inputs do not vary in 8 directions; lower method.rank"):
        initialise_method(apply_method(tiny, LoraConfig(8, init="eva", whiten=True)), [torch.randn(3, 3, 16, 16)])


def test_a_start_of_eva_that_fails_leaves_nothing_behind(tiny_vit: nn.Module) -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.randn(1, 3, 160, 160)
        raise OSError("a picture that cannot be read")

    model = apply_method(tiny_vit, LoraConfig(4, init="eva"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(OSError, match="a picture"):
        initialise_method(model, broken())
    with pytest.raises(ConfigError, match=r"method\.init=eva starts from training images, and there are none"):
        initialise_method(model, iter([]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, module in model.named_modules() if module._forward_pre_hooks] == [""], "the refusal to train"
    with pytest.raises(ConfigError, match="has not had its start"):
        model.train()(torch.randn(1, 3, 160, 160))


@pytest.mark.parametrize("whiten", [False, True])
def test_eva_finds_the_directions_of_most_variance_however_images_are_batched(tiny_vit: nn.Module, whiten: bool) -> None:
    cfg = LoraConfig(4, init="eva", eva_images=5, whiten=whiten)
    images = torch.randn(8, 3, 160, 160, generator=torch.Generator().manual_seed(4))
    model: Any = apply_method(deepcopy(tiny_vit), cfg)
    found = []
    for sizes in ([2, 2, 4], [8]):
        initialise_lora(model, cfg, images.split(sizes))
        found.append(model.get_submodule(NAME).lora_A["default"].weight.detach().clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    tokens = inputs_of(tiny_vit, images[:5])
    centred = (tokens - tokens.mean(0)).astype(np.float64)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    expected = directions[:4] / (np.sqrt(singular[:4, None]) if whiten else 1)
    signs = np.sign((expected * found[0].numpy()).sum(1, keepdims=True))
    np.testing.assert_allclose(found[0].numpy(), signs * expected, atol=1e-3)
    assert torch.equal(model(images), tiny_vit(images))


def test_a_run_with_eva_starts_from_its_data_and_resumes_to_the_same_numbers(configure: Callable[..., RunConfig]) -> None:
    words = ["method=lora_eva", "method.rank=2", "method.freeze_a=true", "method.eva_images=20"]
    call = Call("test", [])
    whole = train_run(configure(*words, "run_name=whole"), call)
    ended = configure(*words, "run_name=cut")

    class Stop(Observer):
        def epoch_done(self, record: EpochRecord) -> None:
            raise StopTraining("enough")

    with pytest.raises(StopTraining):
        train_run(ended, call, [Stop()])
    resumed = train_run(ended, call)
    assert resumed.metrics == whole.metrics
    files = [read_adapter(configure(*words, f"run_name={name}").folder / "adapter.safetensors") for name in ("whole", "cut")]
    torch.testing.assert_close(files[0].tensors, files[1].tensors, rtol=0, atol=0)


def test_wegeft_moves_phi_first_and_scales_its_update(tiny_vit: nn.Module) -> None:
    model = apply_method(deepcopy(tiny_vit), yaml_config("gift_wegeft"))
    F.cross_entropy(model(torch.randn(2, 3, 160, 160)), torch.tensor([1, 2])).backward()
    phi, psi = (model.get_parameter(f"gift.attn.proj.{name}").grad for name in ("phi", "psi"))
    assert phi is not None
    assert phi.any()
    assert psi is None or not psi.any()
    plain, updates = deepcopy(tiny_vit).double(), []
    for alpha in (None, 8.0):
        torch.manual_seed(1)
        updates.append(update_of(drawn(deepcopy(tiny_vit), GiftConfig(4, init="wegeft", alpha=alpha)), plain))
    torch.testing.assert_close(updates[1], 2 * updates[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GiftConfig(init="wegeft", schema="sigmoid"),
            "method.init=wegeft starts from the backbone with the linear schema",
        ),
        (
            lambda: GiftConfig(init="wegeft", phi_bias=True),
            "method.init=wegeft starts from the backbone with the linear schema",
        ),
        (lambda: LoraConfig(whiten=True), "method.whiten=True has no effect with method.init=default; it belongs to eva"),
        (lambda: LoraConfig(init="pisa"), "unknown method.init 'pisa'; did you mean pissa?"),
    ],
)
def test_options_without_meaning_are_refused(make: Callable[[], Any], message: str) -> None:
    with refused(message):
        make()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(65, init="pissa"), "method.rank=65: with method.init=pissa blocks.0.attn.proj has 1 to 64 directions"),
        (LoraConfig(65, init="eva"), "method.rank=65: with method.init=eva blocks.0.attn.proj has 1 to 64 directions"),
        (
            PeftConfig("LORA", options={"init_lora_weights": "eva"}),
            "method.options.init_lora_weights=eva needs training images, which peft is not given; take method=lora_eva",
        ),
        (
            PeftConfig("LORA", options={"use_qalora": True}),
            "method.options.use_qalora=True has no effect: it is for embeddings",
        ),
        (PeftConfig("VERA", options={"fan_in_fan_out": True}), "method.options.fan_in_fan_out=True has no effect"),
        (PeftConfig("ADALORA", options={"target_r": 4}), "method.options.target_r=4 has no effect: ranks are not allocated"),
    ],
)
def test_what_would_be_something_else_is_refused(tiny_vit: nn.Module, config: Any, message: str) -> None:
    with refused(message):
        apply_method(tiny_vit, config)
