"""The figure of cluster maps: colours by hand, and the file it writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gift_vit.errors import ConfigError
from gift_vit.explain.figure import DPI, choose_clusters, overlay, plot_cluster_maps

SIZE = 32


def some_images(count: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, SIZE, SIZE, 3), dtype=np.float32)


def some_maps(count: int = 2, rank: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, rank, SIZE, SIZE), dtype=np.float32)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image)


def test_overlay_by_hand() -> None:
    # jet at 0, 127/255 and 1, from the straight lines that define it
    heat = np.array([[0.0, 0.5, 1.0]])
    jet = np.array([[[0, 0, 0.5], [0.4776, 1, 0.4902], [0.5, 0, 0]]])
    rgb = np.array([[[1.0, 1, 1], [0.2, 0.4, 0.6], [0, 0, 0]]])
    for alpha in (0.6, 0.25):
        mixed = alpha * jet + (1 - alpha) * rgb
        expected = (mixed - mixed.min()) / (mixed.max() - mixed.min())
        np.testing.assert_allclose(overlay(rgb, heat, alpha), expected, atol=1e-3)


def test_overlay_uses_the_whole_range_even_for_an_empty_map() -> None:
    result = overlay(np.zeros((4, 4, 3)), np.zeros((4, 4)))
    np.testing.assert_allclose(result, np.broadcast_to([0, 0, 1], (4, 4, 3)))


def test_chosen_clusters_are_unlike_each_other() -> None:
    maps = np.zeros((2, 6, SIZE, SIZE))
    maps[:, 1, :, ::2] = 1  # stripes one way, drawn three times
    maps[:, 3] = maps[:, 1]
    maps[:, 4] = 0.9 * maps[:, 1]
    maps[:, 5, :20] = 0.7
    assert choose_clusters(maps, 1) == [1]
    assert choose_clusters(maps, 3) == [0, 1, 5]
    assert choose_clusters(maps, 4) == [0, 1, 4, 5]


def test_no_more_clusters_than_there_are_and_none_twice() -> None:
    assert choose_clusters(torch.zeros(1, 3, 4, 4)) == [0, 1, 2]
    assert len(set(choose_clusters(some_maps(rank=20)))) == 6


def test_the_file_is_a_png_of_the_size_of_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.png"
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for rows, columns in [(1, 3), (2, 3), (3, 3), (2, 2)]:
        names = ["cat"] * rows
        plot_cluster_maps(some_images(rows), names, names, some_maps(rows), path, clusters=list(range(columns)))
        height, width, _ = pixels(path).shape
        sizes[rows, columns] = (height, width)
    assert sizes[1, 3][1] == int(DPI * 4 * 1.7)
    assert sizes[2, 2][1] == int(DPI * 3 * 1.7)
    row = sizes[2, 3][0] - sizes[1, 3][0]
    assert row == pytest.approx(DPI * (1.7 + 1.5 * 0.17), abs=1)
    assert sizes[3, 3][0] - sizes[2, 3][0] == pytest.approx(row, abs=1)
    assert [file.name for file in path.parent.iterdir()] == ["maps.png"]


def test_the_picture_shows_what_it_was_given(tmp_path: Path) -> None:
    images, maps, names = some_images(), some_maps(), ["cat", "dog"]

    def draw(name: str, **changes: Any) -> NDArray[np.uint8]:
        arguments: dict[str, Any] = {
            "images": images,
            "true": names,
            "predicted": names,
            "maps": maps,
            "clusters": [2],
            "title": "t",
        }
        plot_cluster_maps(path=tmp_path / name, **(arguments | changes))
        return pixels(tmp_path / name)

    base = draw("base.png")
    np.testing.assert_array_equal(draw("again.png"), base)
    np.testing.assert_array_equal(draw("tensor.png", maps=torch.from_numpy(maps)), base)
    changed = maps.copy()
    changed[:, 2] = some_maps(seed=1)[:, 2]
    changes = {
        "images": images[::-1],
        "maps": changed,
        "predicted": ["cat", "cat"],
        "clusters": [3],
        "title": "another",
    }
    assert len(changes) == 5
    for name, value in changes.items():
        assert (draw(f"{name}.png", **{name: value}) != base).any(), name
    changed[0] = maps[0]
    rows, columns = np.nonzero((draw("second.png", maps=changed) != base).any(axis=-1))
    height, width, _ = base.shape
    assert rows.min() > 0.4 * height  # the second image's row, the clusters' column
    assert columns.min() > 0.5 * width


def test_a_wrong_answer_is_red(tmp_path: Path) -> None:
    grey = np.full((1, SIZE, SIZE, 3), 0.5)
    empty = np.zeros((1, 1, SIZE, SIZE))
    red = []
    for predicted in ("cat", "dog"):
        plot_cluster_maps(grey, ["cat"], [predicted], empty, tmp_path / "maps.png", clusters=[0])
        picture = pixels(tmp_path / "maps.png")
        red.append(int(((picture[: DPI // 2, :, 0] > 180) & (picture[: DPI // 2, :, 1] < 20)).sum()))
    assert red[0] == 0
    assert red[1] > 20


def test_names_with_dollar_signs_and_great_length(tmp_path: Path) -> None:
    plot_cluster_maps(some_images(1), ["$x_"], ["n" * 90], some_maps(1), tmp_path / "maps.png", title="a $ title " * 30)
    assert pixels(tmp_path / "maps.png").shape[2] == 4


ERRORS = [
    ({"true": ["cat"]}, "got 2 images, 1 true and 2 predicted names, maps of 2 images"),
    ({"maps": some_maps(3)}, "maps of 3 images"),
    ({"maps": some_maps()[0]}, r"expected images \(N, H, W, 3\) and maps \(N, r, H, W\)"),
    ({"images": some_images().transpose(0, 3, 1, 2)}, r"images of \(3, 32, 32\) do not fit maps of \(32, 32\)"),
    ({"images": some_images(0), "maps": some_maps(0), "true": [], "predicted": []}, "expected images"),
    ({"clusters": [0, 8]}, r"clusters=\[0, 8\]: give indices from 0 to 7"),
    ({"clusters": []}, r"clusters=\[\]"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_what_does_not_fit_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert len(ERRORS) == 7
    names = ["cat", "dog"]
    arguments: dict[str, Any] = {"images": some_images(), "true": names, "predicted": names, "maps": some_maps()}
    with pytest.raises(ConfigError, match=message):
        plot_cluster_maps(path=tmp_path / "maps.png", **(arguments | changes))
    assert not list(tmp_path.iterdir())
