"""peft's methods against their papers' formulas, their counts on ViT-B/16, their files, and what is refused."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.language import build_language_model
from gift_vit.backbones.text import build_text_model
from gift_vit.config import RunConfig, load_config
from gift_vit.config.compose import compose_config
from gift_vit.engine.state import build_optimizer
from gift_vit.methods import (
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    merge_method,
    read_adapter,
    save_adapter,
)
from gift_vit.methods.config import GiftHfConfig, LoraConfig, PeftConfig
from gift_vit.methods.hf_peft import peft_layers
from tests.methods.checks import assert_same_modules, drawn, refused
from tests.methods.method_examples import yaml_config
from tests.text_models import text_model, tiny_llama

PROJ = "blocks.2.attn.proj"


def own(model: nn.Module, layer: str) -> dict[str, Tensor]:
    """peft's tensors of a layer by their name without ``default``, such as ``lora_A``."""
    state = model.get_submodule(layer).state_dict()
    return {name.split(".default")[0]: tensor for name, tensor in state.items() if ".default" in name}


def dora(w: Tensor, t: dict[str, Tensor]) -> Tensor:
    direction = w + 1 / 8 * t["lora_B"] @ t["lora_A"]
    return t["lora_magnitude_vector"][:, None] * direction / direction.norm(dim=1, keepdim=True)


def hra(w: Tensor, t: dict[str, Tensor]) -> Tensor:
    for u in t["hra_u"].T:
        w = w - 2 * torch.outer(w @ u, u) / (u @ u)
    return w


def fourierft(w: Tensor, t: dict[str, Tensor]) -> Tensor:
    places = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(777))[:3000]
    spectrum = torch.zeros(64 * 64, dtype=w.dtype).index_put((places,), t["fourierft_spectrum"]).view(64, 64)
    k = torch.arange(64, dtype=w.dtype)
    waves = torch.polar(torch.ones(64, 64, dtype=w.dtype), 2 * torch.pi * torch.outer(k, k) / 64)
    return w + 300 * (waves @ spectrum.to(waves.dtype) @ waves).real / 64**2


# label → the fine-tuned weight of the frozen one and of peft's tensors
FORMULAS: dict[str, Callable[[Tensor, dict[str, Tensor]], Tensor]] = {
    "dora": dora,
    "hra": hra,
    "fourierft": fourierft,
    "vera": lambda w, t: w + t["vera_lambda_b"].diag() @ t["vera_B"] @ t["vera_lambda_d"].diag() @ t["vera_A"],
    "adalora": lambda w, t: w + t["lora_B"] @ t["lora_E"].flatten().diag() @ t["lora_A"] / (8 + 1e-5),
    "loha": lambda w, t: w + (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]),
    "lokr": lambda w, t: w + torch.kron(t["lokr_w1"], t["lokr_w2"]),
    "miss": lambda w, t: w + t["miss_block"].T.repeat(1, 64 // 16),
    "hira": lambda w, t: w + w * (t["hira_B"] @ t["hira_A"]),
}


@torch.no_grad()
@pytest.mark.parametrize("label", FORMULAS)
def test_a_layer_is_its_paper_s_formula(tiny_vit: nn.Module, label: str) -> None:
    nn.init.normal_(tiny_vit.get_parameter(f"{PROJ}.bias"))
    plain = deepcopy(tiny_vit).double().get_submodule(PROJ)
    layer = drawn(tiny_vit, yaml_config(label)).get_submodule(PROJ)
    x = torch.randn(3, 5, 64, dtype=torch.float64)
    expected = F.linear(x, FORMULAS[label](plain.get_parameter("weight"), own(tiny_vit, PROJ)), plain.get_parameter("bias"))
    tolerance = 1e-5 if label == "fourierft" else 1e-9  # peft's Fourier transform is float32
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
@pytest.mark.parametrize(("label", "factors"), [("ia3", "ia3_l"), ("boft", "boft_s")])
def test_weight_decay_leaves_factors_that_start_at_one(tiny_vit: nn.Module, label: str, factors: str) -> None:
    model = apply_method(tiny_vit, yaml_config(label))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optim = compose_config([f"method={label}", "optim.lr=0.1", "optim.weight_decay=0.5"])
    build_optimizer(model, load_config(optim).optim).step()
    found = [parameter for name, parameter in trained.items() if factors in name]
    assert found
    assert all(torch.equal(parameter, torch.ones_like(parameter)) for parameter in found)


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
    model = apply_method(deepcopy(tiny_vit), yaml_config("hra"))
    torch.testing.assert_close(model(images), tiny_vit(images), atol=1e-5, rtol=0)


