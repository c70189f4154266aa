import logging
import re
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import requests
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file
from torch import Tensor, nn

from gift_vit.backbones.build import build_backbone, input_statistics, load_local_weights, weights_source
from gift_vit.backbones.config import BackboneConfig
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config import load_config
from gift_vit.config.compose import compose_config
from gift_vit.methods import BitFitConfig, GiftConfig, SsfConfig, apply_method


def config(**changes: Any) -> BackboneConfig:
    values = {"name": "b", "model": "test_vit.r160_in1k", "weights": None, "pretrained": False, "img_size": None}
    return BackboneConfig(**(values | changes))


def source(seed: int = 1, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=7, **kwargs)


def write_npz(model: nn.Module, path: Path) -> None:
    """Write a ViT in the layout of the original JAX checkpoints, key by key as the ViT code names them."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    width = state["cls_token"].shape[-1]
    out = {"cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"]}

    def norm(theirs: str, ours: str) -> None:
        out.update({f"{theirs}/scale": state[f"{ours}.weight"], f"{theirs}/bias": state[f"{ours}.bias"]})

    def dense(theirs: str, ours: str) -> None:
        out.update({f"{theirs}/kernel": state[f"{ours}.weight"].T, f"{theirs}/bias": state[f"{ours}.bias"]})

    out["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    out["embedding/bias"] = state["patch_embed.proj.bias"]
    norm("Transformer/encoder_norm", "norm")
    dense("head", "head")
    for index in range(len(model.blocks)):  # pyright: ignore[reportArgumentType]
        block, ours = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        heads: Any = model.get_submodule(f"{ours}.attn").num_heads
        weights = state[f"{ours}.attn.qkv.weight"].reshape(3, width, width)
        biases = state[f"{ours}.attn.qkv.bias"].reshape(3, width)
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            out[f"{attention}/{part}/kernel"] = weight.T.reshape(width, heads, width // heads)
            out[f"{attention}/{part}/bias"] = bias.reshape(heads, width // heads)
        out[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, width // heads, width)
        out[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        norm(f"{block}/LayerNorm_0", f"{ours}.norm1")
        norm(f"{block}/LayerNorm_2", f"{ours}.norm2")
        dense(f"{block}/MlpBlock_3/Dense_0", f"{ours}.mlp.fc1")
        dense(f"{block}/MlpBlock_3/Dense_1", f"{ours}.mlp.fc2")
    np.savez(path, **out)


def write(model: nn.Module, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    elif path.suffix == ".npz":
        write_npz(model, path)
    else:
        torch.save({"state_dict": model.state_dict()}, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_local_files_load_everything_but_the_head_and_change_no_statistics(tmp_path: Path, suffix: str) -> None:
    original, path = source(), tmp_path / f"weights{suffix}"
    write(original, path)
    cfg = config(weights=str(path), pretrained=True)
    model = build_backbone(cfg, num_classes=7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]) == (name != "head.weight"), name
    assert input_statistics(model) == input_statistics(timm.create_model("test_vit.r160_in1k"))
    assert weights_source(cfg, model) == f"weights{suffix}"


def test_the_head_is_drawn_as_the_authors_draw_it() -> None:
    torch.manual_seed(0)
    head = build_backbone(config(), num_classes=1000).get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(head.bias, torch.zeros(1000))


NARROW = {"embed_dim": 32, "num_heads": 2}
OTHERS = {
    ".safetensors": (NARROW, {"depth": 4}),
    ".pth": ({"patch_size": 8},),
    ".npz": (NARROW, {"depth": 4}, {"depth": 8}, {"num_heads": 4}),
}


@pytest.mark.parametrize(("suffix", "kwargs"), [(suffix, other) for suffix in OTHERS for other in OTHERS[suffix]], ids=str)
def test_weights_of_another_architecture_are_one_line(tmp_path: Path, suffix: str, kwargs: dict) -> None:
    path = tmp_path / f"other{suffix}"
    write(source(**kwargs), path)
    with pytest.raises(ConfigError, match=rf"\Abackbone.weights=.*other{suffix} does not fit test_vit: .*\Z"):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)


@pytest.mark.parametrize(
    ("model", "kwargs", "missing"),
    [
        ("test_vit", {"qk_norm": True}, r"24 tensors missing \(blocks\.0\.attn\.q_norm\.weight \(32,\), "),
        ("test_vit", {"init_values": 0.1}, r"12 tensors missing \(blocks\.0\.ls1\.gamma \(64,\), "),
    ],
)
def test_what_a_file_of_google_s_lacks_is_not_drawn(tmp_path: Path, model: str, kwargs: dict, missing: str) -> None:
    """timm's reader leaves it as it is."""
    write(source(), tmp_path / "plain.npz")
    own = timm.create_model(model, num_classes=7, **kwargs)
    with pytest.raises(ConfigError, match=rf"\Abackbone.weights=.*plain.npz does not fit test_vit: {missing}"):
        load_local_weights(own, tmp_path / "plain.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_missing_and_unreadable_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(ConfigError, match="no such file"):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    path.write_bytes(b"this is no weight file")
    with pytest.raises(ConfigError, match=r"backbone.weights=.*weights"):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(ConfigError):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"pretrained": True}, RunError, r"could not be had from the hub .* backbone.weights=<file>"),
        ({"model": "test_resnet", "pretrained": True}, ConfigError, "without blocks; expected a timm ViT"),
        (
            {"model": "vit_base_patch16_gap_224", "pretrained": True},
            ConfigError,
            r"timm has no weights of .*; give backbone\.weights",
        ),
        ({"model": "vit_huge_patch99"}, ConfigError, r"timm has no model 'vit_huge_patch99'; did you mean one of \w"),
        ({"model": "vit_tiny_patch16_224.nope"}, ConfigError, r"no weights 'nope' of vit_tiny_patch16_224 \(known: augreg"),
    ],
)
def test_what_cannot_be_built_is_named(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_backbone(config(**values), num_classes=3)


NO_VITS = {
    "without blocks": "swin_tiny_patch4_window7_224 volo_d1_224 pvt_v2_b0 poolformer_s12 levit_128s test_convnext resnet18",
    "whose blocks are no attention": "efficientnet_b0 mixer_s32_224 crossvit_tiny_240 tnt_s_legacy_patch16_224 twins_svt_small",
    "whose patch embedding is ": "hiera_tiny_224 xcit_nano_12_p16_224 naflexvit_base_patch16_gap",
    "with batch normalisation": "vit_base_mci_224",
}


@pytest.mark.parametrize(("problem", "name"), [(problem, name) for problem, names in NO_VITS.items() for name in names.split()])
def test_models_that_are_no_plain_vit_are_refused_in_words(problem: str, name: str) -> None:
    """As a backbone, before anything is downloaded, and by a method in Python, which then has changed nothing."""
    message = rf"\A{name} is timm's \w+ {problem}.*; expected a timm ViT, .* it has \w+.*\Z"
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=message):
            build_backbone(config(model=name, pretrained=True), num_classes=3)
        model = timm.create_model(name, num_classes=3)
    names = list(model.state_dict())
    for method in (SsfConfig(), GiftConfig(), BitFitConfig()):
        with pytest.raises(ConfigError, match=message):
            apply_method(model, method)
    assert list(model.state_dict()) == names


