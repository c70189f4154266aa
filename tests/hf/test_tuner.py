"""GIFT as a method of Hugging Face peft: what it computes, shares, saves, loads and merges, on tiny models of seven kinds."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    PeftType,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import gift_vit.hf
from gift_vit.hf import GiftConfig, GiftLayer, GiftModel
from tests.hf.conftest import SIZES, adapted, build, inputs, logits, randomise

TARGETS: list[tuple[str, Any, int, int]] = [  # kind, targets, layers, pairs
    ("bert", ["query", "value"], 6, 2),
    ("bert", "all-linear", 19, 5),
    ("roberta", None, 6, 2),
    ("llama", ["q_proj", "v_proj", "down_proj"], 9, 3),
    ("gpt2", ["c_attn", "mlp.c_proj"], 6, 2),
    ("t5", ["q", "v", "wo"], 16, 3),
    ("vit", ["o_proj"], 3, 1),
    ("timm", ["attn.proj"], 6, 1),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GiftLayer)]


def saved(model: PeftModel, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(str(folder))
    return load_file(folder / "adapter_model.safetensors")


def test_the_method_is_a_member_of_pefts_enumeration() -> None:
    member = PeftType("GIFT")
    assert member is PeftType.GIFT is PeftType["GIFT"] is pickle.loads(pickle.dumps(member)) is copy.deepcopy(member)  # pyright: ignore
    assert member in list(PeftType)
    assert member.value == member == "GIFT"
    assert len(list(PeftType)) == len(PeftType) == len(PeftType.__members__)
    gift_vit.hf._register()  # again


def test_another_method_of_the_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setitem(__import__("peft").PEFT_TYPE_TO_CONFIG_MAPPING, PeftType("GIFT"), Other)
    with pytest.raises(ImportError, match=r"peft's method GIFT is .*Other already"):
        gift_vit.hf._register()


@pytest.mark.parametrize(("kind", "targets", "num_layers", "num_pairs"), TARGETS)
def test_an_adapter_from_its_start_to_the_merged_model(
    kind: str, targets: Any, num_layers: int, num_pairs: int, tmp_path: Path
) -> None:
    before = logits(build(kind), kind)
    model = adapted(kind, targets, random=False)
    assert torch.equal(logits(model, kind), before), "ψ is zero"
    assert len(layers(model)) == num_layers
    assert len({id(layer.gift_pair["default"]) for layer in layers(model)}) == num_pairs
    after = logits(randomise(model), kind)
    assert not torch.allclose(after, before, atol=1e-3)

    file = saved(model, tmp_path)
    assert len([name for name in file if "gift_pair" in name]) == 2 * num_pairs, "one copy of each"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        for low_memory in (False, True):
            again = PeftModel.from_pretrained(build(kind), str(tmp_path), adapter_name="x", low_cpu_mem_usage=low_memory)
            assert torch.equal(logits(again, kind), after)
            assert len({id(layer.gift_pair["x"]) for layer in layers(again)}) == num_pairs

    with model.disable_adapter():
        assert torch.equal(logits(model, kind), before)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, kind), after, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model, kind), before)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(logits(model, kind), after), "unmerged bit for bit"
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged, kind), after, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == build(kind).state_dict().keys()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_merged_weight_is_that_of_the_paper(kind: str) -> None:
    model = adapted(kind, ["q_proj"] if kind == "llama" else ["c_attn"], alpha=6)
    layer = layers(model)[1]
    pair, base = layer.gift_pair["default"], layer.get_base_layer()
    stored = base.weight.detach().double().clone()
    weight = stored if kind == "llama" else stored.T
    expected = weight @ (torch.eye(32).double() + 6 / 4 * pair.phi.double() @ pair.psi.double())
    layer.merge()
    merged = base.weight.detach().double()
    torch.testing.assert_close(merged if kind == "llama" else merged.T, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_both_forms_agree(dtype: torch.dtype, tolerance: float) -> None:
    outputs = []
    for compute in ("activation", "weight"):
        model = adapted("gpt2", ["c_attn", "mlp.c_fc"], compute=compute, alpha=3).to(dtype)
        model.train()
        for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
            dropout.p = 0.0
        loss = F.cross_entropy(model(**inputs("gpt2")).logits.flatten(0, 1), inputs("gpt2")["input_ids"].flatten())
        loss.backward()
        outputs.append([loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)])
    for activation, weight in zip(*outputs, strict=True):
        torch.testing.assert_close(activation, weight, atol=tolerance, rtol=tolerance)


def test_in_half_precision_training_adds_to_what_the_layer_returns() -> None:
    model = get_peft_model(build("llama").to(torch.bfloat16), GiftConfig(r=4, target_modules=["q_proj"]))
    layer = layers(model)[0]
    assert {parameter.dtype for parameter in layer.gift_pair.parameters()} == {torch.float32}
    assert layer._uses_weight_form(["default"])
    model.eval()
    assert not layer._uses_weight_form(["default"])


def test_the_first_step_moves_psi_alone_and_the_second_both() -> None:
    model = adapted("bert", ["query"], random=False).train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    pair = layers(model)[0].gift_pair["default"]
    for step in range(2):
        optimizer.zero_grad()
        model(**inputs("bert"), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        assert pair.psi.grad.abs().max() > 0
        assert (pair.phi.grad.abs().max() > 0) == (step == 1)
        optimizer.step()


def test_wegeft_is_the_fifth_versions_form() -> None:
    """φ zero and ψ drawn, W (I + α/r φ ψ), and so φ alone moves first: language.md §2.6, by hand."""
    model = adapted("llama", ["q_proj", "down_proj"], random=False, init_weights="wegeft", alpha=8)  # r is 4
    assert torch.equal(logits(model, "llama"), logits(build("llama"), "llama"))
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    pairs = {id(layer.gift_pair["default"]): layer.gift_pair["default"] for layer in layers(model)}.values()
    for step in range(2):
        optimizer.zero_grad()
        model.train()(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
        for pair in pairs:
            assert pair.phi.grad.abs().max() > 0
            assert (pair.psi.grad.abs().max() > 0) == (step == 1)
        optimizer.step()
    layer = layers(model)[0]
    weight, pair = layer.get_base_layer().weight.detach().double(), layer.gift_pair["default"]
    expected = weight + 8 / 4 * weight @ pair.phi.detach().double() @ pair.psi.detach().double()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_an_alpha_that_switches_the_adapter_off_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="`alpha` should be a positive number or None"):
        GiftConfig(r=4, target_modules=["query"], alpha=alpha)


def test_initialisation() -> None:
    for init, phi_is_zero, psi_is_zero in [(True, False, True), ("wegeft", True, False), (False, False, False)]:
        pair = layers(adapted("bert", ["query"], random=False, init_weights=init))[0].gift_pair["default"]
        assert (not pair.phi.any(), not pair.psi.any()) == (phi_is_zero, psi_is_zero)
        drawn = torch.cat([part.detach().flatten() for part in (pair.phi, pair.psi.T) if part.any()])
        assert drawn.abs().max() <= 32**-0.5, "uniform on ±1/√d_in"
        assert drawn.std() == pytest.approx((3 * 32) ** -0.5, rel=0.15)


LLAMA: Any = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11_008}
LLAMA_3: Any = {**LLAMA, "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 128_256}
ROBERTA: Any = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE: Any = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
QV, QKVUD = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("config", "targets", "r", "expected", "percent"),
    [
        (RobertaConfig(**ROBERTA), ["query", "value"], 32, 98_304, 0.079),
        (RobertaConfig(**ROBERTA, **LARGE), ["query", "value"], 32, 131_072, 0.037),
        (LlamaConfig(**LLAMA), QV, 64, 1_048_576, 0.016),
        (LlamaConfig(**LLAMA), ["o_proj"], 128, 1_048_576, 0.016),
        (LlamaConfig(**LLAMA), QKVUD, 64, 3_506_176, 0.052),
        (LlamaConfig(**LLAMA), QV, 16, 262_144, 0.0039),
        (LlamaConfig(**LLAMA_3), QV, 64, 1_048_576, 0.013),
        (LlamaConfig(**LLAMA_3), QKVUD, 64, 3_932_160, 0.049),
    ],
)
def test_parameters_of_the_papers_models(config: Any, targets: list[str], r: int, expected: int, percent: float) -> None:
    """On the meta device, where weights take no memory; models of 24 and 32 layers take a second or two each."""
    is_llama = isinstance(config, LlamaConfig)
    with torch.device("meta"):
        base: Any = LlamaForCausalLM(config) if is_llama else AutoModelForSequenceClassification.from_config(config)
        head = 0 if is_llama else sum(parameter.numel() for parameter in base.classifier.parameters())
        frozen = sum(parameter.numel() for parameter in base.parameters()) - head
        model = inject_adapter_in_model(GiftConfig(r=r, target_modules=targets), base, low_cpu_mem_usage=True)
    pairs = {id(p): p.numel() for name, p in model.named_parameters() if "gift_pair" in name}
    assert sum(pairs.values()) == expected
    assert 100 * expected / frozen == pytest.approx(percent, abs=0.5 * 10 ** -(3 if percent > 0.01 else 4))


@pytest.mark.parametrize(
    ("share", "pairs"), [("target", 2), ("all", 1), ("layer", 6), ([["query", "value"]], 1), ([["query"], ["value"]], 2)]
)
def test_what_layers_share(share: Any, pairs: int, tmp_path: Path) -> None:
    model = adapted("bert", ["query", "value"], share=share)
    assert len({id(layer.gift_pair["default"]) for layer in layers(model)}) == pairs
    assert len([name for name in saved(model, tmp_path) if "gift_pair" in name]) == 2 * pairs
    again = PeftModel.from_pretrained(build("bert"), str(tmp_path))
    assert torch.equal(logits(again, "bert"), logits(model, "bert"))


def test_layers_of_one_name_and_two_widths_have_a_pair_for_each() -> None:
    model = adapted("bert", ["dense"])
    assert {len(layer.gift_pair["default"].phi) for layer in layers(model)} == {32, 48}
    assert len({id(layer.gift_pair["default"]) for layer in layers(model)}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["nope"]}, r"Target modules .* not found"),
        ({"target_modules": ["word_embeddings"]}, r"Target module Embedding.* is not supported"),
        ({"target_modules": ["LayerNorm"]}, r"Target module LayerNorm.* is not supported"),
        ({"target_modules": ["dense"], "share": "all"}, r"share='all' needs layers of one input width: .* has 48, .* 32"),
        ({"target_modules": ["query", "key"], "share": [["query"]]}, r"`share` has no list with key"),
        ({"target_modules": ["query"], "r": 33}, r"`r`=33 is larger than the input width of .*query, 32"),
        ({"target_modules": ["query"], "r": 0}, "`r` should be a positive integer value but the value passed is 0"),
        ({"target_modules": ["query"], "share": "some"}, "`share` should be"),
        ({"target_modules": ["query"], "init_weights": "olora"}, "`init_weights` should be"),
        ({"target_modules": ["query"], "compute": "fast"}, "`compute` should be"),
        ({"target_modules": ".*query", "layers_to_transform": [0]}, "`layers_to_transform` cannot be used when"),
        ({"target_modules": ["query"], "layers_pattern": "layer"}, "`layers_to_transform` must also be specified"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        get_peft_model(build("bert"), GiftConfig(**{"r": 4, **options}))


READERS: dict[str, tuple[Callable[[], nn.Module], list[str], str, Tensor]] = {  # model, targets, what reads, an input
    "SigLIP": (
        lambda: SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **SIZES)),
        *(["out_proj"], "MultiheadAttention", torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)),
    ),
    "encoder": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)),
        *(["0", "1.linear1"], "TransformerEncoderLayer", torch.linspace(-1, 1, 2 * 5 * 32).view(2, 5, 32)),
    ),
    "BEiT": (
        lambda: Beit(img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=0, init_values=None),
        *(["attn.qkv", "attn.proj"], "Attention", torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_layer_that_is_read_and_not_called_is_refused_and_can_be_left_out(name: str) -> None:
    """The others, which share a pair with it, would change it by merging alone."""
    make, targets, reader, images = READERS[name]
    torch.manual_seed(0)
    options: Any = {"r": 4, "target_modules": targets, "share": "all", "init_weights": False}
    with pytest.raises(TypeError, match=rf"{reader} computes with its weight and does not call it") as told:
        get_peft_model(make(), GiftConfig(**options))
    left_out = re.findall(r"exclude_modules=\['(.*)'\]", str(told.value))
    model = get_peft_model(make().eval(), GiftConfig(**options, exclude_modules=left_out))

    def output(module: nn.Module) -> Tensor:
        with torch.inference_mode():
            return getattr(found := module(images), "pooler_output", found)

    trained = output(model)
    with model.disable_adapter():
        assert not torch.allclose(output(model), trained, atol=1e-3)
    torch.testing.assert_close(output(model.merge_and_unload()), trained, atol=1e-5, rtol=1e-4)


def test_a_file_of_some_layers_is_loaded_into_others(tmp_path: Path) -> None:
    first = adapted("bert", ["query"], layers_to_transform=[0, 1], layers_pattern="layer")
    saved(first, tmp_path)
    config: Any = GiftConfig.from_pretrained(str(tmp_path))
    config.layers_to_transform = [1, 2]
    again = PeftModel.from_pretrained(build("bert"), str(tmp_path), config=config)
    expected = layers(first)[0].gift_pair["default"]
    for layer in layers(again):
        assert torch.equal(layer.gift_pair["default"].phi, expected.phi)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = saved(adapted("bert", ["query"]), tmp_path)
    key = next(name for name in state if name.endswith("phi"))
    save_file(state | {key: torch.zeros(40, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*phi"):
        PeftModel.from_pretrained(build("bert"), str(tmp_path))
    save_file(state | {key.replace("layer.0", "layer.1"): torch.zeros(32, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="two different phi for the layers of query"):
        PeftModel.from_pretrained(build("bert"), str(tmp_path))


def two_adapters() -> Any:
    """``default`` on query and value, ``other`` with another rank on query and key."""
    model = adapted("bert", ["query", "value"], task_type=None)
    model.add_adapter("other", GiftConfig(r=3, target_modules=["query", "key"]))
    return randomise(model, "other", seed=6)


def test_two_adapters(tmp_path: Path) -> None:
    model = two_adapters()
    trained = {name.split(".gift_pair.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"default"}, "the active one alone"
    single = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        single[name] = logits(model, "bert")
    model.base_model.set_adapter(["default", "other"])
    both = logits(model, "bert")
    model.merge_adapter(["default", "other"])
    torch.testing.assert_close(logits(model, "bert"), both, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    model.merge_adapter(["other"])
    with pytest.warns(UserWarning, match="additionally merging default"):
        model.merge_adapter(["default"])
    torch.testing.assert_close(logits(model, "bert"), both, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    model.merge_adapter(["other"])
    model.double()  # between two merges
    with pytest.warns(UserWarning, match="additionally merging default"):
        model.merge_adapter(["default"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    torch.testing.assert_close(logits(model, "bert").float(), both, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    model.float()

    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(build("bert"), str(tmp_path))
    again.load_adapter(str(tmp_path / "other"), "other")
    for name, expected in single.items():
        again.set_adapter(name)
        assert torch.equal(logits(again, "bert"), expected)
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        again.delete_adapter("other")
    assert torch.equal(logits(again, "bert"), single["default"])


def test_a_batch_of_several_adapters() -> None:
    model = two_adapters()
    names = ["default", "other", "__base__", "default"]
    mixed = logits(model, "bert", adapter_names=names)
    for row, name in enumerate(names):
        alone = logits(model, "bert", adapter_names=[name] * 4)
        torch.testing.assert_close(mixed[row], alone[row])
    model.set_adapter("other")
    torch.testing.assert_close(logits(model, "bert", adapter_names=["other"] * 4), logits(model, "bert"))
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
        logits(model, "bert", adapter_names=names[:3])
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): nope"):
        logits(model, "bert", adapter_names=["nope"] * 4)
    with pytest.raises(ValueError, match="when the model is in training mode"):
        model.train()(**inputs("bert"), adapter_names=names)
    model.merge_adapter()
    with pytest.raises(ValueError, match="when there are merged adapters"):
        logits(model, "bert", adapter_names=names)


def test_a_weight_that_is_not_finite_is_not_merged() -> None:
    model = adapted("bert", ["query"])
    with torch.no_grad():
        layers(model)[0].gift_pair["default"].psi[0, 0] = torch.nan
    before = layers(model)[0].get_base_layer().weight.clone()
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    assert torch.equal(layers(model)[0].get_base_layer().weight, before)


@pytest.mark.parametrize("change", ["half", "cast", "copied", "assigned", "low memory"])
def test_layers_go_on_sharing(change: str, tmp_path: Path) -> None:
    model = adapted("bert", ["query"])
    if change == "half":
        model = model.half().float()
    elif change == "cast":
        model = get_peft_model(build("bert").to(torch.bfloat16), GiftConfig(r=4, target_modules=["query"])).float()
    elif change == "copied":
        model = copy.deepcopy(model)
    elif change == "assigned":
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    else:
        saved(model, tmp_path)
        model = PeftModel.from_pretrained(build("bert"), str(tmp_path), is_trainable=True, low_cpu_mem_usage=True)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    model.train()(**inputs("bert")).logits.pow(2).sum().backward()
    optimizer.step()
    first, *others = [layer.gift_pair["default"] for layer in layers(model)]
    assert all(torch.equal(first.psi, other.psi) and first.psi is other.psi for other in others)


def test_modules_that_are_trained_as_a_whole_come_back(tmp_path: Path) -> None:
    model = adapted("timm", ["attn.proj"], modules_to_save=["head"])
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.fill_(0.3)
    assert "base_model.model.head.weight" in saved(model, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build("timm"), str(tmp_path)), "timm"), logits(model, "timm"))


@pytest.mark.parametrize(("bias", "trained"), [("none", 0), ("gift_only", 3), ("all", 27)])
def test_biases(bias: str, trained: int, tmp_path: Path) -> None:
    model = adapted("bert", ["query"], bias=bias, task_type=None)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name.endswith("bias")]
    assert len(names) == trained
    assert len([name for name in saved(model, tmp_path) if name.endswith("bias")]) == trained


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = adapted("llama", ["q_proj", "down_proj"])
        if checkpointed:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


def test_it_compiles_as_one_graph() -> None:
    model = adapted("bert", ["query", "value"])
    explained = torch._dynamo.explain(model)(**inputs("bert"))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_it_becomes_lora() -> None:
    model = adapted("bert", ["query", "value"])
    expected = logits(model, "bert")
    config, state = convert_to_lora(model, rank=4)
    lora = get_peft_model(build("bert"), config)
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(logits(lora, "bert"), expected, atol=1e-4, rtol=1e-4)


def test_injected_into_a_model_without_a_wrapper() -> None:
    first = inject_adapter_in_model(GiftConfig(r=4, target_modules=["query"]), build("bert"))
    state = get_peft_model_state_dict(randomise(first))
    assert len(state) == 2
    second = inject_adapter_in_model(GiftConfig(r=4, target_modules=["query"]), build("bert"))
    assert not set_peft_model_state_dict(second, state).unexpected_keys
    assert torch.equal(logits(second, "bert"), logits(first, "bert"))


def test_transformers_own_adapters(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter(GiftConfig(r=4, target_modules=["query"]))
    randomise(model)
    model.save_pretrained(str(tmp_path))
    again = build("bert")
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again, "bert"), logits(model, "bert"))


def test_the_type_of_the_model_gives_the_targets_and_none_is_an_error() -> None:
    assert GiftModel.target_module_mapping["llama"] == ["q_proj", "v_proj"]
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(build("timm"), GiftConfig())


def test_groups_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "gift_vit.hf"):
        adapted("llama", ["q_proj", "down_proj"])
    assert [record.getMessage() for record in caplog.records] == [
        "GIFT pair q_proj (32): input width 32, 3 layers, 256 parameters",
        "GIFT pair down_proj (48): input width 48, 3 layers, 384 parameters",
    ]
