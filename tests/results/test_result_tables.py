"""Statistics against numpy, marks, dashes and notes, and the three formats."""

import csv
import io
import re

import numpy as np
import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.results.cells import gpu_memory_cell
from gift_vit.results.mini import mini_table
from gift_vit.results.own import own_table
from gift_vit.results.published import Conditions, PublishedRow
from gift_vit.results.render import Cell, Column, Table, render_csv, render_latex, render_markdown
from gift_vit.results.request import Request
from gift_vit.runs.result import Result
from tests.results.conftest import make_result as make

SCORES = {
    ("gift", "digits"): [97.25, 96.0, 98.125],
    ("gift", "tiny_mammals"): [71.5, 70.25, 73.0],
    ("lora", "digits"): [96.5, 95.75, 97.0],
    ("lora", "tiny_mammals"): [72.0, 74.5, 73.25],
    ("linear", "digits"): [88.0, 87.5, 87.0],
    ("linear", "tiny_mammals"): [60.0, 61.0, 59.5],
}
COST_NOTE = (
    "Step time and peak memory (memory of the whole process): multiples of those of linear probing on the same dataset, "
    "median over runs; measured on cpu (2 threads)."
)


ERROR_NOTE = "Standard error of a run's top-1 over its test images, at most, in points: {}Tiny mammals 2.45."


def runs_of(scores: dict[tuple[str, str], list[float]]) -> list[Result]:
    return [make(m, d, seed, top1=top1) for (m, d), cell in scores.items() for seed, top1 in enumerate(cell)]


def rows_of(table: Table) -> dict[str, tuple[Cell, ...]]:
    return {str(row[0].values[0]): row for row in table.rows}


def test_statistics_equal_numpys() -> None:
    rng = np.random.default_rng(0)
    scores = {key: list(rng.uniform(0, 100, size=rng.integers(2, 7))) for key in SCORES}
    table = mini_table(Request(runs_of(scores)))
    for (method, dataset), cell in scores.items():
        given = rows_of(table)[method][{"digits": 6, "tiny_mammals": 7}[dataset]].values
        assert given == pytest.approx([np.mean(cell), np.std(cell, ddof=1), len(cell)], rel=1e-12)
    for method in ("gift", "lora", "linear"):
        expected = float(np.mean([np.mean(cell) for (m, _), cell in scores.items() if m == method]))
        assert rows_of(table)[method][-1].values[0] == pytest.approx(expected, rel=1e-12)
    ordered = mini_table(Request([*runs_of(SCORES), make("b_method"), make("a_method"), make("gift", "a_dataset")]))
    assert [row[0].text for row in ordered.rows] == ["Linear probing", "LoRA", "GIFT", "a_method", "b_method"]
    assert [c.title for c in ordered.columns[6:]] == ["Digits", "Tiny mammals", "a_dataset", "Mean"]


def test_the_number_of_seeds_is_in_the_caption_or_in_each_cell() -> None:
    one = mini_table(Request([make(top1=90.0)]))
    assert one.rows[0][6] == Cell("90.00", (90.0, None, 1))
    assert "one seed per cell (n = 1)" in one.caption
    assert mini_table(Request(runs_of(SCORES))) == mini_table(Request(runs_of(SCORES)[::-1]))
    mixed = mini_table(Request(runs_of({**SCORES, ("linear", "digits"): [88.0]})))
    assert "over the n seeds given in each cell" in mixed.caption
    assert not any(note.startswith("Seeds") for note in (*one.notes, *mixed.notes))
    other = mini_table(
        Request([make(method, seed=seed) for method, seed in (("gift", 0), ("gift", 1), ("lora", 10), ("lora", 11))])
    )
    assert other.notes[2:] == ("Seeds 0, 1: GIFT on Digits.", "Seeds 10, 11: LoRA on Digits.")
    assert rows_of(mixed)["gift"][6].text == "97.12 ± 1.07 (n=3)"
    assert rows_of(mixed)["linear"][6].text == "88.00 (n=1)"


def test_missing_cells_are_dashes_and_listed() -> None:
    scores = {k: v for k, v in SCORES.items() if k not in {("lora", "digits"), ("linear", "tiny_mammals")}}
    table = mini_table(Request(runs_of(scores)))
    rows = rows_of(table)
    assert rows["lora"][6] == Cell("–", (None, None, 0))
    assert rows["lora"][-1] == rows["linear"][-1] == Cell("–", (None,))
    assert rows["gift"][-1].text == "84.35"
    assert table.notes[2:] == ("Missing (–): Linear probing on Tiny mammals; LoRA on Digits.",)
    assert render_markdown(table).endswith(f"\n\n{table.notes[2]}\n")
    assert r"{\footnotesize Missing (--): Linear probing on Tiny mammals; LoRA on Digits.\par}" in render_latex(table)