def test_weights_of_another_image_size_are_adapted_as_from_the_hub(tmp_path: Path) -> None:
    """EVA-02 at 336 pixels into 224; timm's own way from a state dict is what is expected."""
    path = tmp_path / "eva.safetensors"
    torch.manual_seed(1)
    state = timm.create_model("eva02_tiny_patch14_336", num_classes=1000).state_dict()
    save_file(state, path)
    model = build_backbone(config(model="eva02_tiny_patch14_224", weights=str(path), pretrained=True), num_classes=5)
    expected = timm.create_model(
        "eva02_tiny_patch14_224", pretrained=True, pretrained_cfg_overlay={"state_dict": state}, num_classes=5
    )
    assert state["pos_embed"].shape != expected.get_parameter("pos_embed").shape
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) or name.startswith("head."), name


def test_distilled_weights_load_without_either_head(tmp_path: Path) -> None:
    path, name = tmp_path / "deit.pth", "deit_tiny_distilled_patch16_224"
    original = timm.create_model(name)
    torch.save({"model": original.state_dict()}, path)
    model = build_backbone(config(model=name, weights=str(path), pretrained=True), num_classes=3)
    assert torch.equal(model.get_parameter("dist_token"), original.get_parameter("dist_token"))


def test_every_classifier_is_drawn_anew() -> None:
    """Of distilled models two, and SAM's, a module around a linear layer."""
    for name in ("deit_tiny_distilled_patch16_224", "samvit_base_patch16_224"):
        options = {"img_size": 32} if name.startswith("deit") else {"img_size": 32, "depth": 1, "window_size": 0}
        with patch("timm.create_model", partial(timm.create_model, **options)):
            model: Any = build_backbone(config(model=name), num_classes=1000)
        heads = model.get_classifier()
        linear = [
            m for head in (heads if isinstance(heads, tuple) else (heads,)) for m in head.modules() if isinstance(m, nn.Linear)
        ]
        assert len(linear) == (2 if name.startswith("deit") else 1)
        for layer in linear:
            assert not layer.bias.any()
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_clip_of_another_patch_size_is_not_resampled(tmp_path: Path) -> None:
    state = source(patch_size=8).state_dict()
    for number, names in enumerate(({}, {"": "visual.trunk."}, {"": "module."})):
        path = tmp_path / f"{number}.safetensors"
        save_file({f"{names.get('', '')}{name}": tensor for name, tensor in state.items()}, path)
        with pytest.raises(ConfigError, match=r"its patch embedding has shape \(64, 3, 8, 8\), expected \(64, 3, 16, 16\)$"):
            build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    clip = {"visual.conv1.weight": torch.zeros(64, 3, 8, 8), "visual.class_embedding": torch.zeros(64)}
    save_file(clip, tmp_path / "clip.safetensors")
    with pytest.raises(ConfigError, match="its patch embedding has shape"):
        build_backbone(config(weights=str(tmp_path / "clip.safetensors"), pretrained=True), num_classes=7)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapper", ["module.", "backbone.", "model.encoder."])
