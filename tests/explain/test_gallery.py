"""The gallery in headless Chromium: what it paints equals the overlays, and pointer and keys turn through the maps."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from gift_vit.explain.drawing.gallery import GalleryText, write_gallery
from gift_vit.explain.drawing.overlay import overlay
from gift_vit.explain.layers import LayerName
from gift_vit.explain.maps import ClusterMaps, threshold_maps
from gift_vit.explain.samples import Pictures
from tests.browser import browser, needs_chromium, opened  # noqa: F401 - a fixture
from tests.explain.conftest import noise

pytestmark = needs_chromium
GRID, SIZE, CLUSTERS = (3, 5), (24, 40), (4, 7, 9)
IMAGES = np.random.default_rng(0).random((2, *SIZE, 3))
PICTURES = Pictures(IMAGES, ["<b>cat</b>", "</script>"], ["<b>cat</b>", "elk"])


def some_maps() -> ClusterMaps:
    post, pre = noise(2, 2, 2, 3, *GRID)
    pre[0, 1, 1] = 0.1  # a constant map
    return ClusterMaps((LayerName("attn.q", 3), LayerName("mlp.fc1", 5)), CLUSTERS, post, pre, torch.zeros(2, 2), SIZE)


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:  # noqa: F811
    file, text = tmp_path / "index.html", GalleryText("Maps of <i>it</i>", {"Run": "a & b"})
    write_gallery(file, PICTURES, some_maps(), (1, 2), text)
    with opened(browser, file, width=1300) as page:
        page.wait_for_selector("body[data-ready]")
        yield page


def painted(canvas: Locator) -> NDArray[np.floating]:
    """A canvas's pixels, (H, W, 3) in 0..1."""
    _, content = canvas.evaluate("canvas => canvas.toDataURL()").split(",")
    values = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert values.shape == (*SIZE, 4)
    assert (values[..., 3] == 255).all()
    return values[..., :3] / 255


def expected(image: int, layer: int, cluster: int, response: Any = "post", colours: str = "viridis") -> NDArray[np.floating]:
    heat = threshold_maps(some_maps().normalised(response))[image, layer, cluster].numpy()
    return overlay(np.round(IMAGES[image] * 255) / 255, heat, colours)


def assert_paints(page: Page, layer: int, cluster: int, response: str = "post", colours: str = "viridis") -> None:
    for image in range(2):
        got = painted(page.locator("main canvas").nth(image))
        difference = np.abs(got - expected(image, layer, cluster, response, colours)).max(-1)
        # 8 bits per map: a pixel at the threshold may fall on its other side, the others' colours move little
        assert (difference > 0.03).mean() < 0.02
        assert np.median(difference) < 0.01


def test_it_starts_where_it_was_told_and_names_what_it_shows(page: Page) -> None:
    assert page.title() == "Maps of <i>it</i>"
    assert page.locator("h1").inner_text() == "Maps of <i>it</i>"
    assert page.locator("dd").inner_text() == "a & b"
    assert page.locator("#status").inner_text() == "mlp.fc1 of block 5, cluster 9, after the update"
    assert page.locator("figcaption").all_inner_texts() == ["<b>cat</b>\n→ <b>cat</b> ✓", "</script> → elk ✗"]
    assert page.locator("#clusters button").all_inner_texts() == ["4", "7", "9"]
    assert page.locator("#low").inner_text() == "0.5"
    assert_paints(page, 1, 2)


def test_keys_turn_through_clusters_layers_and_responses(page: Page) -> None:
    for key, layer, cluster in [("ArrowRight", 1, 0), ("ArrowUp", 0, 0), ("ArrowLeft", 0, 2), ("ArrowLeft", 0, 1)]:
        page.keyboard.press(key)
        assert_paints(page, layer, cluster)
    page.keyboard.press("p")
    assert_paints(page, 0, 1, "pre")
    assert page.locator("#status").inner_text() == "attn.q of block 3, cluster 7, before the update"
    page.keyboard.press("ArrowDown")
    assert_paints(page, 1, 1, "pre")  # of the first image a constant map: nothing is tinted


def test_pointing_shows_and_clicking_stays(page: Page) -> None:
    clusters = page.locator("#clusters button")
    clusters.nth(0).hover()
    assert_paints(page, 1, 0)
    assert clusters.nth(2).get_attribute("aria-checked") == "true"
    page.locator("h1").hover()
    assert_paints(page, 1, 2)
    page.locator("#layers button").nth(0).click()
    page.locator("h1").hover()
    assert_paints(page, 0, 2)
    picture = page.locator("main button").nth(1)
    picture.hover()
    np.testing.assert_allclose(painted(picture.locator("canvas")), IMAGES[1], atol=0.01)
    picture.click()
    second = painted(clusters.nth(1).locator("canvas"))
    assert np.median(np.abs(second - expected(1, 0, 1))) < 0.01


def test_jet_and_no_threshold(page: Page) -> None:
    for colours, low in [("jet", "0"), ("magma", "0.5")]:
        page.get_by_label("Colours").select_option(colours)
        assert_paints(page, 1, 2, colours=colours)
        assert page.locator("#low").inner_text() == low
    page.get_by_label("upper half only").uncheck()
    grey = np.repeat((IMAGES[0] @ [0.299, 0.587, 0.114])[..., None], 3, -1)
    tinted = np.abs(painted(page.locator("main canvas").first) - grey).max(-1) > 0.01
    assert tinted.mean() > 0.9
    assert page.locator("#low").inner_text() == "0"


def test_dark_and_light(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == "rgb(20, 23, 26)"


def test_the_chosen_cluster_is_in_sight(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    raw = noise(2, 1, 40, *GRID)
    maps = ClusterMaps((LayerName("attn.q", 0),), tuple(range(40)), raw, raw, torch.zeros(2, 2), SIZE)
    write_gallery(tmp_path / "many.html", PICTURES, maps, (0, 30), GalleryText("Many", {}))
    with opened(browser, tmp_path / "many.html", width=400) as page:
        page.wait_for_selector("body[data-ready]")
        for cluster in (30, 31):
            box = page.locator("#clusters button").nth(cluster).bounding_box()
            assert box is not None
            assert 0 < box["x"] < box["x"] + box["width"] < 400
            page.keyboard.press("ArrowRight")
