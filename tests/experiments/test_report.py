"""The report's page, made from fabricated runs and read back with a parser; and one line for every mistake."""

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import pytest

from experiments.report import __main__ as command
from experiments.report import curves, tables
from gift_vit.results.schema import write_result
from tests.results.conftest import make_result

Words = list[str]


class Page(HTMLParser):
    """The page's tags with their attributes, and per table id the rows of its body as cells of (text, data-sort)."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.open: list[str] = []
        self.text: list[str] = []
        self.table, self.cell = "", ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = values.get("id") or f"{values.get('class')}-{len(self.rows)}"
            self.rows[self.table] = []
        elif tag == "tr" and "tbody" in self.open:
            self.rows[self.table].append([])
        elif tag in {"th", "td"} and "tbody" in self.open:
            self.rows[self.table][-1].append(("", values.get("data-sort")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.text.append(data)
        if {"th", "td"} & set(self.open) and "tbody" in self.open:
            text, sort = self.rows[self.table][-1][-1]
            self.rows[self.table][-1][-1] = (text + data, sort)

    def texts(self, table: str) -> list[list[str]]:
        return [[" ".join(text.split()) for text, _ in row] for row in self.rows[table]]

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def plain(self) -> str:
        return " ".join(" ".join(self.text).split())


Store = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write a fabricated run below tmp_path/outputs; ``val`` makes it one of the search. Returns its folder."""

    def write(
        name: str, *args: Any, val: float | None = None, search: bool = False, curve: str | None = None, **kwargs: Any
    ) -> Path:
        if search:
            kwargs["run"] = {"phase": "search", **kwargs.get("run", {})}
            kwargs["top1"] = None
        result = make_result(*args, **kwargs)
        result.metrics.update(val_top1=val)
        folder = tmp_path / "outputs" / name
        write_result(folder / "result.json", result)
        if curve is not None:
            (folder / "metrics.jsonl").write_text(curve)
        return folder

    return write


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Page]:
    """Make the page of tmp_path/outputs; what the command printed is its attribute ``printed``."""

    def make(*words: str) -> Page:
        out = tmp_path / "pages" / "report.html"
        assert main([f"root={tmp_path / 'outputs'}", f"out={out}", *words]) == 0
        page = Page(out.read_text())
        page.printed = capsys.readouterr()  # pyright: ignore[reportAttributeAccessIssue]
        return page

    return make


def main(words: Words) -> int:
    with patch.object(sys, "argv", ["report", *words]), pytest.raises(SystemExit) as stopped:
        command.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def epochs(*values: dict[str, float]) -> str:
    return "".join(json.dumps({"epoch": i, "train_loss": 1.0 / (i + 1), "lr": 0.1, **v}) + "\n" for i, v in enumerate(values))


CONFIG = """
seed: 1
phase: search
dataset: {name: digits, benchmark: mini}
method: {name: gift, kind: gift, rank: 16, target_modules: [attn.proj]}
backbone: {name: vit_mini}
protocol: {name: clean}
optim: {lr: 0.01, weight_decay: 0.01, betas: [0.9, 0.999]}
trainer: {epochs: 9}
"""


def not_finished(tmp_path: Path, name: str, **files: str) -> Path:
    folder = tmp_path / "outputs" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        stem, _, suffix = file.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text)
    return folder


def test_the_table_is_on_the_page_and_sorts_by_unrounded_numbers(store: Store, report: Callable[..., Page]) -> None:
    store("a", seed=0, top1=90.0)
    store("b", seed=1, top1=92.0)
    store("c", "linear", top1=80.125, params={"adapter": 0, "percent": 0.0})
    page = report()
    linear, gift = page.rows["results-1"]
    assert [row[0] for row in (linear, gift)] == [("Linear probing", "linear"), ("GIFT", "gift")]
    assert linear[1] == ("0", "0")
    assert gift[1] == ("6,144", "6144")
    assert gift[-1] == ("91.00", "91.0")
    assert float(linear[-1][1] or "") == 80.125
    assert any("91.00 ± 1.41" in text for text, _ in gift)
    assert len(page.found("strong")) >= 1
    assert page.printed.out.endswith("3 runs finished (0 search, 3 final), 0 failed, 0 unfinished\n")  # pyright: ignore


def test_a_missing_cell_is_a_dash_without_a_value(store: Store, report: Callable[..., Page]) -> None:
    store("a")
    store("b", "lora")
    store("c", "lora", dataset="tiny_mammals")
    rows = {row[0][0]: row for row in report().rows["results-1"]}
    assert ("–", None) in rows["GIFT"]
    assert ("–", None) not in rows["LoRA"][-3:]