def test_columns_that_are_asked_for() -> None:
    table = mini_table(Request(runs_of(SCORES), datasets=["digits", "tiny_insects", "tiny_vehicles"]))
    assert [c.title for c in table.columns[6:]] == ["Digits", "Tiny insects", "Tiny vehicles", "Mean"]
    assert all(row[7].text == row[8].text == row[9].text == "–" for row in table.rows)
    missing = "; ".join(f"{name} on Tiny insects, Tiny vehicles" for name in ("GIFT", "Linear probing", "LoRA"))
    assert table.notes[2:] == (f"Missing (–): {missing}.",)
    with pytest.raises(ConfigError, match=r"unknown dataset tiny_mamals in datasets= \(known: digits, .*, my_birds\)"):
        mini_table(Request([make(dataset="my_birds")], datasets=["my_birds", "tiny_mamals"]))
    with pytest.raises(ConfigError, match=r"unknown dataset my_brids in datasets= \(known: my_birds\)"):
        own_table(Request([make(), make(dataset="my_birds", run={"benchmark": "own"})], datasets=["my_birds", "my_brids"]))
    assert mini_table(Request([make(dataset="my_birds")], datasets=["my_birds"])).rows[0][6].text == "90.00"
    row = PublishedRow(Conditions("s", "", "", "fgvc", "", "", ""), "gift", "GIFT", (), {})
    with pytest.raises(ConfigError, match=r"nobody has published numbers of benchmark mini; drop published="):
        mini_table(Request([make()], published=[row]))


def test_adapter_columns() -> None:
    sizes = [("gift", "digits", 24_576, 102_400), ("gift", "tiny_mammals", 24_576, 204_800), ("linear", "digits", 0, 512)]
    sizes += [("full", dataset, 85_798_656, 343_194_624) for dataset in ("digits", "tiny_mammals")]
    params = {method: {"adapter": n, "percent": 100 * n / 85_798_656} for method, _, n, _ in sizes}
    rows = rows_of(
        mini_table(Request([make(method, d, params=params[method], adapter_bytes=size) for method, d, _, size in sizes]))
    )
    assert [cell.text for cell in rows["gift"][1:4]] == ["24,576", "0.0286", "100.0–200.0"]
    assert rows["gift"][3].values == (102_400, 204_800)
    assert [cell.text for cell in rows["full"][1:4]] == ["85,798,656", "100", "335,151.0"]
    assert [cell.text for cell in rows["linear"][1:4]] == ["0", "0", "0.5"]


def test_number_formats_are_noted() -> None:
    bf16 = {"trainer.precision": "bf16", "trainer.compile": True}
    assert mini_table(Request([make("gift", config=bf16), make("lora", config=bf16)])).notes[2:] == (
        "Computed in bf16, compiled: all runs.",
    )
    assert mini_table(Request([make("gift", config=bf16), make("lora")])).notes[2:] == (
        "Computed in bf16, compiled: GIFT on Digits.",
        "Computed in fp32: LoRA on Digits.",
    )


def test_what_else_differs_between_rows_is_noted() -> None:
    """With protocols of one's own, of which no changes are known, too; not what a search chose, or a method is."""
    other = {"trainer.epochs": 3, "optim.lr": 0.5, "trainer.precision": "bf16"}
    runs = [make("gift", config={"trainer.epochs": 15.0}), make("lora", config=other), make("lora", "cifar10_1k", config=other)]
    notes = [note for note in mini_table(Request(runs)).notes if note.startswith("Not the same")]
    assert notes == [
        "Not the same in every row: trainer.epochs 15 in GIFT on Digits.",
        "Not the same in every row: trainer.epochs 3 in LoRA on CIFAR-10 (1k), Digits.",
    ]
    changed = {"protocol_changes": {"trainer.epochs": [15, 3]}}
    runs = [make("gift", config={"trainer.epochs": 15}), make("lora", config=other, run=changed)]
    assert not [note for note in mini_table(Request(runs)).notes if note.startswith("Not the same")]
    by_epochs = mini_table(Request([make(seed=s, config={"trainer.epochs": s}) for s in (1, 2)], rows=["trainer.epochs"]))
    assert not [note for note in by_epochs.notes if note.startswith("Not the same")]


