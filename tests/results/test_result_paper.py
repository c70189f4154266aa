"""The FGVC and VTAB-1k tables: fixed columns, both means, memory, published blocks and differences."""

import csv
import io
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from experiments.tables import PUBLISHED_FILE
from gift_vit.errors import ConfigError
from gift_vit.results.names import FGVC, VTAB, VTAB_GROUPS
from gift_vit.results.published import PublishedRow, choose_published, read_published
from gift_vit.results.schema import Result
from gift_vit.results.tables import Cell, Table, fgvc_table, render_csv, render_latex, render_markdown, vtab_table

Make = Callable[..., Result]
SIZES = {"vpt_deep": 46_080, "bitfit": 82_944, "lora": 147_456, "gift": 24_576}
# the paper's tables, which a run of its protocol with these very numbers must reproduce
PAPER = {
    "vpt_deep": "0.0537 87.88 84.79 98.98 84.51 82.89 87.81",
    "bitfit": "0.0967 87.75 84.61 99.32 85.23 84.01 88.18",
    "lora": "0.172 88.00 84.94 99.32 85.36 85.92 88.71",
    "gift": "0.0286 89.71 86.28 99.22 87.44 84.28 89.39",
}


def paper_run(make: Make, benchmark: str, method: str, dataset: str, seed: int = 42, **kwargs: Any) -> Result:
    run = {"benchmark": benchmark, "protocol": "gift_paper", "backbone": "vit_b16_in21k", **kwargs.pop("run", {})}
    size = SIZES.get(method, 1000)
    params = {"adapter": size, "percent": 100 * size / 85_798_656}
    backbone = {"architecture": "vit_base_patch16_224", "tag": "augreg_in21k"}
    return make(method, dataset, seed, run=run, backbone=backbone, params=params, **kwargs)


def fgvc_runs(make: Make, **kwargs: Any) -> list[Result]:
    return [
        paper_run(make, "fgvc", method, dataset, top1=float(top1), **kwargs)
        for method, line in PAPER.items()
        for dataset, top1 in zip(FGVC, line.split()[1:], strict=False)
    ]


def published(benchmark: str, *sources: str) -> list[PublishedRow]:
    return choose_published(read_published(PUBLISHED_FILE), benchmark, sources or ["gift"])


def texts(rows: tuple[tuple[Cell, ...], ...]) -> list[str]:
    return [" ".join(cell.text for cell in row) for row in rows]


def test_fgvc_reproduces_the_papers_table(make: Make) -> None:
    table = fgvc_table(fgvc_runs(make))
    assert [c.title for c in table.columns] == ["Method", "Params (%)", "GPU mem (GiB)", *FGVC.values(), "Mean"]
    order = {"BitFit": "bitfit", "VPT-Deep": "vpt_deep", "LoRA": "lora", "GIFT": "gift"}
    expected = []
    for name, method in order.items():
        percent, *top1 = PAPER[method].split()
        expected.append(" ".join([name, percent, "–", *top1]))
    assert texts(table.rows) == expected
    assert "Protocol gift_paper, backbone vit_b16_in21k. Mean: over the 5 datasets." in table.caption
    assert table.notes == ()


def test_published_fgvc_stands_in_a_block_of_its_own(make: Make) -> None:
    own = fgvc_table(fgvc_runs(make))
    table = fgvc_table(fgvc_runs(make), published=published("fgvc"))
    (block,) = table.published
    assert block.title == "Published: GIFT arXiv 2312.00700 v2-v4 [1]"
    names = ["VPT-deep(5 tok)", "BitFit", "LoRA r=8 attn.proj", "GIFT r=16 attn.proj"]
    expected = [" ".join([n, p, "–", *t, "–"]) for n, (p, *t) in zip(names, map(str.split, PAPER.values()), strict=True)]
    assert texts(block.rows) == expected
    assert all(len(row) == len(table.columns) for row in (*table.rows, *block.rows))
    assert [row[:-1] for row in table.rows] == list(own.rows)
    assert [row[-1].text for row in table.rows] == ["+0.00"] * 4
    assert table.columns[-1].title == "Mean − published"
    source, rule = table.notes
    assert source.startswith(
        "[1] savadikarc/gift@febc038 static/images/results-fgvc.png; weights: vit_base_patch16_224.augreg_in21k;"
    )
    assert "FGVC final trained on train split only" in source
    assert rule.endswith("where protocol, weights, method and its size are the same.")


def test_published_numbers_are_never_ranked(make: Make) -> None:
    runs = [paper_run(make, "fgvc", m, d, top1=50.0 + i) for i, m in enumerate(("lora", "gift")) for d in FGVC]
    markdown = render_markdown(fgvc_table(runs, published=published("fgvc", "gift", "vpetl_bench")))
    assert markdown.count("**51.00**") == 6
    assert markdown.count("**") == 12
    assert "| *Published: V-PETL Bench README [2]* |" in markdown
    latex = render_latex(fgvc_table(runs, published=published("fgvc")))
    assert latex.count(r"\textbf") == latex.count(r"\underline") == 6
    assert r"\multicolumn{10}{l}{\emph{Published: GIFT arXiv 2312.00700 v2-v4 [1]}} \\" in latex.splitlines()
    assert latex.count(r"\midrule") == 2
    assert latex.isascii()