def test_tables_can_be_read_aloud(store: Store, report: Callable[..., Page]) -> None:
    store("a", val=50.0, search=True, curve=epochs({"val_top1": 50.0}))
    store("b", curve=epochs({}, {}))
    page = report()
    ids = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        if tag == "th":
            assert attributes.get("scope") in {"col", "row", "colgroup", "rowgroup"}
        if tag == "svg":
            assert (attributes.get("role") == "img" and attributes.get("aria-label")) or attributes.get("aria-hidden") == "true"
        if labelled := attributes.get("aria-labelledby"):
            assert labelled in ids
        if "scroll" in (attributes.get("class") or "").split():
            assert attributes["tabindex"] == "0"
    assert page.found("html")[0]["lang"] == "en"


HOSTILE = '<script>alert("1")</script>'


def test_every_text_of_a_run_is_escaped(store: Store, report: Callable[..., Page], tmp_path: Path) -> None:
    for phase in (True, False):
        store(
            f"x{phase}",
            HOSTILE,
            dataset='"><img src=x>',
            search=phase,
            val=50.0 if phase else None,
            curve=epochs({"val_top1": 50.0}),
            config={"method.rank": HOSTILE},
            run={"backbone": HOSTILE, "protocol": "</style>" + HOSTILE, "benchmark": HOSTILE},
            env={"cpu": HOSTILE},
        )
    not_finished(tmp_path, HOSTILE.replace("/", "_"), failed_json=json.dumps({"error": "E", "message": HOSTILE}))
    page = report()
    assert len(page.found("script")) == 1
    assert page.found("img") == []
    assert HOSTILE in page.plain
    text = (tmp_path / "pages/report.html").read_text()
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;") > 10