def test_pictures_in_two_splits_are_noted() -> None:
    leak = {"duplicates": {"shared": {"train, test": 1200, "val, test": 1}, "within": {}, "mislabelled": 0, "examples": {}}}
    none = {"duplicates": {"shared": {}, "within": {"test": 3}, "mislabelled": 1, "examples": {}}}
    runs = [make("gift", seed=0, data=leak), make("linear", seed=0, data=leak), make("gift", "tiny_insects", data=none)]
    notes = [note for note in mini_table(Request(runs)).notes if "two splits" in note]
    assert notes == ["Pictures that stand in two splits of Digits: 1,200 in train and test, 1 in val and test."]


def test_changes_to_the_protocol_and_uncommitted_runs_are_noted() -> None:
    epochs = {"protocol_changes": {"trainer.epochs": [100, 5], "optim.name": ["adamw", "sgd"]}}
    everywhere = mini_table(Request([make("gift", run=epochs), make("lora", run=epochs)]))
    assert everywhere.notes[2:] == (
        "Changed from the protocol: optim.name adamw → sgd in all runs.",
        "Changed from the protocol: trainer.epochs 100 → 5 in all runs.",
    )
    some = {"protocol_changes": {"trainer.epochs": [100, None]}, "git_dirty": True}
    partly = mini_table(Request([make("gift", run=some), make("gift", seed=1, run=some), make("lora")]))
    assert partly.notes[2:] == (
        "Changed from the protocol: trainer.epochs 100 → null in GIFT on Digits.",
        "Runs made with uncommitted changes: 2 of 3.",
    )
    runs = [make(seed=s, run={"git_sha": None if s == 0 else f"{s}" * 40}) for s in range(8)]
    listed = "111111111111, 222222222222, 333333333333, 444444444444, 555555555555 and 3 more"
    assert mini_table(Request(runs)).provenance == f"runs: 8; commits: {listed}"


def test_costs_are_multiples_of_the_references_on_the_same_data_and_machine() -> None:
    step = {("linear", "digits"): [50.0, 70.0, 54.0], ("gift", "digits"): [81.0, 108.0, 162.0], ("linear", "cub"): [1.0]}
    costs = [(*key, n, {"step_time_ms": ms, "peak_memory_mib": 10 * ms}) for key in step for n, ms in enumerate(step[key])]
    runs = [make(method, dataset, seed, cost=cost) for method, dataset, seed, cost in costs]
    others = [make("lora", env={"device": "cuda"}), make("bitfit", run={"config": {"trainer": {"memory": "lean"}}})]
    rows = rows_of(mini_table(Request([*runs, *others])))
    assert [cell.values[0] for cell in rows["gift"][4:6]] == [2.0, 2.0]  # medians 108 and 54
    assert [cell.text for method in ("lora", "bitfit") for cell in rows[method][4:6]] == ["–"] * 4
    alone = mini_table(Request(runs, method="gift"))
    assert rows_of(alone)["gift"] == rows["gift"][:6] + rows_of(alone)["gift"][6:]
    assert "device memory" in alone.notes[0]
    without = mini_table(Request([r for r in runs if r.run.method == "gift"]))
    assert without.notes[0] == "No run of linear probing: nothing to relate step time and peak memory to."
    assert rows_of(without)["gift"][4].text == "–"


def test_step_times_from_runs_of_their_own() -> None:
    finals = [make("linear"), make("gift", cost={"step_time_ms": 800.0, "peak_rss_mib": 7.0})]
    times = [("linear", 100.0), ("linear", 110.0), ("linear", 90.0), ("gift", 150.0), ("gift", 180.0), ("gift", 900.0)]
    costs = [(method, {"step_time_ms": ms, "peak_rss_mib": 3 * ms + 30}) for method, ms in times]
    timing = [make(method, cost=cost, run={"phase": "search"}) for method, cost in costs]
    table = mini_table(Request(finals, timing=timing))
    assert [cell.values[0] for cell in rows_of(table)["gift"][4:6]] == [1.8, pytest.approx(570 / 330)]
    assert table.notes[0].endswith("These are 6 short runs apart from those of the scores, made in turns.")
    ablation = mini_table(Request(finals, method="gift", rows=["method.rank"], timing=timing))
    assert ablation.rows[0][4].values == (1.8,)
    assert mini_table(Request([*finals, make("lora")], timing=timing)).rows[1][4].text == "–"


