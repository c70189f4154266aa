"""``backbone.global_pool``, and every configured backbone with methods: random weights, small."""

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from torch import Tensor, nn

from gift_vit.backbones.build import build_backbone, input_statistics, set_pooling
from gift_vit.backbones.config import BackboneConfig
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config import load_config
from gift_vit.config.compose import compose_config, conf_dir
from gift_vit.methods import adapter_state_dict, apply_method, load_adapter, merge_method, save_adapter
from tests.methods.checks import train
from tests.methods.method_examples import yaml_config

# timm's name without the weights, what shrinks it, and how it pools: the table of the backbones' authors
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
POOLS = {
    **dict.fromkeys(("dinov2_b14", "dinov2_b14_reg4", "clip_b16_openai", "clip_b16_laion2b", "clip_b16_dfn2b"), "token"),
    **dict.fromkeys(("mae_b16", "deit3_b16", "vit_b16_in21k", "vit_b16_in21k_orig", "vit_s16_in21k"), "token"),
    **dict.fromkeys(("vit_l16_in21k", "vit_mini", "test_vit"), "token"),
    **dict.fromkeys(("dinov3_s16", "dinov3_b16", "dinov3_l16", "beitv2_b16", "eva02_b14"), "avg"),
    "siglip2_b16": "map",
}
METHODS = ("gift", "lora", "vpt_deep", "bitfit", "linear", "adapter_plus")
NO_PROMPTS = {"dinov3_s16", "dinov3_b16", "dinov3_l16", "beitv2_b16", "eva02_b14"}


@cache
def config(name: str) -> BackboneConfig:
    return load_config(compose_config([f"backbone={name}", "backbone.pretrained=false"])).backbone


def small(name: str) -> Any:
    """The backbone of that name with two narrow blocks, drawn anew."""
    torch.manual_seed(0)
    size = 56 if "14" in name else 64
    return timm.create_model(config(name).model.partition(".")[0], img_size=size, num_classes=5, **SMALL)


def test_every_backbone_is_here() -> None:
    of_texts = {"roberta_base", "roberta_large", "hf", "llama_7b", "llama2_7b", "llama3_8b"}
    assert {file.stem for file in (conf_dir() / "backbone").glob("*.yaml")} == set(POOLS) | of_texts


@pytest.mark.parametrize("name", POOLS)
def test_without_a_choice_it_pools_as_its_file_says(name: str) -> None:
    with torch.device("meta"):
        model: Any = build_backbone(config(name), num_classes=5)
    assert model.global_pool == POOLS[name]
    if name == "test_vit":
        return
    text = (conf_dir() / f"backbone/{name}.yaml").read_text()
    assert {"token": "the class token", "avg": "the mean", "map": "attention pool"}[POOLS[name]] in text
    facts = input_statistics(model)
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (facts.mean, facts.std))
    spoken = "mean and std 0.5" if {*facts.mean, *facts.std} == {0.5} else f"mean {mean}, std {std}"
    assert f"Input: {facts.input_size} pixels, {spoken}, {facts.interpolation}." in text
    licence = re.sub(r"[^a-z0-9]", "", model.pretrained_cfg["license"])
    assert licence in re.sub(r"[^a-z0-9]", "", text.lower()), "the licence that timm names"
    assert ("Hub: no login" in text) == (name != "vit_mini")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POOLS)
def test_methods_train_are_saved_and_merge_or_refuse(name: str, method: str, tmp_path: Any) -> None:
    model = small(name)
    if method == "vpt_deep" and name in NO_PROMPTS:
        with pytest.raises(ConfigError, match="method 'vpt' needs a timm VisionTransformer"):
            apply_method(model, yaml_config(method))
        return
    apply_method(model, yaml_config(method))
    images = torch.randn(2, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    assert train(model, images) == {name for name, p in model.named_parameters() if p.requires_grad}
    expected = model(images)
    save_adapter(model, tmp_path / "a.safetensors")
    fresh = load_adapter(small(name), tmp_path / "a.safetensors", strict=True).eval()
    torch.testing.assert_close(fresh(images), expected)
    assert list(adapter_state_dict(fresh)) == list(adapter_state_dict(model))
    if method not in ("vpt_deep", "adapter_plus"):
        torch.testing.assert_close(merge_method(fresh)(images), expected, rtol=1e-4, atol=1e-5)


def pooled(model: Any, images: Tensor, pooling: str) -> Tensor:
    """The logits by hand from all tokens."""
    tokens = model.forward_features(images)
    read = tokens[:, 0] if pooling == "token" else tokens[:, model.num_prefix_tokens :].mean(1)
    return model.head(model.fc_norm(read))


@pytest.mark.parametrize(
    ("name", "pooling"), [(n, p) for n in POOLS for p in ("token", "avg") if n != "siglip2_b16" or p == "avg"]
)
def test_a_chosen_pooling_keeps_every_weight(name: str, pooling: str) -> None:
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    set_pooling(model, pooling)
    after = model.state_dict()
    lost = {key for key in before if key not in after}
    assert all(key.startswith("attn_pool.") for key in lost)
    assert all(torch.equal(after[key], before[key]) for key in after if not key.startswith("head."))
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    torch.testing.assert_close(model.eval()(images), pooled(model, images, pooling))


@pytest.mark.parametrize(
    ("name", "pooling", "can"),
    [
        ("test_vit", "map", "token or avg"),
        ("siglip2_b16", "token", "map or avg"),
        ("beitv2_b16", "map", "avg or token"),
        ("eva02_b14", "map", "avg or token"),
    ],
)
def test_a_pooling_that_a_model_lacks_is_one_line(name: str, pooling: str, can: str) -> None:
    with pytest.raises(ConfigError, match=rf"\Abackbone.global_pool={pooling}: \w+ can pool {can}\Z"):
        set_pooling(small(name), pooling)
    with torch.device("meta"), pytest.raises(ConfigError, match="deit_tiny_distilled_patch16_224 can pool token"):
        set_pooling(timm.create_model("deit_tiny_distilled_patch16_224"), "avg")
    with pytest.raises(ConfigError, match=r"unknown backbone\.global_pool 'max'; did you mean map"):
        BackboneConfig(name="b", model="m", global_pool="max")


def test_an_adapter_knows_its_pooling(tmp_path: Any) -> None:
    def model(pooling: str | None) -> nn.Module:
        torch.manual_seed(0)
        return build_backbone(replace(config("test_vit"), global_pool=pooling), num_classes=5)

    file = tmp_path / "a.safetensors"
    save_adapter(apply_method(model("avg"), yaml_config("gift")), file)
    load_adapter(model("avg"), file)
    with pytest.raises(ConfigError, match=r"with global_pool avg, this model is \S+ with token"):
        load_adapter(model(None), file)


def test_weights_that_ask_for_a_login_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*_: Any, **__: Any) -> None:
        response: Any = SimpleNamespace(headers={}, request=None, status_code=401)
        raise GatedRepoError("401 Client Error.\nCannot access gated repo", response=response)

    monkeypatch.setattr(timm, "create_model", gated)
    monkeypatch.setattr("gift_vit.backbones.hub._hub_answers", lambda: True)
    message = (
        r"\Athe weights of test_vit.r160_in1k ask for a login: accept .*/timm/test_vit.r160_in1k, then type hf auth login.*\Z"
    )
    with pytest.raises(RunError, match=message):
        build_backbone(replace(config("test_vit"), pretrained=True), num_classes=5)
