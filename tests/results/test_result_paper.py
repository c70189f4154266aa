"""The FGVC and VTAB-1k tables: fixed columns, both means, memory, published blocks and differences."""

import csv
import io
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from experiments.tables import PUBLISHED_FILE
from gift_vit.common.errors import ConfigError
from gift_vit.results.names import FGVC, VTAB, VTAB_GROUPS
from gift_vit.results.paper import fgvc_table, vtab_table
from gift_vit.results.published import PublishedRow, choose_published, read_published
from gift_vit.results.render import Cell, render_csv, render_latex, render_markdown
from gift_vit.results.request import Request
from gift_vit.runs.result import Result
from tests.results.conftest import make_result

SIZES = {"vpt_deep": 46_080, "bitfit": 82_944, "lora": 147_456, "gift": 24_576}
# the paper's tables, which a run of its protocol with these very numbers must reproduce
PAPER = {
    "vpt_deep": "0.0537 87.88 84.79 98.98 84.51 82.89 87.81",
    "bitfit": "0.0967 87.75 84.61 99.32 85.23 84.01 88.18",
    "lora": "0.172 88.00 84.94 99.32 85.36 85.92 88.71",
    "gift": "0.0286 89.71 86.28 99.22 87.44 84.28 89.39",
}


def paper_run(method: str, dataset: str, seed: int = 42, **kwargs: Any) -> Result:
    benchmark = "vtab1k" if dataset in VTAB else "fgvc"
    run = {"benchmark": benchmark, "protocol": "gift_paper", "backbone": "vit_b16_in21k", **kwargs.pop("run", {})}
    size = SIZES.get(method, 1000)
    params = {"adapter": size, "percent": 100 * size / 85_798_656}
    backbone = {"architecture": "vit_base_patch16_224", "tag": "augreg_in21k"}
    return make_result(method, dataset, seed, run=run, backbone=backbone, params=params, **kwargs)


def fgvc_runs() -> list[Result]:
    return [
        paper_run(method, dataset, top1=float(top1))
        for method, line in PAPER.items()
        for dataset, top1 in zip(FGVC, line.split()[1:], strict=False)
    ]


def published(benchmark: str, *sources: str) -> list[PublishedRow]:
    return choose_published(read_published(PUBLISHED_FILE), benchmark, sources or ["gift"])


def texts(rows: tuple[tuple[Cell, ...], ...]) -> list[str]:
    return [" ".join(cell.text for cell in row) for row in rows]


def test_fgvc_reproduces_the_papers_table() -> None:
    table = fgvc_table(Request(fgvc_runs()))
    assert [c.title for c in table.columns] == ["Method", "Params (%)", "GPU mem (GiB)", *FGVC.values(), "Mean"]
    order = {"BitFit": "bitfit", "VPT-Deep": "vpt_deep", "LoRA": "lora", "GIFT": "gift"}
    assert texts(table.rows) == [f"{name} {PAPER[method].replace(' ', ' – ', 1)}" for name, method in order.items()]
    assert "Protocol gift_paper, backbone vit_b16_in21k. Mean: over the 5 datasets." in table.caption
    assert table.notes == ()


def test_published_fgvc_stands_in_a_block_of_its_own() -> None:
    table = fgvc_table(Request(fgvc_runs(), published=published("fgvc")))
    (block,) = table.published
    assert block.title == "Published: GIFT arXiv 2312.00700 v2-v4 [1]"
    names = ["VPT-deep(5 tok)", "BitFit", "LoRA r=8 attn.proj", "GIFT r=16 attn.proj"]
    expected = [f"{name} {line.replace(' ', ' – ', 1)} –" for name, line in zip(names, PAPER.values(), strict=True)]
    assert texts(block.rows) == expected
    assert all(len(row) == len(table.columns) for row in (*table.rows, *block.rows))
    assert [row[:-1] for row in table.rows] == list(fgvc_table(Request(fgvc_runs())).rows)
    assert [row[-1].text for row in table.rows] == ["+0.00"] * 4
    assert table.columns[-1].title == "Mean − published"
    source, rule = table.notes
    origin = "savadikarc/gift@febc038 static/images/results-fgvc.png"
    assert source.startswith(f"[1] {origin}; weights: vit_base_patch16_224.augreg_in21k; protocol: ")
    assert "FGVC final trained on train split only" in source
    assert rule.endswith("where protocol, weights, method and its size are the same.")


