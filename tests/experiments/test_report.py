"""The report's page, made from fabricated runs and read back; and one line for every mistake."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments.report import __main__ as command
from experiments.report import curves, tables
from experiments.report.runs import collect_runs
from gift_vit.results.collect import collect_results
from gift_vit.runs.predictions import Predictions, write_predictions
from gift_vit.runs.result import read_result, write_result
from gift_vit.runs.run import locked_folder
from gift_vit.sweeps.select import choose
from tests.results.conftest import exit_code, make_result, refused

main = partial(exit_code, command.main)


class Page:
    """The page's tags with their attributes, its text, and per table id the rows of its bodies as cells of (text, data-sort).

    It is read as XML, which takes no tag that is not closed and no text that is not escaped.
    """

    def __init__(self, text: str) -> None:
        text = re.sub(r"<(script|style)>.*?</\1>", r"<\1/>", text, flags=re.DOTALL).replace("<!doctype html>", "", 1)
        text = re.sub(r"<(meta|link|input)\b([^>]*)>", r"<\1\2/>", text)
        root = ElementTree.fromstring(re.sub(r" (hidden|data-picker)(?=[ >])", r' \1=""', text))
        self.tags = [(element.tag, element.attrib) for element in root.iter()]
        self.plain = " ".join(" ".join(root.itertext()).split())
        self.rows = {
            table.get("id") or f"{table.get('class')}-{index}": [
                [("".join(cell.itertext()), cell.get("data-sort")) for cell in row] for row in table.iterfind("tbody/tr")
            ]
            for index, table in enumerate(root.iter("table"))
        }

    def texts(self, table: str) -> list[list[str]]:
        return [[" ".join(text.split()) for text, _ in row] for row in self.rows[table]]

    def found(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


class Site:
    """Fabricated runs below ``outputs``, and the page that is made of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.outputs, self.out, self.capsys = folder, folder / "outputs", folder / "pages/report.html", capsys
        self.printed = self.said = ""

    def store(self, name: str, *args: Any, search: bool = False, curve: str | None = None, **kwargs: Any) -> Path:
        """A finished run; returns its folder."""
        kwargs["run"] = {"phase": "search" if search else "final", **kwargs.get("run", {})}
        folder = self.leave(name, **({} if curve is None else {"metrics_jsonl": curve}))
        write_result(folder / "result.json", make_result(*args, **kwargs))
        return folder

    def leave(self, name: str, **files: str) -> Path:
        """A run without a result, by its files: ``train_log`` is train.log."""
        folder = self.outputs / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / ".".join(file.rsplit("_", 1))).write_text(text)
        return folder

    def page(self, *words: str) -> Page:
        """The page; what the command printed and said on stderr is kept."""
        assert main(f"root={self.outputs}", f"out={self.out}", *words) == 0
        self.printed, self.said = self.capsys.readouterr()
        return Page(self.out.read_text())


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, capsys)


def epochs(*values: dict[str, float]) -> str:
    return "".join(json.dumps({"epoch": i, "train_loss": 1.0 / (i + 1), "lr": 0.1, **v}) + "\n" for i, v in enumerate(values))


def config_yaml(**config: Any) -> str:
    """A configuration of a search run; JSON is YAML."""
    return json.dumps(make_result(run={"phase": "search"}, config=config).run.config)


def failed_json(message: str) -> str:
    return json.dumps({"error": "RunError", "message": message, "failed_at": "", "traceback": ""})


def test_the_table_is_on_the_page_and_sorts_by_unrounded_numbers(site: Site) -> None:
    site.store("a", seed=0, top1=90.0)
    site.store("b", seed=1, top1=92.0)
    site.store("c", "linear", top1=80.125, params={"adapter": 0, "percent": 0.0})
    site.store("d", "linear", dataset="tiny_mammals", top1=70.0)
    page = site.page()
    linear, gift = page.rows["results-1"]
    assert linear[:2] == [("Linear probing", "linear"), ("0–6,144", "0")]
    assert gift[:2] == [("GIFT", "gift"), ("6,144", "6144")]
    assert linear[-3:] == [("80.12 (n=1)", "80.125"), ("70.00 (n=1)", "70.0"), ("75.06", "75.0625")]
    assert gift[-3:] == [("91.00 ± 1.41 (n=2)", "91.0"), ("–", None), ("–", None)], "a dash has no value"
    assert len(page.found("strong")) >= 1
    assert site.printed == f"{site.out}: 4 runs done (0 search, 4 final)\n"


