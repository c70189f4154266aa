"""Measures against loops over their definitions, floors, and what keeps inversions."""

import logging
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from gift_vit.common.files import alone
from gift_vit.invariance import cka, progress
from gift_vit.invariance.inversion import Descent, invert
from gift_vit.invariance.kept import KeptInversion, count_steps
from gift_vit.invariance.measures import (
    GramPair,
    halves,
    interval_of_halves,
    layer_measures,
    mean_measures,
    measure_intervals,
)
from gift_vit.invariance.representations import open_layers
from gift_vit.invariance.sharing import gram_pair, grams

NAN = float("nan")


def tiny() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes).eval()  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def matrices(size: int) -> tuple[Tensor, Tensor, Tensor]:
    stir, within, floor = torch.rand(3, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return stir, within, floor / 2


def test_measures_of_a_layer_are_what_their_definitions_say() -> None:
    stir, within, floor = matrices(5)
    found = {name: values.tolist() for name, values in layer_measures(stir, within, floor).items()}
    for i in range(4):  # the fifth is the pooled vector
        row = [float(stir[i, j]) for j in range(4)]
        rel = [float(stir[i, j] - within[i, j]) for j in range(4)]
        weights = [max(float(stir[i, j] - floor[i, j]), 0) for j in range(4)]
        best = max(range(4), key=row.__getitem__)
        expected = {
            "retained": row[i],
            "retained_any": row[best],
            "forgotten": 1 - row[best],
            "moved": row[best] - row[i],
            "shift": i - best,
            "compression": float(np.mean(rel[:i])) if i else NAN,
            "expansion": float(np.mean(rel[i + 1 :])) if i < 3 else NAN,
            "centroid": sum(j * w for j, w in enumerate(weights)) / sum(weights),
        }
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, nan_ok=True)


def test_means_are_over_blocks_or_pairs_of_a_third() -> None:
    stir, within, _ = matrices(8)  # seven blocks: thirds of 3, 2 and 2
    found = mean_measures(stir, within)
    for third, own in {"all": range(7), "shallow": range(3), "middle": range(3, 5), "deep": range(5, 7)}.items():
        pairs = [float(stir[i, j] - within[i, j]) for i in own for j in range(i)]
        assert float(found[third]["compression"]) == pytest.approx(np.mean(pairs))
        assert float(found[third]["retained"]) == pytest.approx(np.mean([float(stir[i, i]) for i in own]))
        assert float(found[third]["forgotten"]) == pytest.approx(np.mean([1 - float(stir[i, :7].max()) for i in own]))
    alone = mean_measures(stir[-2:, -2:], within[-2:, -2:])  # one block
    assert alone["all"]["compression"].isnan()
    assert alone["deep"]["retained"].isnan()
    assert alone["shallow"]["retained"] == stir[-2, -2]


def test_blocks_count_by_their_numbers() -> None:
    """Blocks 1, 4 and 11 of twelve: each third of the depth has one of them."""
    stir, within, floor = matrices(4)
    stir[2, :3] = torch.tensor([0.9, 0.1, 0.2])
    found = layer_measures(stir, within, floor, [1, 4, 11])
    assert float(found["shift"][2]) == 11 - 1
    weights = [max(float(stir[2, j] - floor[2, j]), 0) for j in range(3)]
    assert float(found["centroid"][2]) == pytest.approx(np.dot(weights, [1, 4, 11]) / sum(weights))
    means = mean_measures(stir, within, [1, 4, 11], 12)
    retained = [float(means[third]["retained"]) for third in ("shallow", "middle", "deep")]
    assert retained == pytest.approx(stir.diagonal()[:3].tolist())
    assert float(means["deep"]["compression"]) == pytest.approx(float((stir - within)[2, :2].mean()))
    last = mean_measures(stir[-2:, -2:], within[-2:, -2:], [11], 12)
    assert last["shallow"]["retained"].isnan()
    assert last["deep"]["retained"] == stir[-2, -2]