def test_published_numbers_are_never_ranked() -> None:
    runs = [paper_run(m, d, top1=50.0 + i) for i, m in enumerate(("lora", "gift")) for d in FGVC]
    markdown = render_markdown(fgvc_table(Request(runs, published=published("fgvc", "gift", "vpetl_bench"))))
    assert markdown.count("**51.00**") == 6
    assert markdown.count("**") == 12
    assert "| *Published: V-PETL Bench README [2]* |" in markdown
    latex = render_latex(fgvc_table(Request(runs, published=published("fgvc"))))
    assert latex.count(r"\textbf") == latex.count(r"\underline") == 6
    assert r"\multicolumn{10}{l}{\emph{Published: GIFT arXiv 2312.00700 v2-v4 [1]}} \\" in latex.splitlines()
    assert latex.count(r"\midrule") == 2
    assert latex.isascii()


def test_csv_tells_published_rows_apart() -> None:
    assert "block" not in render_csv(fgvc_table(Request(fgvc_runs())))
    rows = list(csv.DictReader(io.StringIO(render_csv(fgvc_table(Request(fgvc_runs(), published=published("fgvc")))))))
    assert [row["block"] for row in rows] == [""] * 4 + ["Published: GIFT arXiv 2312.00700 v2-v4 [1]"] * 4
    assert (rows[-1]["method"], rows[-1]["cub_mean"], rows[-1]["cub_n"], rows[-1]["difference"]) == ("gift", "89.71", "", "")
    assert float(rows[3]["difference"]) == pytest.approx(446.93 / 5 - 89.39, abs=1e-9)


def test_a_difference_is_taken_of_the_same_experiment_only() -> None:
    same, other = (
        fgvc_table(
            Request([paper_run("gift", d, top1=90.0, run={"protocol": name}) for d in FGVC], published=published("fgvc"))
        )
        for name in ("gift_paper", "clean")
    )
    assert (same.columns[-1].title, same.rows[0][-1].text, other.columns[-1].title) == ("Mean − published", "+0.61", "Mean")
    assert other.notes[-1].endswith("are the same; no row here is such a one.")
    mixed = fgvc_table(Request([*fgvc_runs()[:-1], *(paper_run("ssf", d) for d in FGVC)], published=published("fgvc")))
    assert [row[-1].text for row in mixed.rows] == ["+0.00", "+0.00", "–", "+0.00", "–"], "no SSF, and GIFT lacks a dataset"


def test_memory_is_the_devices() -> None:
    measured = {"cub": ("NVIDIA A100", 2560.0), "cars": ("NVIDIA H200", 2688.0)}
    cuda = [paper_run("gift", d, cost={"peak_memory_mib": mib}, env={"gpu": gpu}) for d, (gpu, mib) in measured.items()]
    table = fgvc_table(Request([*cuda, paper_run("lora", "cub"), paper_run("gift", "dogs")]))
    assert [row[2] for row in table.rows] == [Cell("–", (None, None)), Cell("2.50–2.62", (2560.0, 2688.0))]
    assert table.notes[0] == "GPU mem: peak device memory in training, on NVIDIA A100, NVIDIA H200."
    assert table.notes[-1] == "GPU memory: of runs under several conditions (gpu NVIDIA A100, NVIDIA H200)."


def test_vtab_has_its_groups_and_both_means() -> None:
    rng = np.random.default_rng(0)
    scores = {(m, d): list(rng.uniform(20, 99, size=3)) for m in ("gift", "lora") for d in VTAB}
    table = vtab_table(Request([paper_run(*key, seed, top1=cell[seed]) for key, cell in scores.items() for seed in range(3)]))
    groups = [(name, len(list(columns))) for name, columns in groupby(table.columns, key=lambda c: c.group)]
    assert groups == [("", 3), ("Natural", 8), ("Specialized", 5), ("Structured", 9), ("Mean of", 2)]
    assert [c.title for c in table.columns[-2:]] == ["19 tasks", "3 group means"]
    by_csv = {c.csv[0]: j for j, c in enumerate(table.columns)}
    for row in table.rows:
        method = str(row[0].values[0])
        tasks = {d: np.mean(scores[method, d]) for d in VTAB}
        means = {f"mean_{g.lower()}": np.mean([tasks[d] for d in names]) for g, names in VTAB_GROUPS.items()}
        overall = {"mean_19_tasks": np.mean(list(tasks.values())), "mean_3_groups": np.mean(list(means.values()))}
        expected = {f"{d}_mean": v for d, v in tasks.items()} | means | overall
        assert {key: row[by_csv[key]].values[0] for key in expected} == pytest.approx(expected, rel=1e-12)
        assert row[by_csv["mean_19_tasks"]].text != row[by_csv["mean_3_groups"]].text
    assert "Two means: over the 19 tasks, and over the means of the 3 groups." in table.caption
    assert "over n = 3 seeds" in table.caption