def test_step_times_are_those_of_the_datasets_shown() -> None:
    costs = [("linear", "digits", 10.0), ("gift", "digits", 20.0), ("linear", "tiny_birds", 10.0), ("gift", "tiny_birds", 90.0)]
    runs = [make(method, dataset, cost={"step_time_ms": ms, "peak_rss_mib": ms}) for method, dataset, ms in costs]
    for timing in ([], runs):
        table = mini_table(Request(runs, ["digits"], timing=timing))
        assert [cell.values for cell in rows_of(table)["gift"][4:6]] == [(2.0,), (2.0,)]
    assert "These are 2 short runs apart" in table.notes[0]


def test_times_of_runs_that_an_older_version_trained_together_are_nobodys() -> None:
    together = {"env": {"device": "cuda", "parallel_runs": 3}, "cost": {"step_time_ms": 900.0, "peak_memory_mib": 9000.0}}
    alone = [make(method, env={"device": "cuda"}) for method in ("linear", "gift")]
    table = mini_table(Request([*alone, make("gift", seed=1, **together), make("lora", **together)]))
    assert [cell.text for method in ("gift", "lora") for cell in rows_of(table)[method][4:6]] == ["1.00", "1.00", "–", "–"]
    assert table.notes[1].startswith("Without 2 runs that were trained together with others")
    assert gpu_memory_cell([make(**together)]).text == "–"


def test_a_value_that_is_called_as_a_method_is_shown_as_it_is() -> None:
    runs = [make(top1=90.0, config={"method.schema": schema}) for schema in ("linear", "full")]
    table = mini_table(Request(runs, rows=["method.name", "method.schema"], compare=["gift, linear", "gift, full"]))
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [["GIFT", "full"], ["GIFT", "linear"]]
    assert any(note.startswith("GIFT, linear against GIFT, full: ") for note in table.notes)


def test_an_ablation_has_the_values_of_its_keys_as_rows() -> None:
    ranks = [make(config={"method.rank": rank}, top1=float(rank), run={"name": str(rank)}) for rank in (16, 2)]
    table = mini_table(Request([*ranks, make("linear")], method="gift", rows=["method.rank", "method.target_modules"]))
    assert [c.title for c in table.columns[:2]] == ["Rank", "Target modules"]
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [["2", "attn.proj"], ["16", "attn.proj"]]
    assert table.caption.startswith("Mini benchmark, GIFT: ")
    assert render_csv(table).startswith("method_rank,method_target_modules,adapter_params_min,")


MARKDOWN = f"""\
<!-- runs: 18; commits: 0123456789ab -->
Mini benchmark: test top-1 in percent, mean ± sample standard deviation over n = 3 seeds. \
Protocol clean, backbone vit_mini. Last column: mean over the datasets shown (2).

| Method | Adapter: Parameters | Adapter: % of backbone | Adapter: KiB with head | Relative to linear probing: Step time \
| Relative to linear probing: Peak memory | Test top-1 (%): Digits | Test top-1 (%): Tiny mammals | Test top-1 (%): Mean |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| Linear probing | 6,144 | 0.228 | 10.0 | 1.00 | 1.00 | 87.50 ± 0.50 | 60.17 ± 0.76 | 73.83 |
| LoRA | 6,144 | 0.228 | 10.0 | 1.50 | 1.00 | 96.42 ± 0.63 | **73.25 ± 1.25** | **84.83** |
| GIFT | 6,144 | 0.228 | 10.0 | 1.00 | 2.00 | **97.12 ± 1.07** | 71.58 ± 1.38 | 84.35 |

{COST_NOTE}

{ERROR_NOTE.format("Digits 1.68, ")}
"""
LATEX = (
    r"""% runs: 9; commits: 0123456789ab
% needs the packages booktabs and graphicx
\begin{table}
\centering
\caption{Mini benchmark: test top-1 in percent, mean $\pm$ sample standard deviation over n = 3 seeds. %%
Protocol clean, backbone vit\_mini. Last column: mean over the datasets shown (1).}
\smallskip
\resizebox{\linewidth}{!}{%
\begin{tabular}{lrrrrrrr}
\toprule
\multicolumn{1}{c}{} & \multicolumn{3}{c}{Adapter} & \multicolumn{2}{c}{Relative to linear probing} & %%
\multicolumn{2}{c}{Test top-1 (\%)} \\
\cmidrule(lr){2-4}\cmidrule(lr){5-6}\cmidrule(lr){7-8}
Method & Parameters & \% of backbone & KiB with head & Step time & Peak memory & Tiny mammals & Mean \\
\midrule
Linear probing & 6,144 & 0.228 & 10.0 & 1.00 & 1.00 & 60.17 {\scriptsize $\pm$ 0.76} & 60.17 \\
LoRA & 6,144 & 0.228 & 10.0 & 1.50 & 1.00 & \textbf{73.25} {\scriptsize $\pm$ 1.25} & \textbf{73.25} \\
GIFT & 6,144 & 0.228 & 10.0 & 1.00 & 2.00 & \underline{71.58} {\scriptsize $\pm$ 1.38} & \underline{71.58} \\
\bottomrule
\end{tabular}
}
\par\smallskip {\footnotesize COST_NOTE\par}
\par\smallskip {\footnotesize ERROR_NOTE\par}
\end{table}
""".replace("%%\n", "")
    .replace("COST_NOTE", COST_NOTE)
    .replace("ERROR_NOTE", ERROR_NOTE.format(""))
)