def test_csv_tells_published_rows_apart(make: Make) -> None:
    runs = fgvc_runs(make)
    assert "block" not in render_csv(fgvc_table(runs))
    rows = list(csv.DictReader(io.StringIO(render_csv(fgvc_table(runs, published=published("fgvc"))))))
    assert [row["block"] for row in rows] == [""] * 4 + ["Published: GIFT arXiv 2312.00700 v2-v4 [1]"] * 4
    assert (rows[-1]["method"], rows[-1]["cub_mean"], rows[-1]["cub_n"], rows[-1]["difference"]) == ("gift", "89.71", "", "")
    assert float(rows[3]["difference"]) == pytest.approx(446.93 / 5 - 89.39, abs=1e-9)


def test_a_difference_is_taken_of_the_same_experiment_only(make: Make) -> None:
    def ours(**kwargs: Any) -> Table:
        return fgvc_table([paper_run(make, "fgvc", "gift", d, top1=90.0, **kwargs) for d in FGVC], published=published("fgvc"))

    same = ours()
    assert (same.columns[-1].title, same.rows[0][-1].text) == ("Mean − published", "+0.61")
    for run in ({"protocol": "clean"}, {"protocol_changes": {"trainer.epochs": [100, 5]}}):
        other = ours(run=run)
        assert other.columns[-1].title == "Mean"
        assert other.notes[-1].endswith("are the same; no row here is such a one.")
    mixed = fgvc_table([*fgvc_runs(make), *(paper_run(make, "fgvc", "ssf", d) for d in FGVC)], published=published("fgvc"))
    assert [row[-1].text for row in mixed.rows] == ["+0.00", "+0.00", "–", "+0.00", "+0.00"]
    incomplete = fgvc_table(fgvc_runs(make)[:-1], published=published("fgvc"))
    assert incomplete.rows[-1][-1].text == "–"


def test_missing_cells_are_dashes_and_listed(make: Make) -> None:
    table = fgvc_table(
        [r for r in fgvc_runs(make) if r.run.dataset != "nabirds" and (r.run.method, r.run.dataset) != ("gift", "cub")]
    )
    gift = table.rows[-1]
    assert [cell.text for cell in gift] == ["GIFT", "0.0286", "–", "–", "–", "99.22", "87.44", "84.28", "–"]
    assert table.notes == ("Missing (–): BitFit on NABirds; GIFT on CUB, NABirds; LoRA on NABirds; VPT-Deep on NABirds.",)


def test_memory_is_the_devices(make: Make) -> None:
    cuda = [
        paper_run(make, "fgvc", "gift", d, cost={"peak_memory_mib": mib}, env={"gpu": "NVIDIA A100"})
        for d, mib in (("cub", 2560.0), ("cars", 2688.0))
    ]
    table = fgvc_table([*cuda, paper_run(make, "fgvc", "lora", "cub"), paper_run(make, "fgvc", "gift", "dogs")])
    assert [row[2] for row in table.rows] == [Cell("–", (None, None)), Cell("2.50–2.62", (2560.0, 2688.0))]
    assert table.notes[0] == "GPU mem: peak device memory in training, on NVIDIA A100."


def vtab_runs(make: Make, scores: dict[tuple[str, str], list[float]]) -> list[Result]:
    return [
        paper_run(make, "vtab1k", method, dataset, seed, top1=top1)
        for (method, dataset), cell in scores.items()
        for seed, top1 in enumerate(cell)
    ]


def test_vtab_has_its_groups_and_both_means(make: Make) -> None:
    rng = np.random.default_rng(0)
    scores = {(m, d): list(rng.uniform(20, 99, size=3)) for m in ("gift", "lora") for d in VTAB}
    table = vtab_table(vtab_runs(make, scores))
    groups = [(name, len(list(columns))) for name, columns in groupby(table.columns, key=lambda c: c.group)]
    assert groups == [("", 3), ("Natural", 8), ("Specialized", 5), ("Structured", 9), ("Mean of", 2)]
    assert [c.title for c in table.columns[-2:]] == ["19 tasks", "3 group means"]
    by_csv = {c.csv[0]: j for j, c in enumerate(table.columns)}
    for row in table.rows:
        method = str(row[0].values[0])
        tasks = {d: np.mean(scores[method, d]) for d in VTAB}
        means = {f"mean_{g.lower()}": np.mean([tasks[d] for d in names]) for g, names in VTAB_GROUPS.items()}
        expected = {**{f"{d}_mean": v for d, v in tasks.items()}, **means}
        expected |= {"mean_19_tasks": np.mean(list(tasks.values())), "mean_3_groups": np.mean(list(means.values()))}
        assert {key: row[by_csv[key]].values[0] for key in expected} == pytest.approx(expected, rel=1e-12)
        assert row[by_csv["mean_19_tasks"]].text != row[by_csv["mean_3_groups"]].text
    assert "Two means: over the 19 tasks, and over the means of the 3 groups." in table.caption
    assert "over n = 3 seeds" in table.caption