def test_a_vtab_mean_needs_all_of_its_tasks() -> None:
    table = vtab_table(Request([paper_run("gift", d, top1=50.0) for d in VTAB if d != "vtab_dmlab"]))
    means = {c.csv[0]: table.rows[0][j].text for j, c in enumerate(table.columns) if c.csv[0].startswith("mean_")}
    known = {"mean_natural": "50.00", "mean_specialized": "50.00"}
    assert means == {**known, "mean_structured": "–", "mean_19_tasks": "–", "mean_3_groups": "–"}
    assert table.notes == ("Missing (–): GIFT on DMLab.",)


def test_published_vtab_is_the_papers_table() -> None:
    table = vtab_table(Request([paper_run("gift", d, top1=75.0) for d in VTAB], published=published("vtab1k")))
    (block,) = table.published
    assert [text.replace(" –", "") for text in texts(block.rows)] == [
        "VPT-deep(5 tok) 0.0537 81.03 85.65 58.89 72.68",
        "BitFit 0.0967 81.79 85.15 57.75 72.37",
        "LoRA r=8 attn.proj 0.172 81.96 85.89 60.98 73.95",
        "GIFT r=16 attn.proj 0.0286 81.95 86.30 61.12 74.09",
    ]
    columns = [table.columns[j].csv[0] for j, cell in enumerate(block.rows[0]) if cell.text != "–"][2:]
    assert columns == ["mean_natural", "mean_specialized", "mean_structured", "mean_19_tasks"]
    assert (table.columns[-1].title, table.rows[0][-1].text) == ("19 tasks − published", "+0.91")


def test_wide_latex_is_fitted_to_the_page_and_turns_its_titles() -> None:
    latex = render_latex(vtab_table(Request([paper_run("gift", d) for d in VTAB])))
    assert latex.count("{") == latex.count("}")
    assert (latex.splitlines()[2], latex.splitlines()[-1]) == (r"\begin{table*}", r"\end{table*}")
    for text in (r"\resizebox{\linewidth}{!}{%", r"\rotatebox{90}{dSprites/ori}", r"\multicolumn{5}{c}{Specialized}"):
        assert text in latex


def test_methods_and_rows_work_as_for_mini() -> None:
    runs = [paper_run("gift", d, top1=80.0 + rank, config={"method.rank": rank}) for d in FGVC for rank in (16, 2)]
    table = fgvc_table(Request([*runs, paper_run("lora", "cub")], method="gift", rows=["method.rank"]))
    assert [(row[0].text, row[-1].text) for row in table.rows] == [("2", "82.00"), ("16", "96.00")]
    assert table.caption.startswith("FGVC, GIFT: ")
    with pytest.raises(ConfigError, match=r"published numbers stand beside methods; drop rows= or published="):
        fgvc_table(Request(runs, rows=["method.rank"], published=published("fgvc")))


def test_datasets_are_fixed_and_the_run_of_another_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the table of VTAB-1k always shows its 19 datasets; drop datasets="):
        vtab_table(Request([], ["vtab_dtd"]))
    stray, search = (paper_run("gift", "cubs", run={"phase": phase}) for phase in ("final", "search"))
    with pytest.raises(ConfigError, match=r"cubs/gift/seed42 is a run of dataset cubs, which benchmark fgvc does not have"):
        fgvc_table(Request([paper_run("gift", "cub"), stray]))
    assert len(fgvc_table(Request([paper_run("gift", "cub"), search])).rows) == 1
