"""The report in headless Chromium: sorting, theme, menus, narrow screens, and that it asks the network for nothing."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from experiments.report.page import build_page, render_page
from experiments.report.runs import collect_runs
from gift_vit.results.schema import write_result
from tests.browser import browser, needs_chromium, opened  # noqa: F401 - a fixture
from tests.results.conftest import make_result

pytestmark = needs_chromium

TOP1 = {"linear": 80.0, "lora": 9.5, "gift": 90.0, "bitfit": 100.0}  # as texts they would sort otherwise


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for method, top1 in TOP1.items():
        for dataset in ("digits", "tiny_mammals"):
            write_run(root / "runs/final" / dataset / method, method, dataset, top1)
    for lr in (0.001, 0.01):
        folder = root / "runs/search" / str(lr)
        result = make_result(top1=None, config={"optim.lr": lr}, run={"phase": "search"})
        result.metrics.update(val_top1=50.0)
        write_result(folder / "result.json", result)
        write_curve(folder)
    out = root / "report.html"
    roots = [str(root / "runs")]
    out.write_text(render_page(build_page(collect_runs(roots), roots, root)))
    return out


def write_run(folder: Path, method: str, dataset: str, top1: float) -> None:
    missing = method == "lora" and dataset == "tiny_mammals"
    if not missing:
        write_result(folder / "result.json", make_result(method, dataset, top1=top1, params={"adapter": len(method)}))
        write_curve(folder)


def write_curve(folder: Path) -> None:
    lines = [{"epoch": i, "train_loss": math.exp(-i), "lr": 0.1, "val_top1": 10.0 * i} for i in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:  # noqa: F811
    with opened(browser, page_file, width=1400) as page:
        yield page


def column(page: Page, index: int) -> list[str]:
    return page.locator(f"#results-1 tbody tr > :nth-child({index})").all_inner_texts()


def test_sorting_by_mouse_and_keyboard(page: Page) -> None:
    titles = page.locator("#results-1 thead tr:last-child th").all_inner_texts()
    digits = titles.index("Digits") + 1
    header = page.locator(f"#results-1 thead tr:last-child th:nth-child({digits})")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, digits) == ["100.00", "90.00", "80.00", "9.50"]
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == ["LoRA", "Linear probing", "GIFT", "BitFit"]
    mammals = page.get_by_role("table").first.get_by_role("button", name="Tiny mammals")
    for order in (["100.00", "90.00", "80.00", "–"], ["80.00", "90.00", "100.00", "–"]):  # a missing value stays last
        mammals.press("Space")
        assert column(page, titles.index("Tiny mammals") + 1) == order
    assert page.locator("[aria-sort]").count() == 1
    page.get_by_role("button", name="Method", exact=True).first.click()
    assert column(page, 1) == ["BitFit", "GIFT", "Linear probing", "LoRA"]


def test_theme(page: Page) -> None:
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert dark == "rgb(20, 23, 26)"
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Dark theme").click()
    assert background() == dark
    page.reload()
    assert background() == dark
    page.get_by_role("button", name="Light theme").click()
    assert background() == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_sticks_out(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_menus_show_one_panel_and_never_none(page: Page) -> None:
    section = page.locator("#curves")
    shown = section.locator(".panel:visible h3")
    section.get_by_label("Method").select_option("lora")
    assert shown.all_inner_texts() == ["LoRA Digits, final"]
    section.get_by_label("Dataset").select_option("tiny_mammals")  # where LoRA has no run
    assert shown.count() == 1
    assert "Tiny mammals" in shown.inner_text()
    section.get_by_label("Phase").select_option("search")
    assert shown.all_inner_texts() == ["GIFT Digits, search"]
    assert section.get_by_label("Dataset").input_value() == "digits"


def test_a_row_of_the_legend_brings_out_its_lines(page: Page) -> None:
    page.locator("#curves").get_by_label("Phase").select_option("search")
    panel = page.locator("#curves .panel:visible")
    panel.locator(".legend tbody tr").nth(1).get_by_role("link").focus()
    chosen = panel.locator(".line.chosen")
    assert chosen.count() == 3
    assert {line.get_attribute("data-run") for line in chosen.all()} == {"1"}


def test_the_list_of_runs_can_be_searched(page: Page) -> None:
    page.get_by_label("Show rows with").fill("bitfit DIGITS")
    assert page.locator("#runs-table tbody tr:visible").count() == 1