UNSAVED = PeftConfig("VERA", options={"r": 16, "save_projection": False})


@torch.no_grad()
@pytest.mark.parametrize("label", ["vera", "randlora", "tinylora", "unsaved"])
def test_frozen_projections_come_from_the_file_or_are_drawn_again(tiny_vit: nn.Module, tmp_path: Path, label: str) -> None:
    images, config = torch.randn(2, 3, 160, 160), UNSAVED if label == "unsaved" else yaml_config(label)
    model = drawn(deepcopy(tiny_vit), config).float()
    frozen = adapter_state_dict(model).keys() - dict(model.named_parameters()).keys()
    assert bool(frozen) == (label != "unsaved")
    for name in frozen:  # as if another version of torch had drawn them
        model.get_buffer(name).normal_()
    save_adapter(model, tmp_path / "a.safetensors")
    assert frozen < read_adapter(tmp_path / "a.safetensors").tensors.keys()
    torch.manual_seed(99)
    assert torch.equal(load_adapter(tiny_vit, tmp_path / "a.safetensors")(images), model(images))


@pytest.fixture
def of_texts(tmp_path: Path) -> Callable[[str], nn.Module]:
    """A tiny random model of a kind: a Llama, or what classifies texts."""

    def build(kind: str) -> nn.Module:
        folder = tiny_llama(tmp_path / kind) if kind == "llama" else text_model(tmp_path / kind, kind)
        config = BackboneConfig(name="x", model=str(folder), kind="transformers")
        return build_language_model(config) if kind == "llama" else build_text_model(config, 2)

    return build


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("blocks", [None, [1]])
def test_norms_of_models_of_texts_are_those_that_peft_names(
    of_texts: Callable[[str], nn.Module], kind: str, blocks: list[int] | None
) -> None:
    """RMS norms of a Llama among them. peft names none of BERT's, which are all called so."""
    targets = TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING.get(kind, ["LayerNorm"])
    if blocks:
        targets = [target for target in targets if target not in {"norm", "ln_f"}]  # which stand behind the blocks
    plain = of_texts(kind)
    expected = {
        name
        for name, _ in plain.named_modules()
        if name.rpartition(".")[2] in targets and (blocks is None or re.search(r"\.(layers?|h)\.1\.", name))
    }
    assert expected
    trained = apply_method(plain, PeftConfig("LN_TUNING", targets, blocks)).named_parameters()
    found = {name.partition(".ln_tuning_layers.")[0] for name, parameter in trained if parameter.requires_grad}
    assert {name for name in found if not name.startswith(("model.score", "model.classifier"))} == expected


NORMS, LAYERS = "LayerNorm or RMSNorm", "model.transformer.h.0."
NO_LINEAR = "this model has no nn.Linear to adapt; take another method or model"
NO_LINEAR_BUT = f"a Conv1D and not an nn.Linear; {NO_LINEAR}"


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("llama", PeftConfig("LN_TUNING", ["norm1"]), "'norm1' matches no LlamaRMSNorm; name one of input_layernorm, post_a"),
        ("bert", PeftConfig("LN_TUNING", ["norm1"]), "'norm1' matches no LayerNorm; name one of LayerNorm"),
        ("gpt2", PeftConfig("LORA", ["query"]), f"'query' matches no layer; {NO_LINEAR}"),
        ("gpt2", PeftConfig("VERA", ["c_attn"]), f"'c_attn' matches {LAYERS}attn.c_attn, {NO_LINEAR_BUT}"),
        ("gpt2", GiftHfConfig(rank=2, target_modules=["c_fc"]), f"'c_fc' matches {LAYERS}mlp.c_fc, {NO_LINEAR_BUT}"),
        ("gpt2", LoraConfig(target_modules=["query"]), f"'query' matches no layer; {NO_LINEAR}"),
        ("no norm", PeftConfig("LN_TUNING", ["norm"]), f"'norm' matches no {NORMS}; this model has no {NORMS} to adapt"),
    ],
)
def test_a_model_without_such_layers_is_told_so(
    of_texts: Callable[[str], nn.Module], tiny_vit: nn.Module, kind: str, config: Any, message: str
) -> None:
    if kind == "no norm":
        for name in [name for name, module in tiny_vit.named_modules() if isinstance(module, nn.LayerNorm)]:
            tiny_vit.set_submodule(name, nn.Identity())
    with refused(f"target {message}"):
        apply_method(tiny_vit if kind == "no norm" else of_texts(kind), config)


