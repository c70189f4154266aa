"""The report in headless Chromium: sorting, theme, menus, narrow screens, and that it asks the network for nothing."""

import json
import math
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from experiments.report.page import build_page, render_page
from experiments.report.runs import collect_runs
from gift_vit.runs.result import write_result
from tests.browser import browser, needs_chromium, opened  # noqa: F401 - a fixture
from tests.results.conftest import make_result

pytestmark = [needs_chromium, pytest.mark.slow]

TOP1 = {"linear": 80.0, "lora": 9.5, "gift": 90.0, "bitfit": 100.0}  # as texts they would sort otherwise


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    cells = [(m, d) for m in TOP1 for d in ("digits", "tiny_mammals") if (m, d) != ("lora", "tiny_mammals")]
    runs = [make_result(*cell, top1=TOP1[cell[0]], params={"adapter": len(cell[0])}) for cell in cells]
    runs += [make_result(val=50.0, config={"optim.lr": lr}, run={"phase": "search"}) for lr in (0.001, 0.01)]
    epochs = [{"epoch": i, "train_loss": math.exp(-i), "lr": 0.1, "val_top1": 10.0 * i} for i in range(5)]
    for index, result in enumerate(runs):
        write_result(root / f"runs/{index}/result.json", result)
        (root / f"runs/{index}/metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)) + "\n")
    out, roots = root / "report.html", [str(root / "runs")]
    out.write_text(render_page(build_page(collect_runs(roots), roots, root)))
    return out


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:  # noqa: F811
    with opened(browser, page_file, width=1400) as page:
        yield page


def column(page: Page, index: int) -> list[str]:
    return page.locator(f"#results-1 tbody tr > :nth-child({index})").all_inner_texts()


def test_sorting_by_mouse_and_keyboard(page: Page) -> None:
    heads = page.locator("#results-1 thead tr:last-child th")
    digits, mammals = (heads.all_inner_texts().index(title) + 1 for title in ("Digits", "Tiny mammals"))
    header = heads.nth(digits - 1)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, digits) == ["100.00", "90.00", "80.00", "9.50"]
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == ["LoRA", "Linear probing", "GIFT", "BitFit"]
    for order in (["100.00", "90.00", "80.00", "–"], ["80.00", "90.00", "100.00", "–"]):  # a missing value stays last
        heads.nth(mammals - 1).get_by_role("button").press("Space")
        assert column(page, mammals) == order
    assert page.locator("[aria-sort]").count() == 1
    page.get_by_role("button", name="Method", exact=True).first.click()
    assert column(page, 1) == ["BitFit", "GIFT", "Linear probing", "LoRA"]


def test_theme(page: Page) -> None:
    light, dark = ("rgb(255, 255, 255)", "rgb(0, 114, 178)"), ("rgb(20, 23, 26)", "rgb(86, 180, 233)")

    def colours() -> tuple[str, str]:
        """Of the page's ground and of a chart's line."""
        line = page.locator("#curves .panel:visible .mark path").first
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return ground, line.evaluate("line => getComputedStyle(line).stroke")

    assert colours() == light
    page.emulate_media(color_scheme="dark")
    assert colours() == dark
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Dark theme").click()
    assert colours() == dark
    page.reload()
    assert colours() == dark
    page.get_by_role("button", name="Light theme").click()
    assert colours() == light


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole mini benchmark: five datasets and their mean, with deviations."""
    root = tmp_path_factory.mktemp("wide")
    datasets = ("digits", "tiny_mammals", "tiny_insects", "tiny_vehicles", "cifar10_1k")
    for method, dataset, seed in product(("linear", "gift"), datasets, (0, 1)):
        result = make_result(method, dataset, seed, top1=88.0 + seed, config={"seed": seed})
        write_result(root / f"runs/{method}_{dataset}_{seed}/result.json", result)
    out, roots = root / "report.html", [str(root / "runs")]
    out.write_text(render_page(build_page(collect_runs(roots), roots, root)))
    return out


def test_a_common_screen_shows_every_column(browser: Browser, wide_file: Path) -> None:  # noqa: F811
    with opened(browser, wide_file, width=1280) as page:
        mean = page.locator("#results-1 thead th", has_text="Mean")
        box = mean.bounding_box()
        assert box
        assert box["x"] + box["width"] <= 1280
        assert page.locator(".scroll.more #results-1").count() == 0


def test_a_narrow_screen_hints_at_more_and_keeps_the_first_column(browser: Browser, wide_file: Path) -> None:  # noqa: F811
    with opened(browser, wide_file, width=390) as page:
        region = page.locator(".scroll:has(> #results-1)")
        first = page.locator("#results-1 tr:last-child > :first-child")
        edge = [cell.bounding_box() for cell in first.all()]
        assert "more" in str(region.get_attribute("class")).split()
        region.evaluate("region => { region.scrollLeft = 200 }")
        assert [cell.bounding_box() for cell in first.all()] == edge
        region.evaluate("region => { region.scrollLeft = region.scrollWidth }")
        expect(region).not_to_have_class(re.compile(r"\bmore\b"))  # waits; the page's policy forbids eval
        plot = page.locator("#results .side svg:visible").first.bounding_box()
        assert plot
        assert plot["x"] + plot["width"] <= 390


def test_menus_show_one_panel_and_never_none(page: Page) -> None:
    section = page.locator("#curves")
    shown = section.locator(".panel:visible h3")
    section.get_by_label("Method").select_option("lora")
    assert shown.all_inner_texts() == ["LoRA Digits, final"]
    section.get_by_label("Dataset").select_option("tiny_mammals")  # where LoRA has no run
    assert ["Tiny mammals" in text for text in shown.all_inner_texts()] == [True]
    section.get_by_label("Phase").select_option("search")
    assert (shown.all_inner_texts(), section.get_by_label("Dataset").input_value()) == (["GIFT Digits, search"], "digits")


def test_a_row_of_the_legend_brings_out_its_lines(page: Page) -> None:
    page.locator("#curves").get_by_label("Phase").select_option("search")
    panel = page.locator("#curves .panel:visible")
    panel.locator(".legend tbody tr").nth(1).get_by_role("link").focus()
    assert [line.get_attribute("data-run") for line in panel.locator(".mark.chosen").all()] == ["1"] * 3
    first, second = (panel.locator(f".mark[data-run='{run}'] path").first for run in (0, 1))
    assert [line.evaluate("line => getComputedStyle(line).strokeWidth") for line in (first, second)] == ["1.8px", "3px"]
    assert panel.locator(".mark[data-run='0']").first.evaluate("mark => getComputedStyle(mark).opacity") == "0.15"


def test_the_list_of_runs_can_be_searched(page: Page) -> None:
    page.get_by_label("Show rows with").fill("bitfit DIGITS")
    assert page.locator("#runs-table tbody tr:visible").count() == 1