def test_tables_can_be_read_aloud_and_nothing_is_fetched(site: Site) -> None:
    site.store("a", val=50.0, search=True, curve=epochs({"val_top1": 50.0}))
    site.store("b", curve=epochs({}, {}))
    page = site.page()
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {a.get("scope") for a in page.found("th")} <= {"col", "row", "colgroup", "rowgroup"}
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= ids
    assert {a.get("tabindex") for _, a in page.tags if "scroll" in a.get("class", "").split()} == {"0"}
    for a in page.found("svg"):
        assert (a.get("role") == "img" and a.get("aria-label")) or a.get("aria-hidden") == "true"
    assert page.found("html")[0]["lang"] == "en"
    assert re.findall(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", site.out.read_text()) == []
    assert [a["src"] for _, a in page.tags if "src" in a] == []
    assert [a["href"] for a in page.found("link")] == ["data:,"]
    (policy,) = (a["content"] for a in page.found("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


HOSTILE = '<script>alert("1")</script>'


def test_every_text_of_a_run_is_escaped(site: Site) -> None:
    run = {"backbone": HOSTILE, "protocol": "</style>" + HOSTILE, "benchmark": HOSTILE}
    facts = {"run": run, "dataset": '"><img src=x>', "config": {"method.rank": HOSTILE}, "env": {"cpu": HOSTILE}}
    for search in (True, False):
        site.store(f"x{search}", HOSTILE, search=search, val=50.0, curve=epochs({"val_top1": 50.0}), **facts)
    site.store("own", HOSTILE, **{**facts, "run": {**run, "benchmark": "own"}})
    site.leave(HOSTILE.replace("/", "_"), failed_json=failed_json(HOSTILE))
    page = site.page()
    assert (len(page.found("script")), page.found("img")) == (1, [])
    assert HOSTILE in page.plain
    assert "<script>alert" not in (text := site.out.read_text())
    assert text.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;") > 10


def test_classes_and_the_pairs_mixed_up_most(site: Site) -> None:
    images, labels = [str(index) for index in range(12)], np.repeat(np.arange(3), 4)
    said = {
        "lora": [[0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 2]],
        "gift": [[0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 2, 2], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]],
    }
    for method, seed in (("lora", 0), ("gift", 0), ("gift", 1), ("bitfit", 0)):
        folder = site.store(f"{method}{seed}", method, seed=seed)
        logits = np.eye(3, dtype=np.float16)[said.get(method, said["lora"])[seed]]
        kept = Predictions("test", images, labels, logits, ["a", "<b>", "c"])
        record = write_predictions(folder / "predictions.parquet", [kept])
        write_result(folder / "result.json", replace(read_result(folder / "result.json"), predictions=record))
    (folder / "predictions.parquet").write_text("damaged")
    site.store("old", "linear")
    page = site.page()
    assert page.texts("results-1-classes-1") == [
        ["a", "4", "75.00", "75.00"],
        ["<b>", "4", "100.00", "100.00"],
        ["c", "4", "25.00", "75.00"],
    ]
    assert page.texts("results-1-pairs-1") == [["c", "a", "3", "1"], ["a", "<b>", "1", "1"]]
    assert "bitfit0/predictions.parquet cannot be read as predictions" in page.plain


def test_classes_of_runs_that_are_scored_on_val(site: Site) -> None:
    folder = site.store("a", val=50.0, config={"protocol.scored_on": "val"})
    logits = np.array([[1, 0], [1, 0]], np.float16)
    kept = [Predictions("val", ["0", "1"], np.array([0, 1]), logits, ["a", "b"])]
    record = write_predictions(folder / "predictions.parquet", kept)
    write_result(folder / "result.json", replace(read_result(folder / "result.json"), predictions=record))
    page = site.page()
    assert "Digits: accuracy by class on the val images in percent" in page.plain
    assert page.texts("results-1-classes-1") == [["a", "1", "100.00"], ["b", "1", "0.00"]]


def test_links_lead_from_the_page_to_the_folders(site: Site) -> None:
    folders = {site.store("final/a b#1?", curve=epochs({})), site.store("x:y/z%41", "lora")}
    folders.add(site.leave("gone", failed_json="{}"))
    links = [link for a in site.page().found("a") if not (link := a["href"]).startswith("#")]
    assert all(link.startswith("../outputs/") for link in links)
    assert {(site.out.parent / unquote(link)).resolve() for link in links} == {folder.resolve() for folder in folders}


def test_runs_without_a_result_are_listed_with_state_and_reason(site: Site) -> None:
    config, begun = config_yaml(**{"trainer.epochs": 9}), epochs({}, {}) + '{"epoch": 2, "tr'
    site.leave("a", config_yaml=config, failed_json=failed_json("loss is NaN at epoch 3"))
    broken = site.leave("b", failed_json="{")  # before the configuration was written, and damaged
    site.leave("d", config_yaml="{", train_log="")
    site.leave("imported", config_yaml=config, imported_json="{}", train_log="")
    site.leave("multirun", multirun_yaml="{}", config_yaml="{}")
    page = site.page()
    for sentence in ("No final run is finished.", "No run has written an epoch yet."):
        assert sentence in page.plain
    site.store("done")
    site.leave("c", config_yaml=config, train_log="", last_ckpt="", metrics_jsonl=begun)
    site.leave("e", config_yaml=config, train_log="", pruned_json='{"message": "stopped at epoch 2"}')
    with locked_folder(site.leave("f", config_yaml=config, train_log="")):
        site.leave("g", config_yaml=config, result_json="{")
        page = site.page()
    rows = [row[:5] for row in page.texts("open-table")]
    damaged = rows.pop(2)
    assert damaged[1].startswith(f"{site.outputs / 'g' / 'result.json'} is no readable result: it is not valid JSON")
    assert rows == [
        ["failed", "loss is NaN at epoch 3", "Digits", "GIFT", "search"],
        ["failed", f"{broken / 'failed.json'} cannot be read", "–", "–", "–"],
        ["interrupted", "2 of 9 epochs done", "Digits", "GIFT", "search"],
        ["missing", "0 of unknown epochs done", "–", "–", "–"],
        ["pruned", "stopped at epoch 2", "Digits", "GIFT", "search"],
        ["running", "0 of 9 epochs done", "Digits", "GIFT", "search"],
    ]
    assert "1 runs done (0 search, 1 final), 1 running, 3 failed, 1 interrupted, 1 missing, 1 pruned" in page.plain


def sweep(site: Site, *cells: tuple[float, float, int, float | None]) -> None:
    """Search runs by learning rate, weight decay, rank and val top-1."""
    for index, (lr, wd, rank, val) in enumerate(cells):
        config = {"optim.lr": lr, "optim.weight_decay": wd, "method.rank": rank}
        site.store(f"search/{len(cells)}{index}", search=True, val=val, config=config)


def heat_maps(page: Page) -> list[list[list[str]]]:
    return [page.texts(name) for name in page.rows if name.startswith("heat")]


def test_heat_maps(site: Site) -> None:
    sweep(site, (0.1, 0.0, 16, 70.0), (0.001, 0.0, 16, 60.0), (0.001, 0.01, 16, 72.5), (0.1, 0.01, 16, 72.5))
    site.leave("failed", config_yaml=config_yaml(**{"optim.lr": 0.01}), failed_json=failed_json(""))
    page = site.page()
    best = ["0.01", "★ 72.50", "failed", "72.50"]  # of equal ones the smaller learning rate
    assert heat_maps(page) == [[["0", "60.00", "–", "70.00"], best]]
    assert "Best: 72.50 % at lr 0.001, wd 0.01. Missing: 1." in page.plain


def test_one_heat_map_per_value_of_another_axis(site: Site) -> None:
    sweep(site, (0.1, 0.0, 16, 70.0), (0.2, 0.0, 4, 60.0), (0.1, 0.0, 4, None))
    page = site.page()
    assert heat_maps(page) == [[["0", "no val", "60.00"]], [["0", "★ 70.00", "–"]]]
    assert page.plain.index(" rank 4 wd") < page.plain.index(" rank 16 wd")
    assert "Best: 70.00 % at lr 0.1, wd 0, rank 16." in page.plain
    sweep(site, (0.2, 0.0, 4, 50.0))
    page = site.page()
    assert heat_maps(page) == [[["0", "no val", "several"]], [["0", "70.00", "–"]]], "no average, and nothing is chosen"
    assert "Best: none, for two runs of one setting claim one seed." in page.plain


def test_the_best_of_a_sweep_is_what_the_choice_takes(site: Site) -> None:
    """The mean over seeds counts, seeds that were not asked for are not missing, and other data is another sweep."""
    for seed, lr, val in ((0, 0.001, 80.0), (1, 0.001, 82.0), (0, 0.01, 84.0), (1, 0.01, 70.0), (0, 0.1, 79.0)):
        site.store(f"search/{lr}-{seed}", seed=seed, search=True, val=val, config={"optim.lr": lr})
    page = site.page()
    assert heat_maps(page) == [[["0.01", "★ 81.00", "77.00", "79.00"]]]
    assert "Best: 81.00 % at lr 0.001, wd 0.01, mean of 2 seeds. wd" in page.plain
    chosen = choose(collect_results(site.outputs)).settings[0]
    assert (chosen.values["optim.lr"], chosen.score) == (0.001, 81.0)
    site.store("search/other", search=True, val=99.0, data={"fingerprint": "f" * 64})
    page = site.page()
    assert heat_maps(page) == [[["0.01", "★ 99.00"]], [["0.01", "★ 81.00", "77.00", "79.00"]]]
    assert "vit_mini, clean, data ffffffffffff Best: 99.00 % at lr 0.001, wd 0.01. wd" in page.plain


def lines_of(page: Page) -> list[int]:
    """The numbers of points of the curves."""
    tags = iter(page.tags)
    paths = [next(values["d"] for tag, values in tags if tag == "path") for _, a in tags if a.get("class") == "mark"]
    return [1 + path.count("L") for path in paths if "L" in path]  # a point of the scatter plot has no line


def test_curves_without_val_and_with_broken_lines(site: Site) -> None:
    folder = site.store("a", curve=epochs({}, {"train_loss": float("nan")}, {}) + "[1]\n")
    page = site.page()
    legend = page.texts(next(name for name in page.rows if name.startswith("legend")))
    assert legend == [["lr 0.001, seed 0", "done", "3", "0.3333", "–", "90.00"]]
    assert "None of these runs recorded it." in page.plain
    assert f"Not every line could be read of: {folder / 'metrics.jsonl'}." in page.plain
    assert lines_of(page) == [2, 3]  # the loss without the NaN, and the learning rate


def test_long_curves_are_thinned_and_many_are_capped_and_the_page_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MAX_RUNS", 2)
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    long = epochs(*[{"val_top1": 1.0}] * 100)
    site.store("final", curve=long)
    for name, val in (("low", 10.0), ("high", 20.0)):
        site.store(name, search=True, val=val, config={"optim.lr": val}, curve=long)
    page = site.page()
    assert set(lines_of(page)) == {60}
    assert [row[6] for row in page.texts("runs-table")] == ["–", "20.00"]
    thinned = "2 runs have more than 60 epochs: 60 evenly spread ones of each are drawn."
    for sentence in (thinned, "Curves of 2 of 3 runs are shown", "1 more runs are not listed here"):
        assert sentence in page.plain


def test_runs_that_cannot_share_a_table_are_said_so(site: Site) -> None:
    site.store("a")
    site.store("b")
    page = site.page()
    assert ("results-1" in page.rows, "No table: " in page.plain, site.said.count("\n")) == (False, True, 1)
    assert site.said.startswith("warning: no table of mini, protocol clean, backbone vit_mini: ")
    for text in (page.plain, site.said):
        assert "both claim seed 0 of the cell gift on digits" in text


def test_a_cell_that_two_runs_claim_is_left_out_and_the_others_stay(site: Site) -> None:
    site.store("a")
    site.store("b", config={"optim.lr": 0.5})
    site.store("c", "lora", top1=60.0)
    page = site.page()
    assert [row[0] for row in page.texts("results-1")] == ["LoRA"]
    for text in (page.plain, site.said):
        assert "both claim seed 0 of the cell gift on digits" in text
    assert site.said.startswith("warning: left out of mini, protocol clean, backbone vit_mini: ")
    assert "Left out: " in page.plain


def test_an_ablation_has_rows_of_its_own_and_what_was_chosen_per_dataset_has_not(site: Site) -> None:
    for rank in (4, 16):
        site.store(f"rank{rank}", config={"method.rank": rank}, params={"adapter": rank * 384})
    for dataset, rank in (("digits", 4), ("tiny_mammals", 16)):
        site.store(dataset, "lora", dataset=dataset, config={"method.rank": rank})
    rows = site.page().texts("results-1")
    assert [row[:2] for row in rows] == [["LoRA", "6,144"], ["gift (rank=16)", "6,144"], ["gift (rank=4)", "1,536"]]


def test_protocols_backbones_and_benchmarks_have_tables_of_their_own(site: Site) -> None:
    site.store("a")
    site.store("b", run={"protocol": "gift_paper"})
    site.store("c", run={"backbone": "vit_b16"})
    site.store("d", dataset="pictures", top1=70.0, run={"benchmark": "own"})
    page = site.page()
    assert {"results-1", "results-2", "results-3", "results-4"} <= set(page.rows)
    assert page.texts("results-4") == [["GIFT", "6,144", "0.228", "10.0", "70.00"]]
    assert site.page("benchmark=own").texts("results-1") == page.texts("results-4")


def test_scatter_shows_the_mean_of_means_and_each_dataset(site: Site) -> None:
    site.store("a0", seed=0, top1=80.0)
    site.store("a1", seed=1, top1=82.0)
    site.store("b", dataset="tiny_mammals", top1=50.0)
    site.store("c", "lora", dataset="tiny_mammals", top1=55.0, params={"adapter": 100})
    page = site.page()
    assert page.texts("results-1-scatter-1") == [["GIFT", "6,144", "65.50", "3", "yes"]]
    assert page.texts("results-1-scatter-2") == [["GIFT", "6,144", "81.00 ± 1.41", "2", "yes"]]
    assert [row[-1] for row in page.texts("results-1-scatter-3")] == ["yes", "no"]
    assert "Mean over 2 datasets (1 of 2 methods lack some of them)" in page.plain


def test_published_numbers_stand_below_and_are_not_ranked(site: Site) -> None:
    site.store("a", dataset="cub", top1=50.0, run={"benchmark": "fgvc"})
    page = site.page()
    ours, title, *published = page.texts("results-1")
    assert (ours[0], title[0][:16], len(page.found("strong"))) == ("GIFT", "Published: GIFT ", 1)
    assert ["GIFT r=16 attn.proj", "89.71"] in [[row[0], row[3]] for row in published]
    assert page.texts("results-1-scatter-1") == [["GIFT", "6,144", "50.00", "1", "yes"]]


def test_language_has_its_published_numbers_and_the_tasks_of_its_table(site: Site) -> None:
    run, config = {"benchmark": "glue", "protocol": "glue_gift"}, {"protocol.scored_on": "val"}
    for dataset in ("glue_sst2", "glue_qqp"):
        site.store(dataset, "lora", dataset=dataset, val=60.0, run=run, config=config)
    page = site.page()
    assert page.texts("results-1")[1][0].startswith("Published: GIFT ")
    assert [row[0] for row in page.texts("results-1-scatter-1")] == ["LoRA"]
    assert "results-1-scatter-2" not in page.rows, "its table leaves QQP out"
    (site.outputs / "glue_sst2/result.json").unlink()
    site.page()
    assert "no finished final run of benchmark glue among 1 results, but of QQP, which this table leaves out" in site.said


def test_resources_are_medians_by_machine(site: Site) -> None:
    for seed, time in enumerate((10.0, 30.0, 11.0)):
        site.store(f"a{seed}", seed=seed, cost={"step_time_ms": time, "images_per_s": 1000.0})
    cuda = {"device": "cuda", "gpu": "H100"}
    site.store("gpu", "lora", cost={"peak_memory_mib": 2000.4}, env=cuda)
    site.store("together", "lora", seed=1, cost={"step_time_ms": 999.0}, env={**cuda, "parallel_runs": 2})
    page = site.page()
    assert [" ".join(row) for row in page.texts("resource-table")] == [
        "Digits LoRA vit_mini H100 6,144 0.228 1,930 10.0 80.0 400 2,000 900 2",
        "Digits GIFT vit_mini cpu, 2 threads 6,144 0.228 1,930 10.0 11.0 1,000 – 900 3",
    ]
    assert "Runs that were trained together with others have no speed and memory of their own" in page.plain


MISTAKES = [
    (["root=absent"], "no folder absent; pass root=<folder with the runs>"),
    (["root={tmp}/empty"], "no run below {tmp}/empty; start one with"),
    (["benchmark=fgvc"], "no run of benchmark 'fgvc' below {tmp}/outputs (there: mini)"),
    (["out={tmp}"], "out={tmp} is a folder; give the file to write, as out={tmp}/report.html"),
    (["format=pdf"], "unexpected argument 'format=pdf': expected root=…, out=…, benchmark=…"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake(site: Site, words: list[str], message: str) -> None:
    site.store("a")
    site.leave("../empty")
    given = [f"root={site.outputs}", f"out={site.out}", *(word.format(tmp=site.folder) for word in words)]
    assert message.format(tmp=site.folder) in refused(main, site.capsys, *given)
    assert not site.out.exists()


def test_a_run_that_failed_before_its_configuration_was_written_is_told_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "final/cub/lora/vit_mini/mine"
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text("{}")
    [run] = collect_runs([str(tmp_path)])
    assert (run.phase, run.dataset, run.method, run.backbone, run.state) == ("final", "cub", "lora", "vit_mini", "failed")
