"""Statistics against numpy, marks, dashes and notes, and the three formats."""

import csv
import io
import re
from collections.abc import Callable

import numpy as np
import pytest

from gift_vit.errors import ConfigError
from gift_vit.results.cells import gpu_memory_cell
from gift_vit.results.collect import collect_results
from gift_vit.results.published import Conditions, PublishedRow
from gift_vit.results.schema import Result
from gift_vit.results.tables import RENDERERS, Cell, Column, Table, mini_table, render_csv, render_latex, render_markdown

Make = Callable[..., Result]

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


def runs_of(make: Make, scores: dict[tuple[str, str], list[float]], **kwargs: object) -> list[Result]:
    return [make(m, d, seed, top1=top1, **kwargs) for (m, d), cell in scores.items() for seed, top1 in enumerate(cell)]


def rows_of(table: Table) -> dict[str, tuple[Cell, ...]]:
    return {str(row[0].values[0]): row for row in table.rows}


def column(table: Table, title: str) -> int:
    return [c.title for c in table.columns].index(title)


def test_statistics_equal_numpys(make: Make) -> None:
    rng = np.random.default_rng(0)
    scores = {key: list(rng.uniform(0, 100, size=rng.integers(2, 7))) for key in SCORES}
    table = mini_table(runs_of(make, scores))
    names = {"digits": "Digits", "tiny_mammals": "Tiny mammals"}
    for (method, dataset), cell in scores.items():
        given = np.array(rows_of(table)[method][column(table, names[dataset])].values, dtype=float)
        np.testing.assert_allclose(given, np.array([np.mean(cell), np.std(cell, ddof=1), len(cell)]), rtol=1e-12)
    for method in ("gift", "lora", "linear"):
        expected = float(np.mean([np.mean(cell) for (m, _), cell in scores.items() if m == method]))
        assert rows_of(table)[method][-1].values[0] == pytest.approx(expected, rel=1e-12)


def test_order_of_rows_and_columns(make: Make) -> None:
    table = mini_table([*runs_of(make, SCORES), make("a_method"), make("gift", "a_dataset")])
    assert [row[0].text for row in table.rows] == ["Linear probing", "LoRA", "GIFT", "a_method"]
    assert [c.title for c in table.columns[6:]] == ["Digits", "Tiny mammals", "a_dataset", "Mean"]


def test_result_does_not_depend_on_the_order_of_runs(make: Make) -> None:
    runs = runs_of(make, SCORES)
    assert mini_table(runs) == mini_table(runs[::-1])


def test_one_seed_has_no_deviation(make: Make) -> None:
    table = mini_table([make(top1=90.0)])
    assert table.rows[0][6] == Cell("90.00", (90.0, None, 1))
    assert "one seed per cell (n = 1)" in table.caption
    assert "±" not in render_markdown(table)


def test_n_stands_in_the_caption_or_in_each_cell(make: Make) -> None:
    same = mini_table(runs_of(make, SCORES))
    assert "mean ± sample standard deviation over n = 3 seeds" in same.caption
    assert rows_of(same)["gift"][6].text == "97.12 ± 1.07"
    mixed = mini_table(runs_of(make, {**SCORES, ("linear", "digits"): [88.0]}))
    assert "over the n seeds given in each cell" in mixed.caption
    assert rows_of(mixed)["gift"][6].text == "97.12 ± 1.07 (n=3)"
    assert rows_of(mixed)["linear"][6].text == "88.00 (n=1)"


def test_caption_names_protocol_backbone_and_datasets(make: Make) -> None:
    table = mini_table(runs_of(make, SCORES))
    assert "Protocol clean, backbone vit_mini. Last column: mean over the datasets shown (2)." in table.caption
    assert table.provenance == "runs: 18; commits: 0123456789ab"
    assert table.notes == (COST_NOTE,)


def test_missing_cells_are_dashes_and_listed(make: Make) -> None:
    scores = {k: v for k, v in SCORES.items() if k not in {("lora", "digits"), ("linear", "tiny_mammals")}}
    table = mini_table(runs_of(make, scores))
    rows = rows_of(table)
    assert rows["lora"][column(table, "Digits")] == Cell("–", (None, None, 0))
    assert rows["lora"][-1] == rows["linear"][-1] == Cell("–", (None,))
    assert rows["gift"][-1].text == "84.35"
    assert table.notes[1:] == ("Missing (–): Linear probing on Tiny mammals; LoRA on Digits.",)
    assert render_markdown(table).endswith("\n\nMissing (–): Linear probing on Tiny mammals; LoRA on Digits.\n")
    latex = render_latex(table)
    assert r"{\footnotesize Missing (--): Linear probing on Tiny mammals; LoRA on Digits.\par}" in latex


