"""CKA, inversion and STIR against other formulas, in float64 and on tiny models."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.invariance import cka, invert, stir
from gift_vit.invariance.inversion import Descent, invert_layers, noise_like
from gift_vit.invariance.representations import Layers, open_layers
from gift_vit.methods import apply_method
from gift_vit.methods.config import VptConfig

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(20, 7)), RANDOM.normal(size=(20, 5))
B += A[:, :5]
ROTATION = np.linalg.qr(RANDOM.normal(size=(7, 7)))[0]


def song(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """CKA by the unbiased HSIC of Song et al. (2012), equation 5: three terms of raw Gram matrices."""

    def hsic(k: NDArray[np.floating], q: NDArray[np.floating]) -> float:
        n, one = len(k), np.ones(len(k))
        k, q = k - np.diag(np.diag(k)), q - np.diag(np.diag(q))
        middle = (one @ k @ one) * (one @ q @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ q) + middle - 2 / (n - 2) * (one @ k @ q @ one)) / (n * (n - 3))

    k, q = a @ a.T, b @ b.T
    return hsic(k, q) / np.sqrt(hsic(k, k) * hsic(q, q))


def features(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """CKA by the cross-covariances of the features, without Gram matrices."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def test_cka_is_what_two_other_formulas_say() -> None:
    assert cka(A, B) == pytest.approx(features(A, B), rel=1e-10)
    assert cka(A, B, unbiased=True) == pytest.approx(song(A, B), rel=1e-10)
    assert cka(A, B) != pytest.approx(cka(A, B, unbiased=True), abs=0.05)


@pytest.mark.parametrize("unbiased", [False, True])
def test_what_changes_cka_and_what_does_not(unbiased: bool) -> None:
    expected = cka(A, B, unbiased)
    assert cka(A, A, unbiased) == pytest.approx(1, abs=1e-12)
    assert cka(B, A, unbiased) == pytest.approx(expected, rel=1e-12)
    for same in (A @ ROTATION, 3 * A + 1e3, torch.from_numpy(A), A.tolist()):
        assert cka(same, B, unbiased) == pytest.approx(expected, rel=1e-9)
    order = RANDOM.permutation(20)
    assert cka(A[order], B[order], unbiased) == pytest.approx(expected, rel=1e-10)
    assert cka(A[::-1], B[::-1], unbiased) == pytest.approx(expected, rel=1e-10)
    assert cka(A[order], B, unbiased) < expected - 0.1
    assert cka(A @ np.diag(np.arange(1.0, 8)), B, unbiased) != pytest.approx(expected, abs=0.01)


def test_the_bias_of_independent_representations() -> None:
    first, second = (torch.randn(2, 25, 1000, generator=torch.Generator().manual_seed(0))[i] for i in range(2))
    assert cka(first, second) == pytest.approx(1000 / 1025, abs=0.005)
    assert cka(first, second, unbiased=True) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_cka_of_numbers_of_sixteen_bits(kind: torch.dtype) -> None:
    """Twenty deviations from zero, where bfloat16 keeps an eighth: a representation of so coarse numbers is not constant."""
    a, b = (torch.from_numpy(rows + 20).to(kind) for rows in (A, B))
    assert cka(a, b) == pytest.approx(features(A, B), abs=0.02)
    assert np.isnan(cka(torch.full((20, 3), 0.1, dtype=kind), b))


@pytest.mark.parametrize(
    ("a", "b", "unbiased"),
    [
        (A, np.ones((20, 3)), False),
        (A, np.full((20, 3), 0.1), True),
        (A[:3], B[:3], True),
        (A[:1], B[:1], False),
        (A, np.where(B[3, 2] < B, np.nan, B), False),
        (np.where(A[3, 2] < A, np.inf, A), B, True),
    ],
    ids=["constant", "constant with rounding", "three, unbiased", "one", "NaN", "infinite"],
)
def test_where_cka_is_not_defined(a: NDArray[np.floating], b: NDArray[np.floating], unbiased: bool) -> None:
    assert np.isnan(cka(a, b, unbiased))


