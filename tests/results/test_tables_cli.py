"""python -m experiments.tables: output, files, and one line with exit code 2 for every mistake."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from experiments import tables
from gift_vit.results.collect import collect_results
from gift_vit.results.mini import mini_table
from gift_vit.results.paper import fgvc_table
from gift_vit.results.render import render_csv, render_latex, render_markdown
from gift_vit.results.request import Request
from gift_vit.runs.result import Result
from tests.results.conftest import exit_code, refused
from tests.results.conftest import make_result as make

Stored = Callable[..., Result]
main = partial(exit_code, tables.main)


@pytest.fixture
def root(stored: Stored, tmp_path: Path) -> Path:
    stored("final/gift0", seed=0, top1=90.0)
    stored("final/gift1", seed=1, top1=92.0)
    stored("final/lora", method="lora", top1=88.0)
    stored("final/other", dataset="cub", run={"benchmark": "fgvc", "protocol": "gift_paper"})
    stored("search/gift0", run={"phase": "search", "protocol": "gift_paper"})
    return tmp_path / "outputs"


def test_prints_and_writes_each_format(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make(seed=0, top1=90.0), make(seed=1, top1=92.0), make("lora", top1=88.0)]
    assert main(f"root={root}") == 0
    assert capsys.readouterr().out == render_markdown(mini_table(Request(runs)))
    file = tmp_path / "new" / "mini.tex"
    assert main(f"root={root}", "format=latex", f"out={file}") == 0
    assert file.read_text() == capsys.readouterr().out == render_latex(mini_table(Request(runs)))
    assert main(f"root={root}", "format=csv", "datasets=[digits,tiny_mammals]", "compare=[gift,lora]") == 0
    out, notes = capsys.readouterr()
    assert out == render_csv(mini_table(Request(runs, ["digits", "tiny_mammals"])))
    assert "Missing (–): GIFT on Tiny mammals; LoRA on Tiny mammals." in notes, "the file has no place for it"
    assert "GIFT against LoRA" in notes


def test_protocol_chooses_among_several(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("final/paper", method="lora", seed=1, run={"protocol": "gift_paper"})
    assert "would mix protocol clean and gift_paper" in refused(main, capsys, f"root={root}")
    assert main(f"root={root}", "protocol=gift_paper") == 0
    assert "runs: 1;" in capsys.readouterr().out
    told = refused(main, capsys, f"root={root}", "protocol=gift_papers")
    assert "no finished run of gift_papers; did you mean gift_paper? (there are: clean, gift_paper)" in told
    assert "no finished run of eva02 (there are: vit_mini)" in refused(main, capsys, f"root={root}", "backbone=eva02")


def test_an_ablation_from_two_folders(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("../ablation/gift", config={"method.rank": 2})
    words = [f"root=[{root},{root.parent / 'ablation'}]", "method=gift", "rows=[method.rank]", "format=csv"]
    assert main(*words) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == ["method_rank", "2", "16"]


def test_fgvc_beside_published_numbers(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("final/other2", method="lora", dataset="cub", run={"benchmark": "fgvc", "protocol": "gift_paper"})
    words = [f"root={root}", "benchmark=fgvc", "compare=[gift,lora]"]
    assert main(*words) == 0
    plain = capsys.readouterr().out
    assert plain == render_markdown(fgvc_table(Request(collect_results(root), compare=["gift", "lora"])))
    assert "GIFT against LoRA: they have 1 of the 5 datasets in common" in plain
    assert "Published" not in plain
    gift = "GIFT arXiv 2312.00700 v2-v4 [1]"
    bench = {"toast": ["TOAST README (ViT-B IN-1k!) [1]"], "[gift,vpetl_bench]": [gift, "V-PETL Bench README [2]"]}
    for given, titles in {"true": [gift], **bench}.items():
        assert main(*words, f"published={given}") == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "*Published" in line]
        assert lines == [f"| *Published: {title}* |{'  |' * 8}" for title in titles]
    assert main(*words, "published=false") == 0
    assert capsys.readouterr().out == plain


def test_other_spellings(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("final/vtab", dataset="vtab_dtd", run={"benchmark": "vtab1k"})
    assert main(f"root={root}", "benchmark=vtab1k", "format=csv") == 0
    plain = capsys.readouterr().out
    for words in (["benchmark=vtab", "--format", "csv"], ["--benchmark", "vtab", "--format=csv"]):
        assert main("--root", str(root), *words) == 0
        printed, said = capsys.readouterr()
        assert printed == plain
        assert "Missing (–): GIFT on CIFAR-100, Caltech101, Flowers102," in said


MISTAKES = [
    (["format=pdf"], "unknown format 'pdf' (known: markdown, latex, csv)"),
    (["benchmark=fgv"], "unknown benchmark 'fgv'; did you mean fgvc? (known: fgvc, vtab1k, mini, "),
    (["benchmark=vtab"], "no finished final run of benchmark vtab1k among 5 results"),
    (["published=true"], "no published numbers of gift on benchmark mini (it has no published numbers at all)"),
    (["latex"], "error: unexpected argument 'latex'"),
    (["--format"], "error: unexpected argument '--format'"),
    (["--formt", "csv"], "error: unexpected argument 'formt=csv': expected root=…, benchmark=…"),
    (["root=no/where"], "no folder no/where; pass root=<folder with the runs>"),
    (["method=gfit"], "method: no finished run of gfit; did you mean gift? (there are: gift, lora)"),
    (["backbone=vit_b16"], "backbone: no finished run of vit_b16 (there are: vit_mini)"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake(root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(main, capsys, f"root={root}", f"out={root}/mini.md", *arguments)
    assert not (root / "mini.md").exists()


def test_a_column_that_is_named_twice_is_one() -> None:
    assert tables.TablesConfig(columns=["top5", "ece", "top5"]).columns == ["top5", "ece"]