def test_a_dataset_asked_for_without_runs_is_missing_everywhere(make: Make) -> None:
    table = mini_table(runs_of(make, SCORES), datasets=["digits", "tiny_insects", "tiny_vehicles"])
    assert [c.title for c in table.columns[6:]] == ["Digits", "Tiny insects", "Tiny vehicles", "Mean"]
    assert all(row[7].text == row[8].text == row[9].text == "–" for row in table.rows)
    missing = "; ".join(f"{name} on Tiny insects, Tiny vehicles" for name in ("GIFT", "Linear probing", "LoRA"))
    assert table.notes[1:] == (f"Missing (–): {missing}.",)


def test_a_misspelt_dataset_is_no_column_of_dashes(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset tiny_mamals in datasets= \(known: digits, .*, my_birds\)"):
        mini_table([make(dataset="my_birds")], datasets=["my_birds", "tiny_mamals"])
    assert mini_table([make(dataset="my_birds")], datasets=["my_birds"]).rows[0][6].text == "90.00"


def test_published_numbers_of_mini_are_refused(make: Make) -> None:
    row = PublishedRow(Conditions("s", "", "", "fgvc", "", "", ""), "gift", "GIFT", (), {})
    with pytest.raises(ConfigError, match=r"nobody has published numbers of benchmark mini; drop published="):
        mini_table([make()], published=[row])


def test_adapter_columns(make: Make) -> None:
    runs = [
        make("gift", "digits", params={"adapter": 24_576, "percent": 100 * 24_576 / 85_798_656}, adapter_bytes=102_400),
        make("gift", "tiny_mammals", params={"adapter": 24_576, "percent": 100 * 24_576 / 85_798_656}, adapter_bytes=204_800),
        make("full", "digits", params={"adapter": 85_798_656, "percent": 100.0}, adapter_bytes=343_194_624),
        make("full", "tiny_mammals", params={"adapter": 85_798_656, "percent": 100.0}, adapter_bytes=343_194_624),
        make("linear", "digits", params={"adapter": 0, "percent": 0.0}, adapter_bytes=512),
    ]
    rows = rows_of(mini_table(runs))
    assert [cell.text for cell in rows["gift"][1:4]] == ["24,576", "0.0286", "100.0–200.0"]
    assert rows["gift"][3].values == (102_400, 204_800)
    assert [cell.text for cell in rows["full"][1:4]] == ["85,798,656", "100", "335,151.0"]
    assert [cell.text for cell in rows["linear"][1:4]] == ["0", "0", "0.5"]


def test_changes_to_the_protocol_and_uncommitted_runs_are_noted(make: Make) -> None:
    epochs = {"protocol_changes": {"trainer.epochs": [100, 5], "optim.name": ["adamw", "sgd"]}}
    everywhere = mini_table([make("gift", run=epochs), make("lora", run=epochs)])
    assert everywhere.notes[1:] == (
        "Changed from the protocol: optim.name adamw → sgd in all runs.",
        "Changed from the protocol: trainer.epochs 100 → 5 in all runs.",
    )
    some = {"protocol_changes": {"trainer.epochs": [100, None]}, "git_dirty": True}
    partly = mini_table([make("gift", run=some), make("gift", seed=1, run=some), make("lora")])
    assert partly.notes[1:] == (
        "Changed from the protocol: trainer.epochs 100 → null in GIFT on Digits.",
        "Runs made with uncommitted changes: 2 of 3.",
    )


def test_provenance_lists_commits(make: Make) -> None:
    runs = [make(seed=s, run={"git_sha": None if s == 0 else f"{s}" * 40}) for s in range(8)]
    expected = "runs: 8; commits: 111111111111, 222222222222, 333333333333, 444444444444, 555555555555 and 3 more"
    assert mini_table(runs).provenance == expected


def test_costs_are_multiples_of_the_references_on_the_same_data_and_machine(make: Make) -> None:
    step = {
        ("linear", "digits"): [50.0, 70.0, 54.0],
        ("gift", "digits"): [81.0, 108.0, 162.0],
        ("linear", "tiny_mammals"): [1.0],
    }
    runs = [
        make(method, dataset, seed, cost={"step_time_ms": ms, "peak_memory_mib": 10 * ms, "peak_rss_mib": 1.0})
        for (method, dataset), cell in step.items()
        for seed, ms in enumerate(cell)
    ]
    elsewhere = make("lora", env={"device": "cuda"})
    leaner = make("bitfit", run={"config": {"trainer": {"memory": "lean"}}})
    rows = rows_of(mini_table([*runs, elsewhere, leaner]))
    assert [cell.values[0] for cell in rows["gift"][4:6]] == [2.0, 2.0]  # medians 108 and 54
    assert [cell.text for method in ("lora", "bitfit") for cell in rows[method][4:6]] == ["–"] * 4
    alone = mini_table(runs, method="gift")
    assert rows_of(alone)["gift"] == rows["gift"][:6] + rows_of(alone)["gift"][6:]
    assert "device memory" in alone.notes[0]
    without = mini_table([r for r in runs if r.run.method == "gift"])
    assert without.notes[0] == "No run of linear probing: nothing to relate step time and peak memory to."
    assert rows_of(without)["gift"][4].text == "–"


def test_step_times_from_runs_of_their_own(make: Make) -> None:
    finals = [make("linear"), make("gift", cost={"step_time_ms": 800.0, "peak_rss_mib": 7.0})]
    timing = [
        make(method, seed=seed, top1=None, run={"phase": "search"}, cost={"step_time_ms": ms, "peak_rss_mib": 3 * ms + 30})
        for method, times in {"linear": (100.0, 110.0, 90.0), "gift": (150.0, 180.0, 900.0)}.items()
        for seed, ms in enumerate(times)
    ]
    table = mini_table(finals, timing=timing)
    assert [cell.values[0] for cell in rows_of(table)["gift"][4:6]] == [1.8, pytest.approx(570 / 330)]
    assert table.notes[0].endswith("These are 6 short runs apart from those of the scores, made in turns.")
    ablation = mini_table(finals, method="gift", rows=["method.rank"], timing=timing)
    assert ablation.rows[0][4].values == (1.8,)
    assert mini_table([*finals, make("lora")], timing=timing).rows[1][4].text == "–"


def test_times_of_runs_that_were_trained_together_are_nobodys(make: Make) -> None:
    env = {"device": "cuda", "parallel_runs": 3}
    slow = {"step_time_ms": 900.0, "peak_memory_mib": 9000.0}
    own = {"device": "cuda"}
    runs = [
        make("linear", env=own),
        make("gift", env=own),
        make("gift", seed=1, env=env, cost=slow),
        make("lora", env=env, cost=slow),
    ]
    table = mini_table(runs)
    assert [cell.text for cell in rows_of(table)["gift"][4:6]] == ["1.00", "1.00"]
    assert [cell.text for cell in rows_of(table)["lora"][4:6]] == ["–", "–"]
    assert table.notes[1].startswith("Without 2 runs that were trained together with others")
    assert gpu_memory_cell(runs[2:]).text == "–"
    assert runs[0].trained_alone
    assert not runs[2].trained_alone


def test_an_ablation_has_the_values_of_its_keys_as_rows(make: Make) -> None:
    ranks = [make(config={"method.rank": rank}, top1=float(rank), run={"name": str(rank)}) for rank in (16, 2)]
    table = mini_table([*ranks, make("linear")], method="gift", rows=["method.rank", "method.target_modules"])
    assert [c.title for c in table.columns[:2]] == ["Rank", "Target modules"]
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [["2", "attn.proj"], ["16", "attn.proj"]]
    assert table.caption.startswith("Mini benchmark, GIFT: ")
    assert render_csv(table).startswith("method_rank,method_target_modules,adapter_params_min,")


MARKDOWN = """\
<!-- runs: 3; commits: 0123456789ab -->
Mini benchmark: test top-1 in percent, one seed per cell (n = 1). Protocol clean, backbone vit_mini. \
Last column: mean over the datasets shown (1).

| Method | Adapter: Parameters | Adapter: % of backbone | Adapter: KiB with head | Relative to linear probing: Step time \
| Relative to linear probing: Peak memory | Test top-1 (%): Digits | Test top-1 (%): Mean |
|---|---:|---:|---:|---:|---:|---:|---:|
| Linear probing | 6,144 | 0.228 | 10.0 | 1.00 | 1.00 | 80.00 | 80.00 |
| LoRA | 6,144 | 0.228 | 10.0 | 1.50 | 1.00 | 85.00 | 85.00 |
| GIFT | 6,144 | 0.228 | 10.0 | 1.00 | 2.00 | **90.00** | **90.00** |

Step time and peak memory (memory of the whole process): multiples of those of linear probing on the same dataset, \
median over runs; measured on cpu (2 threads).
"""


def test_markdown(make: Make) -> None:
    runs = [
        make("gift", top1=90.0, cost={"peak_rss_mib": 1801.0}),
        make("lora", top1=85.0, cost={"step_time_ms": 120.0}),
        make("linear", top1=80.0),
    ]
    assert render_markdown(mini_table(runs)) == MARKDOWN


def test_latex_is_a_booktabs_table_with_marks(make: Make) -> None:
    latex = render_latex(mini_table(runs_of(make, SCORES)))
    lines = latex.splitlines()
    assert lines[0].startswith("% runs: 18;")
    for command in (
        "toprule",
        "midrule",
        "bottomrule",
        "begin{tabular}{lrrrrrrrr}",
        "end{tabular}",
        "begin{table}",
        "end{table}",
    ):
        assert sum(line.startswith(f"\\{command}") for line in lines) == 1, command
    assert latex.count("{") == latex.count("}")
    assert latex.count("$") % 2 == 0
    groups = (
        r"\multicolumn{3}{c}{Adapter}",
        r"\multicolumn{2}{c}{Relative to linear probing}",
        r"\multicolumn{3}{c}{Test top-1 (\%)}",
    )
    assert rf"\multicolumn{{1}}{{c}}{{}} & {' & '.join(groups)} \\" in lines
    assert r"\cmidrule(lr){2-4}\cmidrule(lr){5-6}\cmidrule(lr){7-9}" in lines
    titles = r"Method & Parameters & \% of backbone & KiB with head & Step time & Peak memory & Digits & Tiny mammals & Mean \\"
    assert titles in lines
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert [line.count(" & ") for line in body] == [8, 8, 8]
    assert all(line.endswith(r" \\") for line in body)
    cost = "6,144 & 0.228 & 10.0 & 1.00 & 1.00 & "
    small = r"{{\scriptsize $\pm$ {}}}".format
    lora = rf"\underline{{96.42}} {small('0.63')} & \textbf{{73.25}} {small('1.25')} & \textbf{{84.83}} \\"
    gift = rf"\textbf{{97.12}} {small('1.07')} & \underline{{71.58}} {small('1.38')} & \underline{{84.35}} \\"
    assert body[1:] == [f"LoRA & {cost}{lora}", f"GIFT & {cost}{gift}"]
    assert "textbf" not in body[0]
    assert "underline" not in body[0]
    assert latex.isascii()


def test_latex_escapes_labels(make: Make) -> None:
    latex = render_latex(mini_table([make("my_method&co", "50%_off")]))
    assert r"my\_method\&co &" in latex
    assert r"50\%\_off" in latex
    assert r"backbone vit\_mini" in latex
    assert latex.isascii()


def test_equal_as_printed_shares_a_mark(make: Make) -> None:
    scores = {"gift": 90.001, "lora": 90.004, "bitfit": 85.0, "full": 84.996, "linear": 60.0}
    table = mini_table([make(method, top1=top1) for method, top1 in scores.items()])
    latex, markdown = render_latex(table), render_markdown(table)
    assert len(re.findall(r"\\textbf\{90\.00\}", latex)) == 4  # two methods, dataset and mean
    assert len(re.findall(r"\\underline\{85\.00\}", latex)) == 4
    assert markdown.count("**90.00**") == 4
    assert markdown.count("**") == 8


def test_markdown_escapes_bars() -> None:
    table = Table("c", "p", (Column("a|b", "", ("x",)),), ((Cell("c|d", ("c|d",)),),), ())
    assert r"| a\|b |" in render_markdown(table)
    assert r"| c\|d |" in render_markdown(table)


def test_a_table_without_groups_has_no_group_row() -> None:
    table = Table(
        "c", "p", (Column("a", "", ("a",)), Column("b", "", ("b",), True)), ((Cell("m", ("m",)), Cell("1.0", (1.0,))),), ()
    )
    latex = render_latex(table)
    assert "multicolumn" not in latex
    assert "cmidrule" not in latex
    assert r"m & \textbf{1.0} \\" in latex


def test_csv_holds_labels_and_unrounded_numbers(make: Make) -> None:
    scores = {k: v for k, v in SCORES.items() if k != ("lora", "digits")}
    text = render_csv(mini_table(runs_of(make, scores)))
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(rows) == ["linear", "lora", "gift"]
    assert float(rows["gift"]["digits_mean"]) == pytest.approx(np.mean(SCORES["gift", "digits"]), rel=1e-15)
    assert float(rows["gift"]["digits_std"]) == pytest.approx(np.std(SCORES["gift", "digits"], ddof=1), rel=1e-12)
    assert (rows["gift"]["digits_n"], rows["gift"]["adapter_bytes_max"]) == ("3", "10240")
    assert [rows["lora"][k] for k in ("digits_mean", "digits_std", "digits_n", "datasets_mean")] == ["", "", "0", ""]


def test_formats() -> None:
    assert list(RENDERERS) == ["markdown", "latex", "csv"]


def test_files_and_memory_give_the_same_table(make: Make, stored: Callable[..., Result], tmp_path) -> None:
    for (method, dataset), cell in SCORES.items():
        for seed, top1 in enumerate(cell):
            stored(f"final/{dataset}/{method}/vit_mini/seed{seed}", method=method, dataset=dataset, seed=seed, top1=top1)
    assert mini_table(collect_results(tmp_path / "outputs")) == mini_table(runs_of(make, SCORES))