@pytest.mark.parametrize(("a", "b"), [(A, B[:-1]), (A[0], B), ([[1.0], [2.0, 3.0]], B[:2]), (np.full((20, 1), "a"), B)])
def test_cka_refuses_what_are_no_matrices_of_as_many_rows(a: Any, b: Any) -> None:
    with pytest.raises(ConfigError, match="cka compares"):
        cka(a, b)


def vit(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3} | kwargs
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes).eval()  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "options", "own"), [
    ("cait_xxs24_224", {"depth": 2}, [0, 0]),
    ("convit_tiny", {"depth": 3, "local_up_to_layer": 2}, [0, 1]),
])  # fmt: skip
def test_class_tokens_are_counted_where_they_are(name: str, options: dict[str, Any], own: list[int]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, num_classes=3, **options).eval()
    images, seen = torch.rand(2, 3, 32, 32), []
    blocks = [0, len(model.blocks) - 1]  # pyright: ignore[reportArgumentType]
    for block in blocks:
        model.get_submodule(f"blocks.{block}").register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    found = open_layers(model, blocks, "mean").rows(images), open_layers(model, blocks, "all").rows(images)
    for count, tokens, mean, whole in zip(own, seen, *found, strict=False):
        assert tokens.shape[1] == 4 + count
        torch.testing.assert_close(mean, tokens[:, count:].mean(1))
        torch.testing.assert_close(whole, tokens.flatten(1))
    with pytest.raises(ConfigError, match="tokens=cls: a layer has no class token; choose others with layers="):
        open_layers(model, blocks[:1], "cls").rows(images)


@pytest.mark.parametrize(("name", "options", "size", "own"), [
    ("samvit_base_patch16", {"depth": 1, "embed_dim": 32, "num_heads": 2, "window_size": 2}, (32, 32), 0),
    ("vit_tiny_patch16_224", {"depth": 1, "dynamic_img_size": True}, (16, 48), 1),
])  # fmt: skip
def test_patches_are_all_tokens_but_the_class_token(
    name: str, options: dict[str, Any], size: tuple[int, int], own: int
) -> None:
    """SAM's tokens stand on their grid; the other's are as many here as it has patches in images of its own size."""
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, num_classes=3, **options).eval()
    images, seen = torch.rand(2, 3, *size), []
    model.get_submodule("blocks.0").register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    mean, whole = (open_layers(model, None, tokens).rows(images)[0] for tokens in ("mean", "all"))
    tokens = seen[0].reshape(2, 4, -1)
    torch.testing.assert_close(mean, tokens[:, own:].mean(1))
    torch.testing.assert_close(whole, tokens.flatten(1))
    if own:
        torch.testing.assert_close(open_layers(model, None, "cls").rows(images)[0], tokens[:, 0])


def relative(layers: Layers, found: Tensor, images: Tensor) -> Tensor:
    """The errors of images (L, n, …), each layer computed for itself."""
    pairs = [(layers.rows(own)[i], layers.rows(images)[i]) for i, own in enumerate(found)]
    return torch.stack([(row - target).norm(dim=1) / target.norm(dim=1) for row, target in pairs])


def test_rows_are_what_timm_says(images: Tensor) -> None:
    model = vit()
    rows = open_layers(model).rows(images)
    normalised = (images - 0.5) / 0.5
    _, expected = model.forward_intermediates(normalised, output_fmt="NLC", return_prefix_tokens=True)  # pyright: ignore
    for row, (patches, prefix) in zip(rows, expected, strict=False):
        torch.testing.assert_close(row, torch.cat([prefix, patches], 1).flatten(1))
    torch.testing.assert_close(model.get_classifier()(rows[-1]), model(normalised))  # pyright: ignore[reportCallIssue]