def test_names_behind_that_of_a_wrapper_are_read(tmp_path: Path, wrapper: str, suffix: str) -> None:
    path, state = tmp_path / f"a{suffix}", source().state_dict()
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in state.items()}
    save = save_file if suffix == ".safetensors" else torch.save
    save(wrapped, path)
    model = build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    for name in ("blocks.0.mlp.fc1.weight", "pos_embed", "norm.bias"):
        assert torch.equal(model.get_parameter(name), state[name])


NO_WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (
        lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.nan),
        r"1 tensors with NaN or infinite numbers \(norm\.weight\)",
    ),
    "integers": (lambda tensor: tensor.to(torch.int8), r"1 tensors of another type \(norm\.weight torch\.int8\)"),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_numbers_that_cannot_be_weights_are_refused(tmp_path: Path, name: str) -> None:
    change, message = NO_WEIGHTS[name]
    state = source().state_dict()
    save_file(state | {"norm.weight": change(state["norm.weight"])}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=message):
        build_backbone(config(weights=str(tmp_path / "a.safetensors"), pretrained=True), num_classes=7)


def test_a_checkpoint_with_other_objects_or_of_torchscript_says_what_to_save(tmp_path: Path) -> None:
    path, model = tmp_path / "a.pth", source()
    remedy = "only tensors, numbers and texts are read: save the state dict alone$"
    torch.save({"model": model.state_dict(), "best": np.float64(3)}, path)
    with pytest.raises(ConfigError, match=rf"^backbone\.weights={path} holds numpy\S+, and {remedy}"):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch warn of it
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(ConfigError, match=rf"^backbone\.weights={path} holds TorchScript, and {remedy}"):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)


def test_positions_that_timm_does_not_resample_are_told_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("cait_xxs24_224", depth=1).state_dict(), tmp_path / "cait.safetensors")
    with (
        patch("timm.create_model", partial(timm.create_model, depth=1)),
        pytest.raises(ConfigError, match=r"timm does not resample this model's positions; leave backbone\.img_size out$"),
    ):
        build_backbone(
            config(model="cait_xxs24_224", weights=str(tmp_path / "cait.safetensors"), pretrained=True, img_size=96), 3
        )


