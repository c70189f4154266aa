"""The README's way from a sweep to a table, typed as it stands with a few words appended that make it short."""

import os
import subprocess
import sys
from pathlib import Path

from gift_vit.results.schema import write_result
from tests.results.conftest import make_result
from tests.test_readme import COMMANDS, SHORT, workplace  # noqa: F401 - a fixture

TINY = [*SHORT, "dataset=cub", "dataset.num_classes=null", "backbone=vit_mini"]


def type_line(start: str, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """The README's shortest command that starts so, with further words, in a folder."""
    line = min((line for line in COMMANDS if line.startswith(f"python -m {start}")), key=len)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    words = [sys.executable, *line.split()[1:], *extra]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_from_a_sweep_to_a_table(workplace: Path) -> None:  # noqa: F811
    grid = 'method.grid.fgvc={optim.lr:"1e-3,1e-2",optim.weight_decay:"0"}'
    searched = type_line("gift_vit.train sweep=cub method=gift", workplace, *TINY, grid)
    assert searched.returncode == 0, searched.stderr
    assert searched.stderr.count("\nfinished: ") == 2
    told = type_line("experiments.status", workplace)
    assert "2 runs: 2 done" in told.stdout
    chosen = type_line("experiments.select", workplace, "out=my_conf/recipe")
    assert chosen.returncode == 0, chosen.stderr
    assert chosen.stdout.startswith("my_conf/recipe/cub_gift.yaml: optim.lr=0.")
    final = type_line("gift_vit.train sweep=final", workplace, *TINY, "--config-dir", "my_conf")
    assert final.returncode == 0, final.stderr
    assert final.stderr.count("\nfinished: ") == 3
    assert "no recipe" not in final.stderr
    table = type_line("experiments.tables benchmark=fgvc", workplace, "backbone=vit_mini", "protocol=clean")
    assert table.returncode == 0, table.stderr
    [row] = [line for line in table.stdout.splitlines() if line.startswith("| GIFT |")]
    assert "±" in row.split("|")[4], "CUB, over three seeds"
    assert row.count("–") == 6, "no device memory, four datasets without a run, no mean"


def test_axes_on_the_command_line_of_a_sweep(workplace: Path) -> None:  # noqa: F811
    words = [*TINY, "optim.weight_decay=0", "paths.output_root=other"]
    done = type_line("gift_vit.train sweep=cub method=gift method.rank", workplace, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\nfinished: ") == 6


def test_the_table_beside_published_numbers_and_the_page(tmp_path: Path) -> None:
    for method in ("gift", "lora"):
        for index, dataset in enumerate(("cub", "nabirds", "flowers", "dogs", "cars")):
            result = make_result(method, dataset, top1=80.0 + index, run={"benchmark": "fgvc"})
            write_result(tmp_path / "outputs/final" / dataset / method / "result.json", result)
    table = type_line("experiments.tables benchmark=fgvc published=true", tmp_path)
    assert table.returncode == 0, table.stderr
    assert (tmp_path / "fgvc.tex").read_text() == table.stdout
    assert r"\toprule" in table.stdout
    assert "wins/ties/losses 0/5/0" in table.stdout
    page = type_line("experiments.report", tmp_path)
    assert page.returncode == 0, page.stderr
    assert "<html" in (tmp_path / "outputs/report.html").read_text()