def test_prompts_are_left_out(images: Tensor) -> None:
    model = vit()
    expected = [row.shape for row in open_layers(deepcopy(model)).rows(images)]
    for deep in (False, True):
        prompted = apply_method(deepcopy(model), VptConfig(num_tokens=4, deep=deep))
        assert [row.shape for row in open_layers(prompted).rows(images)] == expected
        assert invert(prompted, images, descent=Descent(2)).errors.shape == (4, 8)


def test_inversion_converges_and_tells_its_error(images: Tensor) -> None:
    """Three hundred steps of 0.1, some seconds: with pixels stuck at the bounds the error stays about 1."""
    model = vit()
    found = invert(model, images, descent=Descent(300, 0.1))
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    torch.testing.assert_close(found.errors, relative(open_layers(model), found.images, images), rtol=1e-3, atol=1e-5)
    assert found.errors[0].mean() < 0.05
    assert found.errors[1].mean() < 0.05
    start = invert(model, images, descent=Descent(0))
    torch.testing.assert_close(start.images, noise_like(images, 0).expand_as(start.images))
    assert (found.errors < start.errors).all()


def test_the_best_image_of_a_descent_is_kept(images: Tensor) -> None:
    """Steps so long that they lead away from where it begins."""
    layers, noise = open_layers(vit()), noise_like(images, 3) * 0.2 + 0.4
    start, found = (invert_layers(layers, images, noise, Descent(steps, 1e3)) for steps in (0, 2))
    assert (found.errors <= start.errors).all()
    torch.testing.assert_close(found.errors, relative(layers, found.images, images), rtol=1e-3, atol=1e-5)


def test_a_step_is_as_long_as_it_says_and_no_image_depends_on_its_batch(images: Tensor) -> None:
    layers, noise = open_layers(vit()), noise_like(images, 3) * 0.2 + 0.4  # nothing reaches the bounds
    one = invert_layers(layers, images, noise, Descent(1, 0.1))
    length = (one.images - noise).flatten(2).norm(dim=2)
    moved = length > 0
    assert moved.any()
    torch.testing.assert_close(length[moved], torch.full_like(length[moved], 0.1), rtol=1e-4, atol=0)
    whole = invert_layers(layers, images, noise, Descent(10))
    halves = [invert_layers(layers, images[part], noise[part], Descent(10)) for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat([half.errors for half in halves], 1), whole.errors, rtol=1e-3, atol=1e-5)


def test_adam_comes_nearer_to_a_trained_model_in_as_many_steps() -> None:
    """Two photographs of scikit-learn at 64 pixels; some seconds."""
    photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    images = nn.functional.interpolate(photos[..., 100:420, 100:420], size=(64, 64), mode="area")
    model = timm.create_model("vit_mini_patch8_64.tiny_imagenet_v2", pretrained=True)
    plain = invert(model, images, [0, 2], Descent(40))
    nearer = invert(model, images, [0, 2], Descent(40, optimizer="adam"))
    assert (nearer.errors < 0.7 * plain.errors).all()