def test_nothing_is_fetched(store: Store, report: Callable[..., Page], tmp_path: Path) -> None:
    store("a", curve=epochs({}, {}))
    page = report()
    text = (tmp_path / "pages/report.html").read_text()
    assert re.findall(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", text) == []
    assert [a["src"] for _, a in page.tags if "src" in a] == []
    assert [a["href"] for a in page.found("link")] == ["data:,"]
    policy = next(a["content"] for a in page.found("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_links_lead_from_the_page_to_the_folders(store: Store, report: Callable[..., Page], tmp_path: Path) -> None:
    folders = {store("final/a b#1?", curve=epochs({})), store("x:y/z%41", "lora")}
    folders.add(not_finished(tmp_path, "gone", failed_json="{}"))
    links = [a["href"] or "" for a in report().found("a")]
    assert all(link.startswith(("#", "../outputs/")) for link in links)
    reached = {(tmp_path / "pages" / unquote(link)).resolve() for link in links if not link.startswith("#")}
    assert reached == {folder.resolve() for folder in folders}


def test_failed_and_unfinished_runs_are_listed_with_reasons(store: Store, report: Callable[..., Page], tmp_path: Path) -> None:
    store("done")
    failed = json.dumps({"error": "RunError", "message": "loss is NaN at epoch 3"})
    not_finished(tmp_path, "a", config_yaml=CONFIG, failed_json=failed)
    not_finished(tmp_path, "b", failed_json="{")  # before the configuration was written, and damaged
    not_finished(tmp_path, "c", config_yaml=CONFIG, train_log="", metrics_jsonl=epochs({}, {}) + '{"epoch": 2, "tr')
    not_finished(tmp_path, "d", config_yaml="{", train_log="")
    not_finished(tmp_path, "imported", config_yaml=CONFIG, imported_json="{}", train_log="")
    not_finished(tmp_path, "multirun", multirun_yaml="{}", config_yaml="{}")
    page = report()
    found = [row[:5] for row in page.texts("open-table")]
    assert found == [
        ["failed", "RunError: loss is NaN at epoch 3", "Digits", "GIFT", "search"],
        ["failed", "failed.json cannot be read", "–", "–", "–"],
        ["unfinished", "2 of 9 epochs done; running, or interrupted and resumable", "Digits", "GIFT", "search"],
        ["unfinished", "0 of unknown epochs done; running, or interrupted and resumable", "–", "–", "–"],
    ]
    assert "1 runs finished (0 search, 1 final), 2 failed, 2 unfinished" in page.plain


def test_only_unfinished_runs_make_a_page_too(report: Callable[..., Page], tmp_path: Path) -> None:
    not_finished(tmp_path, "a", config_yaml=CONFIG, train_log="")
    page = report()
    for sentence in ("No final run is finished.", "No run has written an epoch yet."):
        assert sentence in page.plain


NAMED = {
    "phase": "search",
    "dataset": {"name": "digits", "benchmark": "mini"},
    "method.name": "gift",
    "backbone": {"name": "vit_mini"},
    "protocol": {"name": "clean"},
}


def search_config(lr: float, wd: float, rank: int = 16) -> dict[str, Any]:
    return {**NAMED, "optim.lr": lr, "optim.weight_decay": wd, "method.rank": rank}


def sweep(store: Store, cells: dict[tuple[float, float, int], float | None]) -> None:
    for combination, val in cells.items():
        store(f"search/{combination}", search=True, val=val, config=search_config(*combination))


def test_heat_maps(store: Store, report: Callable[..., Page], tmp_path: Path) -> None:
    sweep(store, {(0.1, 0.0, 16): 70.0, (0.001, 0.0, 16): 60.0, (0.001, 0.01, 16): 72.5, (0.1, 0.01, 16): 72.5})
    failed = json.dumps(make_result(config=search_config(0.01, 0.01)).run.config)  # JSON is YAML
    not_finished(tmp_path, "failed", config_yaml=failed, failed_json="{}")
    page = report()
    assert page.texts(next(name for name in page.rows if name.startswith("heat"))) == [
        ["0", "60.00", "–", "70.00"],
        ["0.01", "★ 72.50", "failed", "72.50"],  # of equal ones the smaller learning rate
    ]
    assert "Best: 72.50 % at lr 0.001, wd 0.01. Missing: 1." in page.plain


def test_one_heat_map_per_value_of_another_axis(store: Store, report: Callable[..., Page]) -> None:
    sweep(store, {(0.1, 0.0, 16): 70.0, (0.2, 0.0, 4): 60.0, (0.1, 0.0, 4): None})
    page = report()
    maps = [page.texts(name) for name in page.rows if name.startswith("heat")]
    assert maps == [[["0", "no val", "60.00"]], [["0", "★ 70.00", "–"]]]
    assert page.plain.index(" rank 4 wd") < page.plain.index(" rank 16 wd")
    assert "Best: 70.00 % at lr 0.1, wd 0, rank 16." in page.plain


def test_runs_of_one_combination_are_not_averaged(store: Store, report: Callable[..., Page]) -> None:
    for name, val in (("a", 50.0), ("b", 60.0)):
        store(name, search=True, val=val)
    page = report()
    assert page.texts(next(name for name in page.rows if name.startswith("heat"))) == [["0.01", "several"]]


def test_curves_without_val_and_with_broken_lines(store: Store, report: Callable[..., Page]) -> None:
    text = epochs({}, {"train_loss": float("nan")}, {}) + "[1]\n"
    folder = store("a", curve=text)
    page = report()
    legend = page.texts(next(name for name in page.rows if name.startswith("legend")))
    assert legend == [["lr 0.001, seed 0", "finished", "3", "0.3333", "–", "90.00"]]
    assert "None of these runs recorded it." in page.plain
    assert f"Not every line could be read of: {folder / 'metrics.jsonl'}." in page.plain
    lines = [a["points"] or "" for a in page.found("polyline")]
    assert [len(points.split()) for points in lines] == [2, 3]  # the loss without the NaN, and the learning rate
    assert not any("nan" in points for points in lines)


def test_long_curves_are_thinned_and_many_are_capped_and_the_page_says_so(
    store: Store, report: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "MAX_RUNS", 2)
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    long = epochs(*[{"val_top1": 1.0}] * 100)
    store("final", curve=long)
    for name, val in (("low", 10.0), ("high", 20.0)):
        store(name, search=True, val=val, config={"optim.lr": val}, curve=long)
    page = report()
    assert {len((a["points"] or "").split()) for a in page.found("polyline")} == {60}
    assert "2 runs have more than 60 epochs: 60 evenly spread ones of each are drawn." in page.plain
    assert "Curves of 2 of 3 runs are shown" in page.plain
    assert [row[6] for row in page.texts("runs-table")] == ["–", "20.00"]
    assert "1 more runs are not listed here" in page.plain


def test_runs_that_cannot_share_a_table_are_said_so(store: Store, report: Callable[..., Page]) -> None:
    store("a")
    store("b")
    page = report()
    printed = page.printed  # pyright: ignore[reportAttributeAccessIssue]
    assert "results-1" not in page.rows
    assert "No table: " in page.plain
    for text in (page.plain, printed.err):
        assert "both claim seed 0 of the cell gift on digits" in text
    assert printed.err.startswith("warning: no table of mini, protocol clean, backbone vit_mini: ")
    assert printed.err.count("\n") == 1


def test_ablations_have_rows_of_their_own(store: Store, report: Callable[..., Page]) -> None:
    for rank in (4, 16):
        store(f"rank{rank}", config={"method.rank": rank}, params={"adapter": rank * 384})
    rows = report().texts("results-1")
    assert [row[:2] for row in rows] == [["gift (rank=16)", "6,144"], ["gift (rank=4)", "1,536"]]


def test_settings_chosen_per_dataset_are_one_method(store: Store, report: Callable[..., Page]) -> None:
    for dataset, rank in (("digits", 4), ("tiny_mammals", 16)):
        store(dataset, dataset=dataset, config={"method.rank": rank})
    assert [row[0] for row in report().texts("results-1")] == ["GIFT"]


def test_protocols_backbones_and_benchmarks_have_tables_of_their_own(store: Store, report: Callable[..., Page]) -> None:
    store("a")
    store("b", run={"protocol": "gift_paper"})
    store("c", run={"backbone": "vit_b16"})
    store("d", dataset="pictures", top1=70.0, run={"benchmark": "own"})
    page = report()
    assert {"results-1", "results-2", "results-3", "results-4"} <= set(page.rows)
    assert page.texts("results-4") == [["GIFT", "6,144", "0.228", "10.0", "70.00 (n=1)"]]
    assert report("benchmark=own").texts("results-1") == page.texts("results-4")


def test_scatter_shows_the_mean_of_means_and_each_dataset(store: Store, report: Callable[..., Page]) -> None:
    for seed, top1 in ((0, 80.0), (1, 82.0)):
        store(f"a{seed}", seed=seed, top1=top1)
    store("b", dataset="tiny_mammals", top1=50.0)
    store("c", "lora", dataset="tiny_mammals", top1=55.0, params={"adapter": 100})
    page = report()
    assert page.texts("results-1-scatter-1") == [["GIFT", "6,144", "65.50", "3", "yes"]]
    assert page.texts("results-1-scatter-2") == [["GIFT", "6,144", "81.00 ± 1.41", "2", "yes"]]
    assert [row[-1] for row in page.texts("results-1-scatter-3")] == ["yes", "no"]
    assert "Mean over 2 datasets (1 of 2 methods lack some of them)" in page.plain


def test_published_numbers_stand_below_and_are_not_ranked(store: Store, report: Callable[..., Page]) -> None:
    store("a", dataset="cub", top1=50.0, run={"benchmark": "fgvc"})
    page = report()
    ours, title, *published = page.texts("results-1")
    assert ours[0] == "GIFT"
    assert title[0].startswith("Published: GIFT ")
    assert ["GIFT r=16 attn.proj", "89.71"] in [[row[0], row[3]] for row in published]
    assert len(page.found("strong")) == 1
    assert page.texts("results-1-scatter-1") == [["GIFT", "6,144", "50.00", "1", "yes"]]


def test_resources_are_medians_by_machine(store: Store, report: Callable[..., Page]) -> None:
    for seed, time in enumerate((10.0, 30.0, 11.0)):
        store(f"a{seed}", seed=seed, cost={"step_time_ms": time, "images_per_s": 1000.0})
    store("gpu", "lora", cost={"peak_memory_mib": 2000.4}, env={"device": "cuda", "gpu": "H100"})
    first, second = report().texts("resource-table")
    assert first == [
        "Digits",
        "LoRA",
        "vit_mini",
        "H100",
        "6,144",
        "0.228",
        "1,930",
        "10.0",
        "80.0",
        "400",
        "2,000",
        "900",
        "1",
    ]
    assert second[3:] == ["cpu, 2 threads", "6,144", "0.228", "1,930", "10.0", "11.0", "1,000", "–", "900", "3"]


MISTAKES = [
    (["root=absent"], "no folder absent; pass root=<folder with the runs>"),
    (["root={tmp}/empty"], "no run below {tmp}/empty; start one with"),
    (["benchmark=fgvc"], "no run of benchmark 'fgvc' below {tmp}/outputs (there: mini)"),
    (["out={tmp}"], "out={tmp} is a folder; give the file to write, as out={tmp}/report.html"),
    (["format=pdf"], "unexpected argument 'format=pdf': expected root=…, out=…, benchmark=…"),
    (["root=[{tmp}/outputs,{tmp}/broken]"], "{tmp}/broken/result.json is no readable result"),
]


def test_number_of_mistakes() -> None:
    assert len(MISTAKES) == 6


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_code_2(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Words, message: str
) -> None:
    store("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text("{")
    out = tmp_path / "pages" / "report.html"
    given = [word.format(tmp=tmp_path) for word in words]
    assert main([f"root={tmp_path / 'outputs'}", f"out={out}", *given]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message.format(tmp=tmp_path) in captured.err
    assert not out.exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for key in ("root", "out", "benchmark"):
        assert f"\n{key} " in text
