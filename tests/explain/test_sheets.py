"""Overlays by hand, and the sheets' files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gift_vit.common.errors import ConfigError
from gift_vit.explain.config import COLOURS
from gift_vit.explain.drawing.overlay import overlay
from gift_vit.explain.drawing.sheets import DPI, Style, draw_image_sheet, draw_layer_sheet
from gift_vit.explain.samples import Pictures

SIZE = 32
IMAGES = np.random.default_rng(0).random((3, SIZE, SIZE, 3), dtype=np.float32)
NAMES = ["cat", "dog", "elk"]


def some_maps(rows: int = 2, clusters: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(rows, clusters, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def some_pictures(count: int = 2) -> Pictures:
    return Pictures(IMAGES[:count], NAMES[:count], NAMES[:count])


def draw(path: Path, **changes: Any) -> NDArray[np.uint8]:
    """The pixels of a sheet of two images and two clusters, but for what is changed."""
    given = {"pictures": some_pictures(), "maps": some_maps(), "clusters": [2, 5], "style": Style(title="t"), "paths": [path]}
    draw_layer_sheet(**(given | changes))
    return pixels(path)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def assert_differs_in(picture: NDArray, base: NDArray, rows: tuple[float, float], columns: tuple[float, float]) -> None:
    """All pixels that differ lie between these parts of the height and of the width."""
    for (low, high), found, side in zip((rows, columns), np.nonzero((picture != base).any(-1)), base.shape, strict=False):
        assert low < found.min() / side <= found.max() / side < high


def test_jet_as_the_paper_has_it() -> None:
    # jet at 0, 127/255 and 1, from the straight lines that define it
    jet = np.array([[[0, 0, 0.5], [0.4776, 1, 0.4902], [0.5, 0, 0]]])
    rgb = np.array([[[1.0, 1, 1], [0.2, 0.4, 0.6], [0, 0, 0]]])
    mixed = 0.6 * jet + 0.4 * rgb
    expected = (mixed - mixed.min()) / (mixed.max() - mixed.min())
    np.testing.assert_allclose(overlay(rgb, np.array([[0.0, 0.5, 1.0]]), "jet"), expected, atol=1e-3)
    # an empty map alone has the whole range too
    np.testing.assert_allclose(overlay(rgb[:, ::2], np.zeros((1, 2)), "jet"), [[[0.4, 0.4, 1], [0, 0, 0.6]]])


def test_viridis_tints_the_grey_image_above_the_threshold_only() -> None:
    rgb = np.array([[[1.0, 0, 0], [0, 1, 0], [0.2, 0.4, 0.6], [1, 1, 1]]])
    result = overlay(rgb, np.array([[0, 0.5001, 0.75, 1]]))
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    low, middle, high = (np.array(colormaps["viridis"](value)[:3]) for value in (0.0, 0.5, 1.0))
    expected = [np.full(3, 0.299), 0.6 * low + 0.4 * 0.587, 0.6 * middle + 0.4 * grey, 0.6 * high + 0.4]
    np.testing.assert_allclose(result[0], expected, atol=1e-6)
    assert COLOURS[0] == "viridis"


def test_many_clusters_make_cells_small_and_no_sheet_wider_than_a_screen(tmp_path: Path) -> None:
    sizes = {}
    for count in (6, 8, 16):
        maps, path = some_maps(2, count), tmp_path / f"{count}.png"
        sizes[count] = draw(path, maps=maps, clusters=range(count)).shape
    assert [sizes[count][1] for count in (6, 8, 16)] == [int(DPI * 7 * 1.7), *[pytest.approx(DPI * 12.6, abs=1)] * 2]
    assert sizes[6][0] > sizes[8][0] > sizes[16][0]


def test_the_file_is_a_png_of_the_size_of_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.png"
    sizes = {
        (rows, columns): draw(path, pictures=some_pictures(rows), maps=some_maps(rows, columns), clusters=range(columns)).shape
        for rows, columns in [(1, 3), (2, 3), (3, 3), (2, 2)]
    }
    assert sizes[1, 3][1] == int(DPI * 4 * 1.7)
    assert sizes[2, 2][1] == int(DPI * 3 * 1.7)
    assert np.diff([sizes[rows, 3][0] for rows in (1, 2, 3)]) == pytest.approx(DPI * (1.7 + 1.5 * 0.17), abs=1)
    assert [file.name for file in path.parent.iterdir()] == ["maps.png"]


def test_the_picture_shows_what_it_was_given(tmp_path: Path) -> None:
    path, names = tmp_path / "maps.png", NAMES[:2]
    base = draw(path)
    np.testing.assert_array_equal(draw(path), base)
    changes = {
        "images": {"pictures": Pictures(IMAGES[1::-1], names, names)},
        "answers": {"pictures": Pictures(IMAGES[:2], names, ["cat", "cat"])},
        "clusters": {"clusters": [2, 6]},
        "colours": {"style": Style("jet", "t")},
        "title": {"style": Style(title="another")},
    }
    for name, change in changes.items():
        assert (draw(path, **change) != base).any(), name
    changed = some_maps()
    changed[1, 1] = some_maps(seed=1)[1, 1]
    assert_differs_in(draw(path, maps=changed), base, (0.4, 1), (0.6, 1))  # the second image's row and cluster's column


def test_a_sheet_of_one_image_has_a_row_per_layer(tmp_path: Path) -> None:
    def drawn(maps: Tensor, *blocks: int) -> NDArray[np.uint8]:
        names = [f"block {block}" for block in blocks]
        draw_image_sheet(some_pictures(1), maps, (names, [0, 1]), Style(), [tmp_path / "layers.png"])
        return pixels(tmp_path / "layers.png")

    base = drawn(some_maps(3), 0, 1, 2)
    changed = some_maps(3)
    changed[1] = 0
    assert_differs_in(drawn(changed, 0, 1, 2), base, (0.3, 0.65), (1 / 3, 1))
    assert_differs_in(drawn(some_maps(3), 0, 1, 5), base, (0.5, 1), (0, 1 / 3))


def test_a_pdf_has_its_text_as_text(tmp_path: Path) -> None:
    picture, *files = (tmp_path / name for name in ("a.png", "a.pdf", "b.pdf"))
    for file in files:
        draw(picture, paths=[file, picture])
    content, again = (file.read_bytes() for file in files)
    assert content.startswith(b"%PDF")
    assert b"/Font" in content
    assert content.count(b"/Subtype /Image") >= 6
    assert content == again


def test_a_wrong_answer_is_red_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    for true, caption, is_red in [("dog", "dog → dog ✓", False), ("cat", "cat → dog ✗", True), ("", "→ dog", False)]:
        pictures = Pictures(np.full((1, SIZE, SIZE, 3), 0.5), [true], ["dog"])
        assert pictures.caption(0) == caption
        drawn = draw(tmp_path / "maps.png", pictures=pictures, maps=torch.zeros(1, 1, SIZE, SIZE), clusters=[0], style=Style())
        red = ((drawn[: DPI // 2, :, 0] > 180) & (drawn[: DPI // 2, :, 1] < 20)).sum()
        assert red > 20 if is_red else red == 0


def test_names_with_dollar_signs_and_great_length(tmp_path: Path) -> None:
    pictures = Pictures(IMAGES[:1], ["$x_"], ["n" * 90])
    assert draw(tmp_path / "maps.png", pictures=pictures, maps=some_maps(1), style=Style(title="a $ title " * 30)).any()


PNG = Path("maps.png")
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: draw(PNG, maps=some_maps(3)), r"maps have shape \(3, 2, 32, 32\); these .* and clusters need \(2, 2, 32, 32\)"),
    (lambda: draw(PNG, maps=some_maps()[..., :16]), r"maps have shape \(2, 2, 32, 16\)"),
    (lambda: draw(PNG, clusters=[0]), r"these images, rows and clusters need \(2, 1, 32, 32\)"),
    (lambda: draw(Path("maps.gif")), "cannot draw maps.gif: expected a name that ends in .png or .pdf"),
    (lambda: Pictures(IMAGES[:2], ["cat"], ["cat", "dog"]), "got 2 images, 1 true and 2 predicted names"),
    (lambda: Pictures(IMAGES[:0], [], []), r"expected images \(N, H, W, 3\), at least one"),
    (lambda: draw_image_sheet(some_pictures(), some_maps(), ("ab", [0, 1]), Style(), [PNG]), "a sheet .* of one image, got 2"),
    (lambda: Style("hot"), r"unknown colours 'hot' \(known: viridis, .*, jet\)"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_what_does_not_fit_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        make()
    assert not list(tmp_path.iterdir())