def test_the_second_step_of_adam_is_what_its_definition_says(images: Tensor) -> None:
    """Nothing reaches the bounds, and the gradient is taken by hand, of the first block alone.

    Adam (arXiv 1412.6980, Algorithm 1) with decay rates 0.95 and 0.99; the second of two steps is halfway down the cosine.
    """
    model, noise = vit(), noise_like(images, 3) * 0.2 + 0.4
    layers, rates = open_layers(model, [0]), [0.01, 0.01 * (0.01 + 0.99 / 2)]
    target = layers.rows(images)[0]
    x, mean, square = noise, 0.0, 0.0
    for step, rate in enumerate(rates, 1):
        at = x.clone().requires_grad_(True)
        error = ((layers.rows(at)[0] - target).norm(dim=1) / target.norm(dim=1)).sum()
        [gradient] = torch.autograd.grad(error, at)
        unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        mean, square = 0.95 * mean + 0.05 * unit, 0.99 * square + 0.01 * unit**2
        x = x - rate * (mean / (1 - 0.95**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8)
    found = invert_layers(layers, images, noise, Descent(2, 0.01, optimizer="adam"))
    moved = relative(layers, torch.stack([x, x]), images)[0] < relative(layers, torch.stack([noise, noise]), images)[0]
    assert moved.all()
    torch.testing.assert_close(found.images[0], x, rtol=1e-4, atol=1e-5)


def test_a_descent_knows_two_optimizers() -> None:
    assert Descent().resolved(224) == {"optimizer": "sgd", "steps": 500, "step_size": 0.5, "seed": 0}
    with pytest.raises(ConfigError, match="optimizer=lbfgs: expected sgd or adam"):
        Descent(optimizer="lbfgs")
    with pytest.raises(ConfigError, match="steps=-1: expected 0 or more"):
        Descent(-1)
    with pytest.raises(ConfigError, match="step_size=0: expected a number above 0"):
        Descent(1, 0)


@pytest.mark.parametrize("wrong", [
    torch.zeros(2, 1, 32, 32), torch.full((2, 3, 32, 32), 2.0), torch.zeros(3, 32, 32), torch.zeros(0, 3, 32, 32),
    torch.full((2, 3, 32, 32), torch.nan), torch.full((2, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(2, 3, 64, 64),
])  # fmt: skip
def test_inversion_refuses_what_are_no_images_of_the_model(wrong: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"invert takes images \(n, 3, 32, 32\) in 0..1"):
        invert(vit(), wrong)


def test_images_may_be_of_other_numbers_than_the_model_and_models_of_other_depth(images: Tensor) -> None:
    expected = invert(vit(), images, descent=Descent(2)).images
    assert torch.equal(invert(vit(), images.double(), descent=Descent(2)).images, expected)
    assert stir(vit(depth=2), vit(), images.double(), descent=Descent(2)).shape == (4, 3)
    with pytest.raises(ConfigError, match=r"stir takes images \(n, 3, 64, 64\)"):
        stir(vit(img_size=64), vit(), images)


def test_a_model_shares_all_with_itself_and_one_shifted_by_a_block_shows_it(images: Tensor) -> None:
    """F has a first block that changes nothing: its block j + 1 is block j of P."""
    model = vit()
    shifted = deepcopy(model)
    idle = deepcopy(shifted.get_submodule("blocks.0"))
    for name in ("attn.proj", "mlp.fc2"):
        nn.init.zeros_(idle.get_parameter(f"{name}.weight"))
    shifted.blocks = nn.Sequential(idle, *model.get_submodule("blocks").children())
    descent = Descent(200, 0.1)
    same = stir(deepcopy(model), model, images, unbiased=True, descent=descent)
    assert torch.equal(same, stir(deepcopy(model), model, images, unbiased=True, descent=descent))
    assert same.diagonal()[:2].min() > 0.9
    moved = stir(shifted, model, images, [0, 1, 2], unbiased=True, descent=descent)
    torch.testing.assert_close(moved[:, 1:3], same[:, 0:2], rtol=1e-6, atol=1e-8)


def test_stir_tells_the_evaluated_from_the_reference(images: Tensor) -> None:
    """A model that does not see red shares the invariances of one that sees all, and not the other way round."""
    model = vit()
    with torch.no_grad():
        blind = deepcopy(model)
        blind.patch_embed.proj.weight[:, 0] = 0  # pyright: ignore
    descent = Descent(150, 0.1)
    seen = stir(blind, model, images, [0], unbiased=True, descent=descent)[0, 0]
    unseen = stir(model, blind, images, [0], unbiased=True, descent=descent)[0, 0]
    assert seen > 0.4
    assert unseen < 0.2


@pytest.mark.parametrize(("blocks", "tokens", "kwargs", "message"), [
    ([3], "all", {}, "the model has 3 blocks; give indices from 0 to 2"),
    ([0, 2, -1], "all", {}, "of the model's 3 blocks one is named twice"),
    (None, "cls", {"class_token": False, "global_pool": "avg"}, "the model has no class token"),
])  # fmt: skip
def test_layers_that_are_not_there(blocks: list[int] | None, tokens: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_layers(vit(**kwargs), blocks, tokens)