def test_markdown_and_latex() -> None:
    cost = {"gift": {"peak_rss_mib": 1801.0}, "lora": {"step_time_ms": 120.0}, "linear": {}}
    runs = [make(m, d, s, top1, cost=cost[m]) for (m, d), top1s in SCORES.items() for s, top1 in enumerate(top1s)]
    assert render_markdown(mini_table(Request(runs))) == MARKDOWN
    assert render_latex(mini_table(Request(runs, ["tiny_mammals"]))) == LATEX
    assert LATEX.isascii()


def test_labels_are_escaped() -> None:
    latex = render_latex(mini_table(Request([make("my_method&co", "50%_off")])))
    assert [text in latex for text in (r"my\_method\&co &", r"50\%\_off", r"backbone vit\_mini")] == [True] * 3
    assert latex.isascii()
    table = Table("c", "p", (Column("a|b", "", ("x",)),), ((Cell("c|d", ("c|d",)),),), ())
    assert {r"| a\|b |", r"| c\|d |"} <= set(render_markdown(table).splitlines())
    assert not re.search("multicolumn|cmidrule", render_latex(table)), "without groups"


def test_labels_end_no_cell_and_are_no_code() -> None:
    names = ["a\nb|c", "<img src=x onerror=alert(1)>", "=HYPERLINK(1)", "+1", "-1", "@x", "plain"]
    rows = tuple((Cell(name, (name,)),) for name in names)
    table = Table("cap\n<b>", "from -->x", (Column("t", "", ("=t",)),), rows, ("note <i>\nx",))
    lines = render_markdown(table).splitlines()
    assert lines[:2] == ["<!-- from - -&gt;x -->", "cap &lt;b&gt;"]
    assert lines[5:7] == [r"| a b\|c |", "| &lt;img src=x onerror=alert(1)&gt; |"]
    assert lines[-1] == "note &lt;i&gt; x"
    assert all(line.count("\\\\") == 1 for line in render_latex(table).splitlines() if "HYPERLINK" in line or "a b" in line)
    read = [row[0] for row in csv.reader(io.StringIO(render_csv(table)))]
    assert read == ["'=t", "a\nb|c", names[1], "'=HYPERLINK(1)", "'+1", "'-1", "'@x", "plain"]


def test_equal_as_printed_shares_a_mark() -> None:
    scores = {"gift": 90.001, "lora": 90.004, "bitfit": 85.0, "full": 84.996, "linear": 60.0}
    table = mini_table(Request([make(method, top1=top1) for method, top1 in scores.items()]))
    latex, markdown = render_latex(table), render_markdown(table)
    assert latex.count(r"\textbf{90.00}") == latex.count(r"\underline{85.00}") == 4  # two methods, dataset and mean
    assert (markdown.count("**90.00**"), markdown.count("**")) == (4, 8)


def test_csv_holds_labels_and_unrounded_numbers() -> None:
    scores = {k: v for k, v in SCORES.items() if k != ("lora", "digits")}
    text = render_csv(mini_table(Request(runs_of(scores))))
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(rows) == ["linear", "lora", "gift"]
    top1 = SCORES["gift", "digits"]
    told = [float(rows["gift"][f"digits_{name}"]) for name in ("mean", "std")]
    assert told == pytest.approx([np.mean(top1), np.std(top1, ddof=1)], rel=1e-12)
    assert (rows["gift"]["digits_n"], rows["gift"]["adapter_bytes_max"]) == ("3", "10240")
    assert [rows["lora"][k] for k in ("digits_mean", "digits_std", "digits_n", "datasets_mean")] == ["", "", "0", ""]
