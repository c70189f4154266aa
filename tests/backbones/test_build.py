from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from gift_vit.backbones import BackboneConfig, build_backbone, input_statistics, weights_source
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.errors import ConfigError, RunError


def config(**changes: Any) -> BackboneConfig:
    values: dict[str, Any] = {
        "name": "b",
        "model": "test_vit.r160_in1k",
        "weights": None,
        "pretrained": False,
        "img_size": None,
    }
    return BackboneConfig(**(values | changes))


def source(seed: int = 1, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=7, **kwargs)


def write_npz(model: nn.Module, path: Path) -> None:
    """Write a ViT in the layout of the original JAX checkpoints, key by key as the ViT code names them."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    width = state["cls_token"].shape[-1]
    out = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):  # pyright: ignore[reportArgumentType]
        block, ours = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        heads: Any = model.get_submodule(f"{ours}.attn").num_heads
        weights, biases = (
            state[f"{ours}.attn.qkv.weight"].reshape(3, width, width),
            state[f"{ours}.attn.qkv.bias"].reshape(3, width),
        )
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            out[f"{attention}/{part}/kernel"] = weight.T.reshape(width, heads, width // heads)
            out[f"{attention}/{part}/bias"] = bias.reshape(heads, width // heads)
        out[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, width // heads, width)
        out[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for theirs, norm in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            out[f"{block}/{theirs}/scale"], out[f"{block}/{theirs}/bias"] = (
                state[f"{ours}.{norm}.weight"],
                state[f"{ours}.{norm}.bias"],
            )
        for dense, layer in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            out[f"{block}/MlpBlock_3/{dense}/kernel"] = state[f"{ours}.mlp.{layer}.weight"].T
            out[f"{block}/MlpBlock_3/{dense}/bias"] = state[f"{ours}.mlp.{layer}.bias"]
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


@pytest.mark.parametrize(
    ("suffix", "kwargs"),
    [
        (".safetensors", {"embed_dim": 32, "num_heads": 2}),
        (".safetensors", {"depth": 4}),
        (".safetensors", {"depth": 8}),
        (".pth", {"patch_size": 8}),
        (".npz", {"depth": 4}),
        (".npz", {"depth": 8}),
        (".npz", {"embed_dim": 32, "num_heads": 2}),
    ],
)
def test_weights_of_another_architecture_are_one_line(tmp_path: Path, suffix: str, kwargs: dict) -> None:
    path = tmp_path / f"other{suffix}"
    write(source(**kwargs), path)
    with pytest.raises(ConfigError, match=rf"backbone.weights=.*other{suffix} does not fit test_vit: ") as raised:
        build_backbone(config(weights=str(path), pretrained=True), num_classes=7)
    assert "\n" not in str(raised.value)


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


def test_without_the_hub_the_error_tells_what_to_do() -> None:
    with pytest.raises(RunError, match=r"could not be had from the hub .* backbone.weights=<file>"):
        build_backbone(config(pretrained=True), num_classes=7)


def test_models_that_are_no_vit_of_this_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="without blocks; expected a timm ViT"):
        build_backbone(config(model="test_resnet"), num_classes=3)
    with pytest.raises(ConfigError, match="timm has no model 'vit_huge_patch99'"):
        config(model="vit_huge_patch99")
    with pytest.raises(ConfigError, match="contradict each other"):
        config(weights="a.pth", pretrained=False)


def test_image_size_and_drop_path_reach_the_model() -> None:
    model = build_backbone(config(img_size=64), num_classes=3, drop_path_rate=0.3)
    assert input_statistics(model).input_size == 64
    rates = [model.get_submodule(f"blocks.{index}.drop_path1").drop_prob for index in range(1, 6)]
    assert rates == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])


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