def test_layers_are_named_exactly(tiny_vit: nn.Module) -> None:
    """peft matches a name by its end: ``norm`` would be ``patch_embed.norm`` too, ``proj`` the patches' convolution."""
    before = {name: type(module) for name, module in tiny_vit.named_modules()}

    def replaced(config: PeftConfig) -> set[str]:
        model = apply_method(deepcopy(tiny_vit), config)
        return {name for name, module in model.named_modules() if before.get(name, type(module)) is not type(module)}

    assert replaced(PeftConfig("LN_TUNING", ["norm"])) == {"norm"}
    assert replaced(PeftConfig("LN_TUNING", ["norm2"], [1, 4])) == {"blocks.1.norm2", "blocks.4.norm2"}
    for wrong in ([0, 99], [0, 0], []):
        with refused(f"blocks={wrong}: give distinct indices from 0 to 5"):
            replaced(PeftConfig("LN_TUNING", ["norm1"], wrong))
    assert replaced(PeftConfig("LORA", ["attn.proj"], [1, 3])) == {"blocks.1.attn.proj", "blocks.3.attn.proj"}
    ia3 = PeftConfig("IA3", ["attn.qkv", "mlp.fc2"], [0], {"feedforward_modules": ["mlp.fc2"]})
    assert replaced(ia3) == {"blocks.0.attn.qkv", "blocks.0.mlp.fc2"}


def test_options_from_the_command_line() -> None:
    words = ["dataset=digits", "method=dora"]
    changes = ["method.options.r=4", "+method.options.use_rslora=true", "method.blocks=[0,1]"]
    cfg = load_config(compose_config([*words, *changes]), lambda: compose_config(words))
    expected = {"use_dora": True, "r": 4, "lora_alpha": 1, "lora_dropout": 0.0, "use_rslora": True}
    assert cfg.method == PeftConfig("LORA", ["attn.proj"], [0, 1], expected)
    assert cfg.method_name == "dora"
    assert cfg.run_name.endswith("_seed0_blocks0-1_r4_use-rsloratrue")


def test_the_first_pattern_that_matches_a_layer_is_its_own(tiny_vit: nn.Module) -> None:
    ranks = {r"blocks\.[01]\.attn\.proj": 4, "attn.proj": 8, "blocks.0.attn.proj": 16}
    apply_method(tiny_vit, PeftConfig("LORA", ["attn.proj", "mlp.fc1"], [0, 2], options={"r": 2, "rank_pattern": ranks}))
    found = {name: len(layer.lora_A["default"].weight) for name, layer in peft_layers(tiny_vit)}
    assert found == {"blocks.0.attn.proj": 4, "blocks.0.mlp.fc1": 2, "blocks.2.attn.proj": 8, "blocks.2.mlp.fc1": 2}


