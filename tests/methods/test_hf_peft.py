"""peft's methods against their papers' formulas, their counts on ViT-B/16, their files, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.compose import compose_config
from gift_vit.config import RunConfig, load_config
from gift_vit.errors import ConfigError
from gift_vit.methods import (
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    merge_method,
    read_adapter,
    save_adapter,
)
from gift_vit.methods.hf_peft import PeftConfig
from gift_vit.paths import conf_dir
from tests.methods.method_examples import yaml_config

PROJ = "blocks.2.attn.proj"


def drawn(model: nn.Module, config: PeftConfig) -> nn.Module:
    """The method applied, in float64 and eval mode, with the trained parameters away from their start."""
    apply_method(model, config).double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def own(model: nn.Module, layer: str) -> dict[str, Tensor]:
    """peft's tensors of a layer by their name without ``default``, such as ``lora_A``."""
    state = model.get_submodule(layer).state_dict()
    return {name.split(".default")[0]: tensor for name, tensor in state.items() if ".default" in name}


def dora(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    direction = w + 1 / 8 * t["lora_B"] @ t["lora_A"]
    return x @ (t["lora_magnitude_vector"][:, None] * direction / direction.norm(dim=1, keepdim=True)).T + b


def vera(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    delta = t["vera_lambda_b"].diag() @ t["vera_B"] @ t["vera_lambda_d"].diag() @ t["vera_A"]
    return x @ (w + delta).T + b


def adalora(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    return x @ (w + t["lora_B"] @ t["lora_E"].flatten().diag() @ t["lora_A"] / (8 + 1e-5)).T + b


def hra(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    for u in t["hra_u"].T:
        w = w - 2 * torch.outer(w @ u, u) / (u @ u)
    return x @ w.T + b


def fourierft(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    places = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(777))[:3000]
    spectrum = torch.zeros(64 * 64, dtype=w.dtype).index_put((places,), t["fourierft_spectrum"]).view(64, 64)
    k = torch.arange(64, dtype=w.dtype)
    waves = torch.polar(torch.ones(64, 64, dtype=w.dtype), 2 * torch.pi * torch.outer(k, k) / 64)
    return x @ (w + 300 * (waves @ spectrum.to(waves.dtype) @ waves).real / 64**2).T + b


def loha(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    return x @ (w + (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])).T + b


def lokr(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    return x @ (w + torch.kron(t["lokr_w1"], t["lokr_w2"])).T + b


def miss(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    return x @ (w + t["miss_block"].T.repeat(1, 64 // 16)).T + b


def hira(x: Tensor, w: Tensor, b: Tensor, t: dict[str, Tensor]) -> Tensor:
    return x @ (w + w * (t["hira_B"] @ t["hira_A"])).T + b


FORMULAS = [dora, vera, adalora, hra, fourierft, loha, lokr, miss, hira]


@torch.no_grad()
@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_a_layer_is_its_paper_s_formula(tiny_vit: nn.Module, formula: Callable[..., Tensor]) -> None:
    nn.init.normal_(tiny_vit.get_parameter(f"{PROJ}.bias"))
    plain = deepcopy(tiny_vit).double().get_submodule(PROJ)
    layer = drawn(tiny_vit, yaml_config(formula.__name__)).get_submodule(PROJ)
    x = torch.randn(3, 5, 64, dtype=torch.float64)
    expected = formula(x, plain.get_parameter("weight"), plain.get_parameter("bias"), own(tiny_vit, PROJ))
    tolerance = 1e-5 if formula is fourierft else 1e-9  # peft's Fourier transform is float32
    torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=tolerance)
    assert not torch.allclose(layer(x), plain(x), atol=1e-2)


@torch.no_grad()
def test_ia3_scales_outputs_of_attention_and_inputs_of_the_mlp(tiny_vit: nn.Module) -> None:
    names = ("blocks.2.attn.qkv", "blocks.2.mlp.fc2")
    for name in names:
        nn.init.normal_(tiny_vit.get_parameter(f"{name}.bias"))
    qkv, fc2 = (deepcopy(tiny_vit.get_submodule(name)).double() for name in names)
    model = drawn(tiny_vit, yaml_config("ia3"))
    outputs, inputs = (own(model, name)["ia3_l"].flatten() for name in names)
    assert (len(outputs), len(inputs)) == (192, 192)
    x, hidden = torch.randn(5, 64, dtype=torch.float64), torch.randn(5, 192, dtype=torch.float64)
    torch.testing.assert_close(model.get_submodule(names[0])(x), qkv(x) * outputs, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(model.get_submodule(names[1])(hidden), fc2(hidden * inputs), atol=1e-12, rtol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("label", ["oft", "hra", "boft"])
def test_orthogonal_methods_rotate_the_input(tiny_vit: nn.Module, label: str) -> None:
    """W R with R orthogonal: W Wᵀ does not change; BOFT scales its rows besides."""
    before = tiny_vit.get_parameter(f"{PROJ}.weight").double()
    model = drawn(tiny_vit, yaml_config(label))
    scale = own(model, PROJ)["boft_s"] if label == "boft" else torch.ones(64, 1, dtype=torch.float64)
    after = merge_method(model).get_parameter(f"{PROJ}.weight")
    torch.testing.assert_close(after @ after.T, scale * (before @ before.T) * scale.T, atol=1e-9, rtol=1e-9)
    assert (after / scale - before).abs().max() > 1e-2


@torch.no_grad()
def test_hra_starts_at_the_pretrained_model(tiny_vit: nn.Module) -> None:
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(
        apply_method(deepcopy(tiny_vit), yaml_config("hra"))(images), tiny_vit(images), atol=1e-5, rtol=0
    )


COUNTS = {
    "dora": 12 * (8 * 2 * 768 + 768),
    "vera": 12 * (768 + 256),
    "adalora": 12 * 8 * (2 * 768 + 1),
    "ia3": 12 * (2304 + 3072),
    "oft": 12 * 768 // 32 * 32 * 31 // 2,
    "boft": 12 * (768 // 8 * 8**2 + 768),
    "hra": 12 * 8 * 768,
    "fourierft": 12 * 3000,
    "ln_tuning": (2 * 12 + 1) * 2 * 768,
    "loha": 12 * 4 * 8 * 768,
    "lokr": 12 * (24 * 24 + 8 * (32 + 32)),  # 768 = 24 × 32
    "miss": 12 * 16 * 768,
    "randlora": 12 * 768 // 32 * (32 + 768),
    "road": 12 * 768,
    "vblora": 12 * 2 * (768 // 64) * 4 * 256 + 256 * 64,
    "c3a": 12 * 768 * 768 // 64,
    "delora": 12 * (8 * 2 * 768 + 1),
    "hira": 12 * 8 * 2 * 768,
    "gralora": 12 * 8 * 2 * 768,
    "glora": 12 * (2 * 8 * 2 * 768 + 8 * (768 + 1) + 2),
    "tinylora": 12 * 64,
}


def test_every_yaml_is_counted() -> None:
    of_peft = {file.stem for file in (conf_dir() / "method").glob("*.yaml") if "kind: peft\n" in file.read_text()}
    assert set(COUNTS) == of_peft


@pytest.mark.parametrize(("label", "size"), COUNTS.items(), ids=COUNTS)
def test_counts_on_vit_b16(label: str, size: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=200)
    count = count_parameters(apply_method(model, yaml_config(label)))
    assert (count.adapter, count.head, count.backbone) == (size, 153_800, 85_798_656)


@torch.no_grad()
@pytest.mark.parametrize("label", ["vera", "randlora", "tinylora"])
def test_frozen_projections_come_from_the_file(tiny_vit: nn.Module, tmp_path: Path, label: str) -> None:
    images, config = torch.randn(2, 3, 160, 160), yaml_config(label)
    model = drawn(deepcopy(tiny_vit), config).float()
    frozen = [name for name in adapter_state_dict(model) if name not in dict(model.named_parameters())]
    assert frozen
    for name in frozen:  # as if another version of torch had drawn them
        model.get_buffer(name).normal_()
    save_adapter(model, tmp_path / "a.safetensors")
    assert set(frozen) < set(read_adapter(tmp_path / "a.safetensors").tensors)
    torch.manual_seed(99)
    assert torch.equal(load_adapter(tiny_vit, tmp_path / "a.safetensors")(images), model(images))


@torch.no_grad()
def test_projections_that_are_not_saved_are_drawn_again(tiny_vit: nn.Module, tmp_path: Path) -> None:
    images, config = torch.randn(2, 3, 160, 160), PeftConfig("VERA", options={"r": 16, "save_projection": False})
    model = drawn(deepcopy(tiny_vit), config).float()
    save_adapter(model, tmp_path / "a.safetensors")
    assert len(read_adapter(tmp_path / "a.safetensors").tensors) == 6 * 2 + 2
    torch.manual_seed(99)
    assert torch.equal(load_adapter(tiny_vit, tmp_path / "a.safetensors")(images), model(images))


def test_layers_are_named_exactly(tiny_vit: nn.Module) -> None:
    """peft matches a name by its end: ``norm`` would be ``patch_embed.norm`` too, ``proj`` the patches' convolution."""
    before = {name: type(module) for name, module in tiny_vit.named_modules()}
    attributes = set(vars(tiny_vit))

    def replaced(config: PeftConfig) -> set[str]:
        model = apply_method(deepcopy(tiny_vit), config)
        names = {name for name, module in model.named_modules() if before.get(name, type(module)) is not type(module)}
        assert set(vars(merge_method(model))) == attributes
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
        return names

    assert replaced(PeftConfig("LN_TUNING", ["norm"])) == {"norm"}
    assert replaced(PeftConfig("LN_TUNING", ["norm2"], [1, 4])) == {"blocks.1.norm2", "blocks.4.norm2"}
    assert replaced(PeftConfig("LORA", ["attn.proj"], [1, 3])) == {"blocks.1.attn.proj", "blocks.3.attn.proj"}
    ia3 = PeftConfig("IA3", ["attn.qkv", "mlp.fc2"], [0], {"feedforward_modules": ["mlp.fc2"]})
    assert replaced(ia3) == {"blocks.0.attn.qkv", "blocks.0.mlp.fc2"}


def test_options_from_the_command_line(configure: Callable[..., RunConfig]) -> None:
    words = ["dataset=digits", "method=dora"]
    changes = ["method.options.r=4", "+method.options.use_rslora=true", "method.blocks=[0,1]"]
    cfg = load_config(compose_config([*words, *changes]), compose_config(words))
    expected = {"use_dora": True, "r": 4, "lora_alpha": 1, "lora_dropout": 0.0, "use_rslora": True}
    assert cfg.method == PeftConfig("LORA", ["attn.proj"], [0, 1], expected)
    assert cfg.method_name == "dora"
    assert cfg.run_name.endswith("_seed0_blocks0-1_r4_use-rsloratrue")
    with pytest.raises(ConfigError, match=r"unknown key method\.options\.lora_alph; did you mean lora_alpha\? \(known: "):
        configure("method=dora", "+method.options.lora_alph=4")


def test_other_methods_do_not_wait_for_peft() -> None:
    subprocess.run([sys.executable, "-c", "import sys, gift_vit.methods; assert 'peft' not in sys.modules"], check=True)


CONFIG_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown_type": ({"peft_type": "VERRA"}, "unknown method.peft_type 'VERRA'; did you mean VERA? (known: ADALORA, "),
    "lower_case": ({"peft_type": "vera"}, "unknown method.peft_type 'vera'; did you mean VERA?"),
    "prompt": ({"peft_type": "PREFIX_TUNING"}, "unknown method.peft_type 'PREFIX_TUNING'"),
    "task_ids": ({"peft_type": "POLY"}, "unknown method.peft_type 'POLY'"),
    "unknown_option": ({"options": {"vera_droput": 0.1}}, "unknown key method.options.vera_droput; did you mean vera_dropout?"),
    "ours": ({"options": {"target_modules": ["attn.proj"]}}, "unknown key method.options.target_modules (known: bias, "),
    "peft_s": ({"options": {"inference_mode": True}}, "unknown key method.options.inference_mode (known: bias, "),
    "word": ({"options": {"r": "16"}}, "method.options.r='16': expected int"),
    "bool": ({"options": {"r": True}}, "method.options.r=True: expected int"),
    "none": ({"options": {"r": None}}, "method.options.r=None: expected int"),
    "float": ({"options": {"vera_dropout": "a"}}, "method.options.vera_dropout='a': expected float"),
    "flag": ({"options": {"save_projection": 1}}, "method.options.save_projection=1: expected bool"),
    "choice": (
        {"peft_type": "GLORA", "options": {"config_C": "constant"}},
        "method.options.config_C='constant': expected Literal['lora', 'vector', 'none']",
    ),
    "peft_s_check": ({"peft_type": "ADALORA"}, "method.options of ADALORA: AdaLoRA does not work when `total_step` is None"),
    "feedforward": (
        {"peft_type": "IA3", "options": {"feedforward_modules": ["mlp.fc2"]}},
        "method.options of IA3: `feedforward_modules` should be a subset of `target_modules`",
    ),
    "slice": (
        {"target_modules": ["attn.proj", "attn.v"]},
        "target 'attn.v': VERA of peft adapts whole layers; name attn.qkv, or take kind gift or lora, which adapt the slices",
    ),
    "seed": ({"peft_type": "SHIRA"}, "method.options.random_seed is required for SHIRA"),
}


@pytest.mark.parametrize(("values", "message"), CONFIG_ERRORS.values(), ids=CONFIG_ERRORS)
def test_a_wrong_config_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PeftConfig(**{"peft_type": "VERA", **values})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("peft_type", "options"),
    [
        ("LORA", {"r": 4, "lora_dropout": 0, "init_lora_weights": "gaussian", "rank_pattern": {"fc1": 2}}),
        ("HIRA", {"init_weights": "gaussian"}),
        ("LOKR", {"init_weights": True, "r": 2}),
        ("OSF", {"effective_rank": 0.5}),
        ("PSOFT", {"cayley_neumann_eps": None}),
    ],
)
def test_right_types_pass(peft_type: str, options: dict[str, Any]) -> None:
    assert PeftConfig(peft_type, options=options).options == options


MODEL_ERRORS = {
    "target": (PeftConfig("VERA", ["attn.prj"]), "target 'attn.prj' matches no layer; name one of attn.qkv, attn.q"),
    "convolution": (PeftConfig("VERA", ["proj"]), "target 'proj' matches patch_embed.proj, a Conv2d and not an nn.Linear"),
    "blocks": (PeftConfig("VERA", blocks=[6]), "blocks=[6]: give distinct indices from 0 to 5"),
    "norm": (PeftConfig("LN_TUNING", ["norm3"]), "target 'norm3' matches no LayerNorm; name one of norm1, norm2, norm"),
    "norm_in_blocks": (PeftConfig("LN_TUNING", ["norm"], [0]), "target 'norm' matches no LayerNorm in blocks=[0]; name one"),
    "norm_blocks": (PeftConfig("LN_TUNING", ["norm1"], [6]), "target 'norm1' matches no LayerNorm in blocks=[6]; name one"),
    "linear_of_norms": (PeftConfig("LN_TUNING", ["attn.proj"]), "target 'attn.proj' matches no LayerNorm; name one of"),
    "norm_of_lora": (PeftConfig("LORA", ["norm1"]), "target 'norm1' matches blocks.0.norm1, a LayerNorm and not an nn.Linear"),
    "divisor": (
        PeftConfig("C3A", options={"block_size": 128}),
        "C3A of peft cannot adapt this model: The block size should be a factor of the input size. However, the input size is",
    ),
    "half_way": (
        PeftConfig("LORA", options={"rank_pattern": {"blocks.3.attn.proj": 0}}),
        "LORA of peft cannot adapt this model: `r` should be a positive integer",
    ),
    "negative": (
        PeftConfig("VERA", options={"r": -1}),
        "VERA of peft cannot adapt this model: Trying to create",
    ),
    "rank": (PeftConfig("LORA", options={"r": 0}), "LORA of peft cannot adapt this model: `r` should be a positive integer"),
    "pissa": (
        PeftConfig("LORA", options={"init_lora_weights": "pissa"}),
        "LORA of peft cannot adapt this model: with these options it changes the frozen weight of blocks.0.attn.proj",
    ),
}


@pytest.mark.parametrize(("config", "message"), MODEL_ERRORS.values(), ids=MODEL_ERRORS)
def test_what_does_not_fit_is_one_line_and_leaves_the_model(tiny_vit: nn.Module, config: PeftConfig, message: str) -> None:
    images, before = torch.randn(1, 3, 160, 160), deepcopy(tiny_vit)
    with pytest.raises(ConfigError) as caught:
        apply_method(tiny_vit, config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert [(name, type(module)) for name, module in tiny_vit.named_modules()] == [
        (name, type(module)) for name, module in before.named_modules()
    ]
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in tiny_vit.state_dict().items())
    assert set(vars(tiny_vit)) == set(vars(before))
    assert torch.equal(apply_method(tiny_vit, PeftConfig("LORA"))(images), before(images))


def test_boft_does_not_silently_take_fewer_factors(tiny_vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    config = PeftConfig("BOFT", options={"boft_block_size": 8, "boft_n_butterfly_factor": 2})
    with pytest.raises(ConfigError, match="boft_n_butterfly_factor=2 needs peft's CUDA extension, which could not be loaded"):
        apply_method(tiny_vit, config)
    assert not any("boft" in name for name in tiny_vit.state_dict())


@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_head_is_left_to_apply_method(tiny_vit: nn.Module, bias: str) -> None:
    model = apply_method(tiny_vit, PeftConfig("LORA", blocks=[0], options={"r": 2, "bias": bias}))
    assert count_parameters(model).head == 650
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias") and not name.startswith("head"))
    assert count_parameters(model).adapter == 2 * 2 * 64 + (biases if bias == "all" else 0)


def test_a_method_without_a_yaml_needs_only_one(tiny_vit: nn.Module, configure: Callable[..., RunConfig]) -> None:
    cfg = configure("method=vera", "method.name=beft", "method.peft_type=BEFT", "~method.options", "+method.options={}")
    model = apply_method(tiny_vit, cfg.method)
    assert (cfg.method_name, count_parameters(model).adapter) == ("beft", 6 * 64)
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(F.softmax(merge_method(deepcopy(model))(x), 1), F.softmax(model(x), 1))
