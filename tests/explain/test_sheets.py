"""Overlays by hand, and the sheets' files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gift_vit.errors import ConfigError
from gift_vit.explain.overlay import COLOURS, overlay
from gift_vit.explain.sheets import DPI, Pictures, Style, draw_image_sheet, draw_layer_sheet

SIZE = 32


def some_images(count: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, SIZE, SIZE, 3), dtype=np.float32)


def some_maps(rows: int = 2, clusters: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(rows, clusters, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def some_pictures(count: int = 2) -> Pictures:
    return Pictures(some_images(count), ["cat", "dog", "elk"][:count], ["cat", "dog", "elk"][:count])


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image)


def test_jet_as_the_paper_has_it() -> None:
    # jet at 0, 127/255 and 1, from the straight lines that define it
    heat = np.array([[0.0, 0.5, 1.0]])
    jet = np.array([[[0, 0, 0.5], [0.4776, 1, 0.4902], [0.5, 0, 0]]])
    rgb = np.array([[[1.0, 1, 1], [0.2, 0.4, 0.6], [0, 0, 0]]])
    mixed = 0.6 * jet + 0.4 * rgb
    expected = (mixed - mixed.min()) / (mixed.max() - mixed.min())
    np.testing.assert_allclose(overlay(rgb, heat, "jet"), expected, atol=1e-3)


def test_jet_uses_the_whole_range_even_for_an_empty_map() -> None:
    result = overlay(np.zeros((4, 4, 3)), np.zeros((4, 4)), "jet")
    np.testing.assert_allclose(result, np.broadcast_to([0, 0, 1], (4, 4, 3)))


def test_viridis_tints_the_grey_image_above_the_threshold_only() -> None:
    rgb = np.array([[[1.0, 0, 0], [0, 1, 0], [0.2, 0.4, 0.6], [1, 1, 1]]])
    result = overlay(rgb, np.array([[0, 0.5001, 0.75, 1]]))
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    low, middle, high = (np.array(colormaps["viridis"](value)[:3]) for value in (0.0, 0.5, 1.0))
    expected = [np.full(3, 0.299), 0.6 * low + 0.4 * 0.587, 0.6 * middle + 0.4 * grey, 0.6 * high + 0.4]
    np.testing.assert_allclose(result[0], expected, atol=1e-6)
    assert COLOURS[0] == "viridis"


def test_the_file_is_a_png_of_the_size_of_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.png"
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for rows, columns in [(1, 3), (2, 3), (3, 3), (2, 2)]:
        draw_layer_sheet(some_pictures(rows), some_maps(rows, columns), range(columns), Style(), [path])
        height, width, _ = pixels(path).shape
        sizes[rows, columns] = (height, width)
    assert sizes[1, 3][1] == int(DPI * 4 * 1.7)
    assert sizes[2, 2][1] == int(DPI * 3 * 1.7)
    row = sizes[2, 3][0] - sizes[1, 3][0]
    assert row == pytest.approx(DPI * (1.7 + 1.5 * 0.17), abs=1)
    assert sizes[3, 3][0] - sizes[2, 3][0] == pytest.approx(row, abs=1)
    assert [file.name for file in path.parent.iterdir()] == ["maps.png"]


def test_the_picture_shows_what_it_was_given(tmp_path: Path) -> None:
    def draw(name: str, **changes: Any) -> NDArray[np.uint8]:
        given: dict[str, Any] = {
            "pictures": some_pictures(),
            "maps": some_maps(),
            "clusters": [2, 5],
            "style": Style(title="t"),
        }
        draw_layer_sheet(**(given | changes), paths=[tmp_path / name])
        return pixels(tmp_path / name)

    base = draw("base.png")
    np.testing.assert_array_equal(draw("again.png"), base)
    images, names = some_images(), ["cat", "dog"]
    changes = {
        "images": {"pictures": Pictures(images[::-1], names, names)},
        "answers": {"pictures": Pictures(images, names, ["cat", "cat"])},
        "maps": {"maps": some_maps(seed=1)},
        "clusters": {"clusters": [2, 6]},
        "colours": {"style": Style("jet", "t")},
        "title": {"style": Style(title="another")},
    }
    for name, change in changes.items():
        assert (draw(f"{name}.png", **change) != base).any(), name
    changed = some_maps()
    changed[1, 1] = some_maps(seed=1)[1, 1]
    rows, columns = np.nonzero((draw("second.png", maps=changed) != base).any(axis=-1))
    height, width, _ = base.shape
    assert rows.min() > 0.4 * height  # the second image's row, the second cluster's column
    assert columns.min() > 0.6 * width


def test_a_sheet_of_one_image_has_a_row_per_layer(tmp_path: Path) -> None:
    def draw(maps: Tensor, *layers: str) -> NDArray[np.uint8]:
        draw_image_sheet(some_pictures(1), maps, (layers, [0, 1]), Style(), [tmp_path / "layers.png"])
        return pixels(tmp_path / "layers.png")

    base = draw(some_maps(3), "block 0", "block 1", "block 2")
    changed = some_maps(3)
    changed[1] = 0
    rows, columns = np.nonzero((draw(changed, "block 0", "block 1", "block 2") != base).any(axis=-1))
    assert base.shape[0] * 0.3 < rows.min() < rows.max() < base.shape[0] * 0.65
    assert columns.min() > base.shape[1] / 3
    rows, columns = np.nonzero((draw(some_maps(3), "block 0", "block 1", "block 5") != base).any(axis=-1))
    assert rows.min() > base.shape[0] / 2
    assert columns.max() < base.shape[1] / 3


def test_a_pdf_has_its_text_as_text(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        draw_layer_sheet(some_pictures(), some_maps(), [3, 14], Style(title="maps"), [tmp_path / name])
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Font" in content
    assert content.count(b"/Subtype /Image") >= 6
    assert content == (tmp_path / "b.pdf").read_bytes()


def test_a_wrong_answer_is_red_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    grey = np.full((1, SIZE, SIZE, 3), 0.5)
    red = []
    for true, answer in [("cat", "cat"), ("cat", "dog"), ("", "dog")]:
        pictures = Pictures(grey, [true], [answer])
        draw_layer_sheet(pictures, torch.zeros(1, 1, SIZE, SIZE), [0], Style(), [tmp_path / "maps.png"])
        picture = pixels(tmp_path / "maps.png")
        red.append(int(((picture[: DPI // 2, :, 0] > 180) & (picture[: DPI // 2, :, 1] < 20)).sum()))
    assert red[0] == red[2] == 0
    assert red[1] > 20
    assert [Pictures(grey, [true], ["dog"]).caption(0) for true in ("cat", "dog", "")] == [
        "cat → dog ✗",
        "dog → dog ✓",
        "→ dog",
    ]


def test_names_with_dollar_signs_and_great_length(tmp_path: Path) -> None:
    pictures = Pictures(some_images(1), ["$x_"], ["n" * 90])
    draw_layer_sheet(pictures, some_maps(1), [0, 1], Style(title="a $ title " * 30), [tmp_path / "maps.png"])
    assert pixels(tmp_path / "maps.png").shape[2] == 4


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"maps": some_maps(3)}, r"maps have shape \(3, 2, 32, 32\); these images, rows and clusters need \(2, 2, 32, 32\)"),
    ({"maps": some_maps()[..., :16]}, r"maps have shape \(2, 2, 32, 16\)"),
    ({"clusters": [0]}, r"need \(2, 1, 32, 32\)"),
    ({"paths": [Path("maps.gif")]}, "cannot draw maps.gif: expected a name that ends in .png or .pdf"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_what_does_not_fit_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    assert len(ERRORS) == 4
    monkeypatch.chdir(tmp_path)
    given = {"pictures": some_pictures(), "maps": some_maps(), "clusters": [0, 1], "style": Style(), "paths": [Path("x.png")]}
    with pytest.raises(ConfigError, match=message):
        draw_layer_sheet(**(given | changes))
    assert not list(tmp_path.iterdir())


def test_pictures_without_their_names_are_an_error() -> None:
    with pytest.raises(ConfigError, match="got 2 images, 1 true and 2 predicted names"):
        Pictures(some_images(), ["cat"], ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"expected images \(N, H, W, 3\), at least one"):
        Pictures(some_images(0), [], [])
    with pytest.raises(ConfigError, match="a sheet of layers is of one image, got 2"):
        draw_image_sheet(some_pictures(), some_maps(), (["a", "b"], [0, 1]), Style(), [Path("x.png")])
    with pytest.raises(ConfigError, match=r"unknown colours 'hot' \(known: viridis, .*, jet\)"):
        Style("hot")