def test_what_is_not_defined_is_in_no_mean() -> None:
    stir, within, _ = matrices(4)
    stir[1] = NAN
    stir[2, 0] = NAN
    found = layer_measures(stir, within, torch.zeros(4, 4))
    assert found["forgotten"].isnan().tolist() == [False, True, False]
    assert found["shift"].isnan().tolist() == [False, True, False]
    assert float(found["retained_any"][2]) == float(stir[2, 1:3].max())
    assert float(mean_measures(stir, within)["all"]["retained"]) == pytest.approx(float((stir[0, 0] + stir[2, 2]) / 2))


def test_intervals_hold_the_mean_and_shrink_with_more_images() -> None:
    def pair(count: int, noise: float) -> GramPair:
        drawn = torch.Generator().manual_seed(count)
        rows = torch.randn(3, count, 30, generator=drawn, dtype=torch.float64)
        others = rows + noise * torch.randn(3, count, 30, generator=drawn, dtype=torch.float64)
        products = [rows @ rows.mT, others @ others.mT]
        return GramPair(products[0], products[1][:, None].expand(3, 3, -1, -1))

    widths = []
    for count in (16, 128):
        found = measure_intervals(pair(count, 1), pair(count, 0.2), unbiased=True, draws=200)["all"]["retained"]
        assert found["low"] < found["mean"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 2
    same = measure_intervals(pair(16, 1), pair(16, 1), unbiased=True, draws=50)["all"]["compression"]
    assert same == {"mean": 0, "low": 0, "high": 0}
    few = measure_intervals(pair(6, 1), pair(6, 1), unbiased=True, draws=50)["all"]["retained"]
    assert np.isfinite(few["mean"])
    assert np.isnan([few["low"], few["high"]]).all()


def test_an_interval_is_of_95_percent_without_the_bias_of_halves() -> None:
    drawn = np.linspace(0, 1, 1001) ** 2 + 3
    found = interval_of_halves(torch.tensor(0.5), torch.from_numpy(drawn))
    low, high = 0.5 + np.quantile(drawn, [0.025, 0.975]) - drawn.mean()
    assert found == pytest.approx({"mean": 0.5, "low": low, "high": high}, abs=1e-6)


def test_halves_hold_no_image_twice() -> None:
    chosen = [set(half.tolist()) for half in halves(9, 50)]
    assert {len(half) for half in chosen} == {4}
    assert set.union(*chosen) == set(range(9))
    assert halves(7, 50) == []


def test_a_score_of_matched_images_is_high_and_of_permuted_ones_about_nothing(images: Tensor) -> None:
    """Two hundred steps, some seconds. The biased estimator tells nothing here."""
    layers = open_layers(tiny(), [0])
    found = invert(layers.model, images, [0], Descent(200, 0.1))
    pair = gram_pair(layers, images, found.images[:1])
    assert pair.stir(unbiased=True)[0, 0] > 0.9
    assert pair.permuted(unbiased=False)[0, 0] > 0.8
    others = [GramPair(pair.original, pair.inverted.roll((k, k), (-2, -1))).stir(True)[0, 0] for k in range(1, 8)]
    assert abs(torch.stack(others).mean()) < 0.2
    nearer = invert(layers.model, images, [0], Descent(20, 0.1))
    assert gram_pair(layers, images, nearer.images[:1]).stir(unbiased=True)[0, 0] < pair.stir(unbiased=True)[0, 0]


def test_independent_images_are_of_other_classes_too_where_a_split_is_sorted() -> None:
    """Four classes one after the other, far apart: the next image is mostly of the same class."""
    drawn = torch.Generator().manual_seed(0)
    rows = 5 * torch.eye(4, dtype=torch.float64).repeat_interleave(10, 0) + torch.randn(40, 4, generator=drawn)
    products = rows @ rows.T
    pair = GramPair(products[None], products[None, None])
    assert cka(rows, rows.roll(1, 0), unbiased=True) > 0.5
    assert abs(pair.permuted(unbiased=True)[0, 0]) < 0.15
    assert pair.permuted(unbiased=False)[0, 0] < 1, "no image stands beside its own inversion"


def test_one_score_of_all_images_whatever_the_batch(images: Tensor) -> None:
    layers = open_layers(tiny())
    for rows, small, whole in zip(layers.rows(images), grams(layers, images, 2), grams(layers, images, 8), strict=True):
        torch.testing.assert_close(small, whole, rtol=1e-6, atol=1e-6)
        assert cka(rows, rows.square()) == pytest.approx(cka(rows.double(), rows.double().square()), abs=1e-6)


def kept(folder: Path, images: Tensor) -> KeptInversion:
    return KeptInversion(open_layers(tiny()), ["tiny"], images, Descent(2), folder, batch_size=3)


def test_inversions_are_made_once_and_are_those_of_all_images_at_once(tmp_path: Path, images: Tensor) -> None:
    first = kept(tmp_path, images)
    made: list[None] = []
    assert count_steps([first, first]) == 3 * 2, "what is the same is made once"
    found = first.found(lambda: made.append(None))
    assert len(made) == 3 * 2  # three parts of two steps
    assert count_steps([kept(tmp_path, images)]) == 0
    again = kept(tmp_path, images).found(lambda: made.append(None))
    assert len(made) == 6
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    whole = invert(tiny(), images, descent=Descent(2))
    torch.testing.assert_close(found.errors, whole.errors, rtol=1e-4, atol=1e-6)
    assert found.images.shape == (4, 8, 3, 32, 32)


def test_a_part_that_another_process_is_at_comes_last(tmp_path: Path, images: Tensor) -> None:
    """Its lock is held until another part has begun."""
    first = kept(tmp_path, images)
    paths, order = [path for path, _, _ in first.parts], []
    with ExitStack() as held:
        held.enter_context(alone(paths[0]))

        def stepped() -> None:
            held.close()
            order.append([path.exists() for path in paths])

        found = first.found(stepped)
    assert order[0] == [False, False, False]
    assert order[-1] == [False, True, True]
    torch.testing.assert_close(found, kept(tmp_path / "other", images).found(), rtol=0, atol=0)


def test_a_part_that_is_missing_or_damaged_is_made_anew(tmp_path: Path, images: Tensor) -> None:
    first = kept(tmp_path, images)
    found = first.found()
    paths = [path for path, _, _ in first.parts]
    paths[0].unlink()
    assert kept(tmp_path, images).missing == {paths[0]}
    paths[1].write_bytes(b"cut")
    torch.testing.assert_close(kept(tmp_path, images).found(), found, rtol=0, atol=0)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_whatever_changes_an_inversion_changes_its_file(tmp_path: Path, images: Tensor) -> None:
    other = deepcopy(tiny())
    with torch.no_grad():
        other.get_parameter("blocks.2.mlp.fc2.weight")[-1, -1] += 1e-3
    first = kept(tmp_path, images)
    changed: dict[str, dict[str, Any]] = {
        "weights": {"layers": open_layers(other)},
        "layers": {"layers": open_layers(tiny(), [0])},
        "tokens": {"layers": open_layers(tiny(), tokens="cls")},
        "steps": {"descent": Descent(3)},
        "length": {"descent": Descent(2, 0.4)},
        "optimizer": {"descent": Descent(2, 0.5, optimizer="adam")},
        "noise": {"descent": Descent(2, seed=1)},
        "images": {"images": images.flip(0)},
        "method": {"facts": ["tiny", "another"]},
    }
    files = [replace(first, **change).parts[0][0] for change in changed.values()]
    assert len({first.parts[0][0], *files}) == 1 + len(files)
    assert kept(tmp_path, images).parts[0][0] == first.parts[0][0]


def test_progress_tells_the_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    moments = iter([0.0, 61.0, 62.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with caplog.at_level(logging.INFO), progress.steps_shown("inverting", 6) as stepped:
        for _ in range(3):
            stepped()
    assert caplog.messages == ["inverting  17%  0:05:05 left", "inverting  50%  0:02:10 left"]
