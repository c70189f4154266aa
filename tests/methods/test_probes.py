"""The methods that are fitted on features, against scikit-learn on digits with features of vit_mini."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

import gift_vit.backbones.vit_mini  # noqa: F401 - registers it with timm
from gift_vit.common.errors import ConfigError
from gift_vit.methods import KnnConfig, LinearExactConfig, apply_method, load_adapter, merge_method, save_adapter
from gift_vit.methods.adapter import adapter_state_dict, head_names
from gift_vit.methods.config import spec_of
from tests.methods.checks import assert_close, assert_same_modules, refused

VIT = "vit_mini_patch8_64.tiny_imagenet_v2"
CONFIGS = {"knn": KnnConfig(), "linear_exact": LinearExactConfig()}
SETTINGS = {"knn": {"k": 5, "temperature": 0.07}, "linear_exact": {"penalty": 1e-2}}
both = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """240 pictures of digits (240, 3, 64, 64), what vit_mini's head sees of them (240, d), and their classes; shuffled."""
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))[:240]
    images = torch.from_numpy(pixels.reshape(-1, 8, 8)[order]).float().div(8).sub(1)[:, None].expand(-1, 3, -1, -1)
    images = F.interpolate(images, 64, mode="bilinear")
    model: Any = timm.create_model(VIT, pretrained=True, num_classes=10).eval()
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    return images, features.clone(), torch.from_numpy(classes[order])


def fitted(kind: str, setting: dict[str, float], features: Tensor, labels: Tensor) -> Any:
    model = apply_method(timm.create_model(VIT, pretrained=True, num_classes=10).eval(), CONFIGS[kind])
    fit = spec_of(CONFIGS[kind]).fit
    assert fit is not None
    fit(model, setting, features, labels)
    return model


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_linear_exact_is_scikit_learns_logistic_regression(digits: tuple[Tensor, Tensor, Tensor], penalty: float) -> None:
    _, features, labels = digits
    train, val = features[:160].double().numpy(), features[160:].double().numpy()
    mean, scale = train.mean(0), np.sqrt(((train - train.mean(0)) ** 2).mean())
    reference = LogisticRegression(C=1 / (penalty * len(train)), max_iter=10_000, tol=1e-9)
    reference.fit((train - mean) / scale, labels[:160].numpy())
    head = fitted("linear_exact", {"penalty": penalty}, features[:160], labels[:160]).get_classifier()
    probabilities = head(features[160:]).softmax(1).detach()
    np.testing.assert_allclose(probabilities, reference.predict_proba((val - mean) / scale), atol=2e-4)


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (5, 0.07), (40, 0.5), (1000, 0.2)])
def test_knn_is_scikit_learns_with_cosine_distance(digits: tuple[Tensor, Tensor, Tensor], k: int, temperature: float) -> None:
    _, features, labels = digits
    weights: Any = lambda d: np.exp((1 - d) / temperature)  # noqa: E731
    reference = KNeighborsClassifier(min(k, 160), metric="cosine", weights=weights)
    reference.fit(features[:160].double().numpy(), labels[:160].numpy())
    head = fitted("knn", {"k": k, "temperature": temperature}, features[:160], labels[:160]).get_classifier()
    expected = reference.predict_proba(features[160:].double().numpy())
    np.testing.assert_allclose(head(features[160:]).exp(), expected, atol=1e-4)
    np.testing.assert_allclose(head.double()(features[160:].double()).exp(), expected, atol=1e-4)


@both
def test_an_image_goes_through_backbone_and_fitted_head_and_a_file_restores_it(
    digits: tuple[Tensor, Tensor, Tensor], kind: str, tmp_path: Path
) -> None:
    images, features, labels = digits
    model = fitted(kind, SETTINGS[kind], features[:160], labels[:160])
    logits = model(images[160:164])
    assert_close(logits, model.get_classifier()(features[160:164]))
    save_adapter(model, tmp_path / "adapter.safetensors")
    plain = timm.create_model(VIT, pretrained=True, num_classes=10).eval()
    assert torch.equal(load_adapter(plain, tmp_path / "adapter.safetensors")(images[160:164]), logits)
    fewer = timm.create_model(VIT, pretrained=True, num_classes=9)
    with pytest.raises(ConfigError, match=r"classes|head.class_sizes has shape \(10,\), the model expects \(9,\)"):
        load_adapter(fewer, tmp_path / "adapter.safetensors")


def test_linear_exact_merges_and_knn_says_why_not(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    images, features, labels = digits
    model = fitted("linear_exact", SETTINGS["linear_exact"], features, labels)
    logits = model(images[:4])
    assert torch.equal(merge_method(model)(images[:4]), logits)
    assert_same_modules(model, timm.create_model(VIT, num_classes=10))
    model = fitted("knn", SETTINGS["knn"], features, labels)
    assert head_names(model) == ()
    assert set(adapter_state_dict(model)) == {"head.bank", "head.class_sizes", "head.k", "head.temperature"}
    with refused("method 'knn' cannot be merged into the backbone: it compares an image with the features of the training"):
        merge_method(model)


def test_an_empty_bank_is_refused(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    model = apply_method(timm.create_model(VIT, num_classes=10), KnnConfig())
    with refused("the bank of method 'knn' is empty"):
        model(digits[0][:1])


@both
def test_a_head_that_is_not_one_linear_layer_is_refused(kind: str) -> None:
    with refused(f"method '{kind}' needs a model with one linear head"), torch.device("meta"):
        apply_method(timm.create_model("deit_tiny_distilled_patch16_224"), CONFIGS[kind])


def test_settings_are_all_combinations() -> None:
    assert KnnConfig(k=[1, 2], temperature=[0.1, 0.2]).settings() == [
        {"k": 1, "temperature": 0.1},
        {"k": 1, "temperature": 0.2},
        {"k": 2, "temperature": 0.1},
        {"k": 2, "temperature": 0.2},
    ]


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (KnnConfig, {"k": []}),
        (KnnConfig, {"k": [0]}),
        (KnnConfig, {"temperature": [0.0]}),
        (LinearExactConfig, {"penalty": [-1]}),
    ],
)
def test_candidates_are_checked(config: type, values: dict) -> None:
    [(name, value)] = values.items()
    with refused(f"method.{name}={value}: expected ["):
        config(**values)