def test_tensors_and_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = source().state_dict()
    state["blocks.0.attn.qkv.bias"] = torch.zeros(7)
    state["more"] = state.pop("norm.weight")
    torch.save(state, path)
    expected = (
        r"does not fit test_vit: 1 tensors missing \(norm.weight \(64,\)\); 1 tensors unknown \(more \(64,\)\); "
        r"1 tensors of another shape \(blocks.0.attn.qkv.bias \(7,\) for \(192,\)\); give the weights of this architecture"
    )
    with pytest.raises(ConfigError, match=expected):
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["state_dict", "state_dict_ema"], r"state_dict_ema is taken \(it also holds state_dict\)"),
        (["model", "model_ema"], r"model_ema is taken \(it also holds model\)"),
        (["model"], "model is taken$"),
        (["model_state_dict"], "model_state_dict is taken$"),
        (["model_state_dict", "model"], r"model is taken \(it also holds model_state_dict\)"),
    ],
)
def test_the_state_dict_that_is_taken_is_named(
    tmp_path: Path, keys: list[str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    states = {key: source(number).state_dict() for number, key in enumerate(keys)}
    torch.save({**states, "args": Namespace(lr=1), "epoch": 3}, path)
    with caplog.at_level(logging.INFO):
        model = build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    assert torch.equal(model.get_parameter("norm.weight"), states[keys[-1]]["norm.weight"])
    assert torch.equal(model.get_parameter("blocks.0.mlp.fc1.weight"), states[keys[-1]]["blocks.0.mlp.fc1.weight"])
    [message] = [message for message in caplog.messages if "is taken" in message]
    assert re.search(told, message)


def test_image_size_and_drop_path_reach_the_model() -> None:
    model = build_backbone(config(img_size=64), num_classes=3, drop_path_rate=0.3)
    assert input_statistics(model).input_size == 64
    rates = [model.get_submodule(f"blocks.{index}.drop_path1").drop_prob for index in range(1, 6)]
    assert rates == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])


@pytest.mark.parametrize(("size", "near"), [(60, "48 or 64"), (4, "16")])
@pytest.mark.parametrize("pretrained", [False, True])
def test_an_image_size_that_patches_do_not_cover(size: int, near: str, pretrained: bool) -> None:
    with pytest.raises(ConfigError, match=f"backbone.img_size={size}: the patches of test_vit are 16 pixels wide; give {near}"):
        build_backbone(config(img_size=size, pretrained=pretrained), num_classes=3)


STATISTICS = {
    "vit_b16_in21k": (224, (0.5, 0.5, 0.5), "bicubic", 768, 12),
    "vit_b16_in21k_orig": (224, (0.5, 0.5, 0.5), "bicubic", 768, 12),
    "vit_s16_in21k": (224, (0.5, 0.5, 0.5), "bicubic", 384, 12),
    "vit_l16_in21k": (224, (0.5, 0.5, 0.5), "bicubic", 1024, 24),
    "dinov2_b14": (224, (0.485, 0.456, 0.406), "bicubic", 768, 12),
    "vit_mini": (64, (0.5, 0.5, 0.5), "bicubic", 192, 6),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_configured_backbones_have_their_weights_statistics(name: str) -> None:
    cfg = load_config(compose_config([f"backbone={name}", "backbone.pretrained=false"])).backbone
    with torch.device("meta"):
        model = build_backbone(cfg, num_classes=5)
    stats = input_statistics(model)
    size, mean, interpolation, width, depth = STATISTICS[name]
    assert (stats.input_size, stats.mean, stats.interpolation) == (size, mean, interpolation)
    assert (model.embed_dim, len(list(model.get_submodule("blocks").children()))) == (width, depth)


def test_the_shipped_vit_mini_loads_offline_and_its_weights_are_small() -> None:
    from gift_vit.backbones.vit_mini import WEIGHTS_FILE

    assert WEIGHTS_FILE.stat().st_size <= 6_000_000
    cfg = load_config(compose_config(["backbone=vit_mini"])).backbone
    model = build_backbone(cfg, num_classes=10)
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head.")) == 2_719_296
    upstream = timm.create_model(cfg.model, pretrained=True)
    assert torch.equal(model.state_dict()["blocks.3.mlp.fc1.weight"], upstream.state_dict()["blocks.3.mlp.fc1.weight"])
    assert "val" in WEIGHTS_FILE.with_suffix(".md").read_text()


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once(
    answers: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[object] = []
    create = timm.create_model

    def head(*_: object, **options: object) -> None:
        asked.append(options["timeout"])
        if not answers:
            raise requests.ConnectionError

    def downloaded_before(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
        asked.append(hub.HF_HUB_OFFLINE)
        return create(name, **kwargs)

    monkeypatch.setattr(requests, "head", head)
    monkeypatch.setattr(timm, "create_model", downloaded_before)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    build_backbone(config(pretrained=True), 3)
    assert (asked, hub.HF_HUB_OFFLINE) == ([5.0, not answers], False)
    assert ("does not answer: the weights are those downloaded before" in caplog.text) == (not answers)
    build_backbone(load_config(compose_config(["backbone=vit_mini"])).backbone, 3)
    assert asked[2:] == [False], "its weights come with the package"