OPTION_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("VERRA", {}, "unknown method.peft_type 'VERRA'; did you mean VERA? (known: ADALORA, "),
    ("POLY", {}, "unknown method.peft_type 'POLY'"),
    ("VERA", {"vera_droput": 0.1}, "unknown key method.options.vera_droput; did you mean vera_dropout?"),
    ("VERA", {"target_modules": ["attn.proj"]}, "unknown key method.options.target_modules (known: bias, "),
    ("VERA", {"inference_mode": True}, "unknown key method.options.inference_mode (known: bias, "),
    ("VERA", {"r": "16"}, "method.options.r='16': expected int"),
    ("VERA", {"r": True}, "method.options.r=True: expected int"),
    ("VERA", {"r": None}, "method.options.r=None: expected int"),
    ("VERA", {"vera_dropout": "a"}, "method.options.vera_dropout='a': expected float"),
    ("VERA", {"save_projection": 1}, "method.options.save_projection=1: expected bool"),
    ("GLORA", {"config_C": "a"}, "method.options.config_C='a': expected Literal['lora', 'vector', 'none']"),
    ("ADALORA", {}, "method.options of ADALORA: AdaLoRA does not work when `total_step` is None"),
    ("IA3", {"feedforward_modules": ["fc2"]}, "method.options of IA3: `feedforward_modules` should be a subset of `target"),
    ("SHIRA", {}, "method.options.random_seed is required for SHIRA"),
    ("C3A", {"block_size": 128}, "C3A of peft cannot adapt this model: The block size should be a factor of the input size"),
    (
        "LORA",
        {"rank_pattern": {"attn.prjo": 4}},
        "method.options.rank_pattern: 'attn.prjo' matches none of the adapted layers, which are blocks.0.attn.proj, "
        "blocks.1.attn.proj",
    ),
    (
        "C3A",
        {"block_size": 8, "block_size_pattern": {"blocks.9.attn.proj": 4}},
        "method.options.block_size_pattern: 'blocks.9.attn.proj' matches none of",
    ),
    ("LOHA", {"rank_pattern": {"attn(": 4}}, "method.options.rank_pattern={'attn(': 4}: no regular expression (missing ), "),
    ("ADALORA", {"total_step": 9, "alpha_pattern": {"attn": 4}}, "method.options.alpha_pattern={'attn': 4} has no effect"),
    # found out when three layers are replaced already
    ("LORA", {"rank_pattern": {"blocks.3.attn.proj": 0}}, "LORA of peft cannot adapt this model: `r` should be a positive"),
    ("VERA", {"r": -1}, "VERA of peft cannot adapt this model: Trying to create"),
    (
        "LORA",
        {"init_lora_weights": "pissa"},
        "LORA of peft cannot adapt this model: with these options it changes the frozen weight of blocks.0.attn.proj",
    ),
]
TARGET_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("VERA", {"target_modules": ["attn.prj"]}, "target 'attn.prj' matches no layer; name one of attn.qkv, attn.q"),
    ("LN_TUNING", {"target_modules": ["norm3"]}, "target 'norm3' matches no LayerNorm; name one of norm1, norm2, norm"),
    ("LN_TUNING", {"target_modules": ["norm"], "blocks": [0]}, "target 'norm' matches no LayerNorm in blocks=[0]; name one"),
    ("LN_TUNING", {"target_modules": ["attn.proj"]}, "target 'attn.proj' matches no LayerNorm; name one of"),
    ("LORA", {"target_modules": ["norm1"]}, "target 'norm1' matches blocks.0.norm1, a LayerNorm and not an nn.Linear"),
]
ERRORS = [*((kind, {"options": options}, message) for kind, options, message in OPTION_ERRORS), *TARGET_ERRORS]


@pytest.mark.parametrize(("peft_type", "values", "message"), ERRORS)
def test_what_does_not_fit_leaves_the_model(tiny_vit: nn.Module, peft_type: str, values: dict[str, Any], message: str) -> None:
    images, before = torch.randn(1, 3, 160, 160), deepcopy(tiny_vit)
    with refused(message):
        apply_method(tiny_vit, PeftConfig(peft_type, **values))
    assert_same_modules(tiny_vit, before)
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in tiny_vit.state_dict().items())
    assert set(vars(tiny_vit)) == set(vars(before))
    assert torch.equal(apply_method(tiny_vit, PeftConfig("LORA"))(images), before(images))


@pytest.mark.parametrize(
    ("peft_type", "options"),
    [
        ("LORA", {"r": 4, "lora_dropout": 0, "init_lora_weights": "gaussian", "rank_pattern": {"proj": 2}}),
        ("HIRA", {"init_weights": "gaussian"}),
        ("LOKR", {"init_weights": True, "r": 2}),
        ("PSOFT", {"cayley_neumann_eps": None}),
    ],
)
def test_right_types_pass(tiny_vit: nn.Module, peft_type: str, options: dict[str, Any]) -> None:
    assert count_parameters(apply_method(tiny_vit, PeftConfig(peft_type, options=options))).adapter > 0


def test_boft_does_not_silently_take_fewer_factors(tiny_vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    config = PeftConfig("BOFT", options={"boft_block_size": 8, "boft_n_butterfly_factor": 2})
    with refused(
        "BOFT of peft cannot adapt this model: boft_n_butterfly_factor=2 needs peft's CUDA extension, which could not be loaded"
    ):
        apply_method(tiny_vit, config)
    assert not any("boft" in name for name in tiny_vit.state_dict())


def test_the_head_is_left_to_apply_method(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, PeftConfig("LORA", blocks=[0], options={"r": 2, "bias": "all"}))
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias") and not name.startswith("head"))
    assert (count_parameters(model).adapter, count_parameters(model).head) == (2 * 2 * 64 + biases, 650)


def test_a_method_without_a_yaml_needs_only_one(tiny_vit: nn.Module, configure: Callable[..., RunConfig]) -> None:
    cfg = configure("method=vera", "method.name=beft", "method.peft_type=BEFT", "~method.options", "+method.options={}")
    model = apply_method(tiny_vit, cfg.method)
    assert (cfg.method_name, count_parameters(model).adapter) == ("beft", 6 * 64)
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(F.softmax(merge_method(deepcopy(model))(x), 1), F.softmax(model(x), 1))