def test_a_vtab_mean_needs_all_of_its_tasks(make: Make) -> None:
    table = vtab_table(vtab_runs(make, {("gift", d): [50.0] for d in VTAB if d != "vtab_dmlab"}))
    means = {c.csv[0]: table.rows[0][j].text for j, c in enumerate(table.columns) if c.csv[0].startswith("mean_")}
    assert means == {
        **{"mean_natural": "50.00", "mean_specialized": "50.00", "mean_structured": "–"},
        **{"mean_19_tasks": "–", "mean_3_groups": "–"},
    }
    assert table.notes == ("Missing (–): GIFT on DMLab.",)


def test_published_vtab_is_the_papers_table(make: Make) -> None:
    table = vtab_table(vtab_runs(make, {("gift", d): [75.0] for d in VTAB}), published=published("vtab1k"))
    (block,) = table.published
    shown = {row[0].text: " ".join(cell.text for cell in row[1:] if cell.text != "–") for row in block.rows}
    assert shown == {
        "VPT-deep(5 tok)": "0.0537 81.03 85.65 58.89 72.68",
        "BitFit": "0.0967 81.79 85.15 57.75 72.37",
        "LoRA r=8 attn.proj": "0.172 81.96 85.89 60.98 73.95",
        "GIFT r=16 attn.proj": "0.0286 81.95 86.30 61.12 74.09",
    }
    columns = [table.columns[j].csv[0] for j, cell in enumerate(block.rows[0]) if cell.text != "–"][2:]
    assert columns == ["mean_natural", "mean_specialized", "mean_structured", "mean_19_tasks"]
    assert (table.columns[-1].title, table.rows[0][-1].text) == ("19 tasks − published", "+0.91")


def test_a_wide_latex_table_is_fitted_to_the_page(make: Make) -> None:
    latex = render_latex(vtab_table(vtab_runs(make, {("gift", d): [75.0] for d in VTAB})))
    assert latex.count("{") == latex.count("}")
    assert latex.splitlines()[1] == r"\begin{table*}"
    assert latex.endswith("\\end{table*}\n")
    assert r"\resizebox{\linewidth}{!}{%" in latex
    assert r"\rotatebox{90}{dSprites/ori}" in latex
    assert r"\multicolumn{5}{c}{Specialized}" in latex


def test_a_table_of_one_columns_width_keeps_its_titles_upright(make: Make) -> None:
    latex = render_latex(fgvc_table([paper_run(make, "fgvc", "gift", d, top1=80.0) for d in FGVC]))
    assert r"\begin{table}" in latex
    assert r"\resizebox{\linewidth}{!}{%" in latex
    assert r"\rotatebox" not in latex


def test_methods_and_rows_work_as_for_mini(make: Make) -> None:
    runs = [
        paper_run(make, "fgvc", "gift", d, top1=80.0 + rank, config={"method.rank": rank}, run={"name": f"{d}{rank}"})
        for d in FGVC
        for rank in (16, 2)
    ]
    table = fgvc_table([*runs, paper_run(make, "fgvc", "lora", "cub")], method="gift", rows=["method.rank"])
    assert [(row[0].text, row[-1].text) for row in table.rows] == [("2", "82.00"), ("16", "96.00")]
    assert table.caption.startswith("FGVC, GIFT: ")
    with pytest.raises(ConfigError, match=r"published numbers stand beside methods; drop rows= or published="):
        fgvc_table(runs, rows=["method.rank"], published=published("fgvc"))


def test_datasets_are_fixed(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"the table of VTAB-1k always shows its 19 datasets; drop datasets="):
        vtab_table([paper_run(make, "vtab1k", "gift", "vtab_dtd")], ["vtab_dtd"])


def test_an_unknown_dataset_is_refused_and_its_file_named(stored: Make) -> None:
    stray = stored("stray", dataset="cubs", run={"benchmark": "fgvc"})
    with pytest.raises(
        ConfigError, match=r"outputs/stray/result\.json is a run of dataset cubs, which benchmark fgvc does not have"
    ):
        fgvc_table([stored("good", dataset="cub", run={"benchmark": "fgvc"}), stray])
    search = stored("search", dataset="cubs", top1=None, run={"benchmark": "fgvc", "phase": "search"})
    assert len(fgvc_table([stored("good", dataset="cub", run={"benchmark": "fgvc"}), search]).rows) == 1
