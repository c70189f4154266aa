"""python -m experiments.tables: output, files, and one line with exit code 2 for every mistake."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from experiments import tables
from gift_vit.results.collect import collect_results
from gift_vit.results.schema import Result
from gift_vit.results.tables import fgvc_table, mini_table, render_csv, render_latex, render_markdown

Stored = Callable[..., Result]


def main(words: list[str]) -> int:
    """The command with these words; its exit code."""
    with patch.object(sys, "argv", ["tables", *words]), pytest.raises(SystemExit) as stopped:
        tables.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def root(stored: Stored, tmp_path: Path) -> Path:
    stored("final/gift0", seed=0, top1=90.0)
    stored("final/gift1", seed=1, top1=92.0)
    stored("final/lora", method="lora", top1=88.0)
    stored("final/other", dataset="cub", run={"benchmark": "fgvc", "protocol": "gift_paper"})
    stored("search/gift0", top1=None, run={"phase": "search", "protocol": "gift_paper"})
    return tmp_path / "outputs"


def runs(make: Stored) -> list[Result]:
    return [make(seed=0, top1=90.0), make(seed=1, top1=92.0), make("lora", top1=88.0)]


def test_prints_markdown_by_default(root: Path, make: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"root={root}"]) == 0
    assert capsys.readouterr().out == render_markdown(mini_table(runs(make)))


def test_writes_latex(root: Path, make: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "mini.tex"
    assert main([f"root={root}", "format=latex", f"out={out}"]) == 0
    assert out.read_text() == capsys.readouterr().out == render_latex(mini_table(runs(make)))


def test_csv_is_clean_and_its_notes_go_to_stderr(root: Path, make: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"root={root}", "format=csv", "datasets=[digits,tiny_mammals]"]) == 0
    captured = capsys.readouterr()
    assert captured.out == render_csv(mini_table(runs(make), ["digits", "tiny_mammals"]))
    assert "Missing (–): GIFT on Tiny mammals; LoRA on Tiny mammals." in captured.err


def test_protocol_chooses_among_several(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("final/paper", method="lora", seed=1, run={"protocol": "gift_paper"})
    assert main([f"root={root}"]) == 2
    assert "would mix protocol clean and gift_paper" in capsys.readouterr().err
    assert main([f"root={root}", "protocol=gift_paper"]) == 0
    assert "runs: 1;" in capsys.readouterr().out


def test_an_ablation_from_two_folders(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("../ablation/gift", config={"method.rank": 2}, run={"name": "r2"})
    words = [f"root=[{root},{root.parent / 'ablation'}]", "method=gift", "rows=[method.rank]", "format=csv"]
    assert main(words) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == ["method_rank", "2", "16"]


def test_fgvc_beside_published_numbers(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("final/other2", method="lora", dataset="cub", run={"benchmark": "fgvc", "protocol": "gift_paper"})
    words = [f"root={root}", "benchmark=fgvc", "compare=[gift,lora]"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert plain == render_markdown(fgvc_table(collect_results(root), compare=["gift", "lora"]))
    assert "GIFT against LoRA: they have 1 of the 5 datasets in common" in plain
    assert "Published" not in plain
    for given, titles in (
        ("true", ["GIFT arXiv 2312.00700 v2-v4 [1]"]),
        ("toast", ["TOAST README (ViT-B IN-1k!) [1]"]),
        ("[gift,vpetl_bench]", ["GIFT arXiv 2312.00700 v2-v4 [1]", "V-PETL Bench README [2]"]),
    ):
        assert main([*words, f"published={given}"]) == 0
        text = capsys.readouterr().out
        assert [line for line in text.splitlines() if "*Published" in line] == [
            f"| *Published: {title}* |{'  |' * 8}" for title in titles
        ]
    assert main([*words, "published=false"]) == 0
    assert capsys.readouterr().out == plain


def test_vtab_by_its_short_and_its_full_name(root: Path, stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    stored("final/vtab", dataset="vtab_dtd", run={"benchmark": "vtab1k"})
    assert main([f"root={root}", "benchmark=vtab"]) == 0
    short = capsys.readouterr().out
    assert main([f"root={root}", "benchmark=vtab1k"]) == 0
    assert capsys.readouterr().out == short
    assert "Missing (–): GIFT on CIFAR-100, Caltech101, Flowers102," in short


def test_notes_of_csv_go_to_stderr_with_the_comparison(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"root={root}", "format=csv", "compare=[gift,lora]"]) == 0
    captured = capsys.readouterr()
    assert "against" not in captured.out
    assert "GIFT against LoRA" in captured.err


@pytest.mark.parametrize("words", [["--benchmark", "fgvc", "--format=csv"], ["benchmark=fgvc", "--format", "csv"]])
def test_arguments_may_be_written_with_dashes(root: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main([f"root={root}", "benchmark=fgvc", "format=csv"]) == 0
    plain = capsys.readouterr().out
    assert main(["--root", str(root), *words]) == 0
    assert capsys.readouterr().out == plain


MISTAKES = [
    (["format=pdf"], "unknown format 'pdf' (known: markdown, latex, csv)"),
    (["benchmark=fgv"], "unknown benchmark 'fgv' (known: fgvc, vtab1k, mini)"),
    (["benchmark=vtab"], "no finished final run of benchmark vtab1k among 5 results"),
    (["benchmark=fgvc", "datasets=[cub]"], "the table of FGVC always shows its 5 datasets; drop datasets="),
    (["datasets=[digits,tiny_mamals]"], "unknown dataset tiny_mamals in datasets= (known: digits, tiny_mammals,"),
    (["compare=[gift,lra]"], "there is no row lra; name two different rows of gift; lora"),
    (
        ["benchmark=fgvc", "published=voast"],
        "no published numbers of voast on benchmark fgvc (known: adapters_strike_back, gift,",
    ),
    (["published=true"], "no published numbers of gift on benchmark mini (it has no published numbers at all)"),
    (["formt=csv"], "error: unexpected argument 'formt=csv': expected root=…, benchmark=…"),
    (["latex"], "error: unexpected argument 'latex'"),
    (["--format"], "error: unexpected argument '--format'"),
    (["--formt", "csv"], "error: unexpected argument 'formt=csv'"),
    (["root=no/where"], "no folder no/where; pass root=<folder with the runs>"),
    (["backbone=vit_b16"], "no finished final run of benchmark mini among 0 results"),
]


def test_number_of_mistakes() -> None:
    assert len(MISTAKES) == 14


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_code_2(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([f"root={root}", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_broken_record_writes_no_table(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "final/lora/result.json").write_text('{"schema": 1')
    out = tmp_path / "mini.md"
    assert main([f"root={root}", f"out={out}"]) == 2
    assert "final/lora/result.json is no readable result" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    text = capsys.readouterr().out
    for key in (
        "root",
        "benchmark",
        "format",
        "out",
        "protocol",
        "backbone",
        "datasets",
        "method",
        "rows",
        "compare",
        "published",
    ):
        assert f"\n{key} " in text, key


def test_as_a_module(root: Path) -> None:
    command = [sys.executable, "-m", "experiments.tables", f"root={root}", "format=oops"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stderr == "error: unknown format 'oops' (known: markdown, latex, csv)\n"
