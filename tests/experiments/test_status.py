"""python -m experiments.status: what is done, what is not and why, the best so far, the time left."""

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.report.__main__ import ReportConfig
from experiments.status import main
from experiments.tables import TablesConfig
from gift_vit.common.cli import parse_arguments
from gift_vit.config import compose_config
from gift_vit.runs.result import write_result
from gift_vit.runs.run import locked_folder
from gift_vit.sweeps import select, status
from gift_vit.sweeps.plan import Job, Sweep, write_sweep
from tests.results.conftest import exit_code, make_result, refused

print_status = partial(exit_code, main)
COMMAND = "python -m gift_vit.train sweep=digits method=gift"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sweep of six runs: two done, one failed, one running, one never started, one refused."""
    monkeypatch.setenv("COLUMNS", "160")
    root = tmp_path / "outputs"
    folders = [root / f"search/digits/gift/vit_mini/lr{index}" for index in range(5)]
    for index, (val, seconds) in enumerate([(71.25, 100.0), (75.5, 140.0)]):
        config = {"optim.lr": 10.0**-index}
        result = make_result(val=val, run={"phase": "search"}, cost={"total_seconds": seconds}, config=config)
        write_result(folders[index] / "result.json", result)
    folders[2].mkdir()
    failure = {"error": "RunError", "message": "the loss became nan in epoch 0", "failed_at": "", "traceback": ""}
    (folders[2] / "failed.json").write_text(json.dumps(failure))
    jobs = [Job((f"optim.lr={10.0**-index:g}", "method=gift"), str(folder)) for index, folder in enumerate(folders)]
    jobs.append(Job(("optim.lr=-1", "method=gift"), None, "optim.lr=-1.0: expected a number above 0"))
    write_sweep(root, Sweep(COMMAND, "2026-01-01T00:00:00+00:00", tuple(jobs)))
    with locked_folder(folders[3]):
        yield root


def test_a_run_that_lies_elsewhere_hides_nothing(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(outputs / "old/run1/result.json", make_result())
    assert print_status(f"root={outputs}", "dataset=digits") == 0
    told = capsys.readouterr().out
    assert "6 runs: 2 done" in told
    assert "run1" in told


def test_of_a_resumed_run_the_whole_training_tells_what_is_left(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``total_seconds`` are of its last start."""
    cost = {"total_seconds": 8.5, "train_seconds": 240.0}
    for index in range(2):
        result = make_result(val=70.0, run={"phase": "search"}, cost=cost, config={"optim.lr": 10.0**-index})
        write_result(outputs / f"search/digits/gift/vit_mini/lr{index}/result.json", result)
    assert print_status(f"root={outputs}") == 0
    assert "about 10 min left" in capsys.readouterr().out


def test_of_equal_ones_the_best_is_what_the_choice_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = []
    for lr, decay in ((1e-2, 0.0), (1e-3, 0.1), (1e-3, 0.01)):
        folder = tmp_path / f"search/digits/gift/vit_mini/lr{lr}wd{decay}"
        config = {"optim.lr": lr, "optim.weight_decay": decay}
        write_result(folder / "result.json", make_result(val=75.0, run={"phase": "search"}, config=config))
        jobs.append(Job((f"optim.lr={lr:g}", f"optim.weight_decay={decay:g}"), str(folder)))
    jobs.append(Job(("optim.lr=1e-3", "optim.weight_decay=1e-2"), jobs[-1].folder))  # the same run, typed otherwise
    write_sweep(tmp_path, Sweep(COMMAND, "2026-01-01T00:00:00+00:00", tuple(jobs)))
    assert print_status(f"root={tmp_path}") == 0
    assert "best so far: val top-1 75.00 % with optim.lr=0.001 optim.weight_decay=0.01\n" in capsys.readouterr().out


def test_the_best_is_a_mean_over_seeds_of_each_cell_and_of_search_runs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recorded sweep says so where the output folder was moved to as well."""
    jobs = []
    runs = [("gift", 0.1, 0, 80.0), ("gift", 0.1, 1, 70.0), ("gift", 0.2, 0, 76.0), ("lora", 0.1, 0, 60.0)]
    for method, lr, seed, val in runs:
        folder = tmp_path / f"outputs/search/digits/{method}/vit_mini/lr{lr}seed{seed}"
        result = make_result(method, seed=seed, val=val, run={"phase": "search"}, config={"optim.lr": lr})
        write_result(folder / "result.json", result)
        jobs.append(Job((f"method={method}", f"optim.lr={lr}", f"seed={seed}"), str(folder)))
    final = tmp_path / "outputs/final/digits/gift/vit_mini/seed0"
    write_result(final / "result.json", make_result(top1=99.0))
    sweep = Sweep(COMMAND, "2026-01-01T00:00:00+00:00", (*jobs, Job(("method=gift",), str(final))))
    write_sweep(tmp_path / "outputs", sweep)
    (tmp_path / "outputs").rename(tmp_path / "moved")
    assert print_status(f"root={tmp_path / 'moved'}") == 0
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "5 runs: 5 done" in told
    assert [line for line in told if "best" in line] == [
        "best so far for gift on digits: val top-1 76.00 % with optim.lr=0.2 optim.weight_decay=0.01",
        "best so far for lora on digits: val top-1 60.00 % with optim.lr=0.1 optim.weight_decay=0.01",
    ]
    assert "single runs" not in told


def test_everything_about_a_sweep(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_status(f"root={outputs}") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        COMMAND,
        "6 runs: 2 done, 1 running, 1 failed, 1 refused, 1 missing",
        "best so far: val top-1 75.50 % with optim.lr=0.1 optim.weight_decay=0.01",
        "about 5 min left, 1 run(s) at a time",  # (0.5 running + 1 failed + 1 missing) of 120 s
        "optim.lr state top-1 % reason",
        "1 done 71.25",
        "0.1 done 75.50",
        "0.01 failed – the loss became nan in epoch 0",
        "0.001 running –",
        "0.0001 missing –",
        "-1 refused – optim.lr=-1.0: expected a number above 0",
    ]
    assert print_status(f"root={outputs}", "runs=false") == 0
    short = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert short == lines[:4]


def test_only_some_sweeps(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Job(("seed=0",), str(outputs / "final/cub/lora/vit_b16_in21k/lr1"))
    write_sweep(outputs, Sweep("python -m gift_vit.train sweep=final", "2026-01-02T00:00:00+00:00", (other,)))
    assert print_status(f"root={outputs}", "method=lora") == 0
    told = capsys.readouterr().out
    assert "sweep=final" in told
    assert COMMAND not in told
    said = refused(print_status, capsys, f"root={outputs}", "dataset=dogs", "method=lora")
    assert said.startswith("error: no such sweep below")
    assert "start one with python -m gift_vit.train sweep=" in said


def test_single_runs_and_what_cannot_be_read(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = outputs / "final/cub/lora/vit_mini/mine"
    write_result(single / "result.json", make_result(dataset="cub", method="lora"))
    for index, content in enumerate(("[]", "{", '{"message": ["x"]}', "[" * 100_000)):
        broken = single.with_name(f"stopped{index}")
        broken.mkdir()
        (broken / "pruned.json").write_text(content)
        (broken / "config.yaml").write_text("a: [")
        (broken / "train.log").touch()
    (outputs / "sweeps/broken.json").write_text("[" * 100_000)
    (single.with_name("cut")).mkdir()
    (single.with_name("cut") / "result.json").write_text("{")
    assert print_status(f"root={outputs}") == 0
    told = capsys.readouterr()
    lines = [" ".join(line.split()) for line in told.out.splitlines()]
    assert lines[0] == COMMAND
    block = lines[lines.index("single runs") :]
    assert block[1] == "6 runs: 1 done, 1 failed, 4 pruned"
    assert block[2] == "phase dataset method backbone run state top-1 % reason"
    assert "final cub lora vit_mini mine done" in " ".join(block)
    assert " ".join(block).count("pruned.json cannot be read") == 3
    assert "cut failed – " in " ".join(block)


def test_names_are_whole_at_any_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = f"clean_{'x' * 200}"
    write_result(tmp_path / "final/digits/gift/vit_mini" / name / "result.json", make_result())
    assert print_status(f"root={tmp_path}") == 0
    assert f" {name} " in capsys.readouterr().out, "in a pipe"
    narrow = io.StringIO()
    status.print_single_runs(Console(width=60, file=narrow), status.single_runs(tmp_path, []))
    assert narrow.getvalue().count("x") == 200


@pytest.mark.parametrize(("seconds", "text"), [(10, "1 min"), (300, "5 min"), (3600, "1 h 0 min"), (86399, "24 h 0 min")])
def test_durations(seconds: float, text: str) -> None:
    assert status._duration(seconds) == text


@pytest.mark.parametrize("arguments", [status.Arguments, select.Arguments, TablesConfig, ReportConfig])
def test_runs_are_looked_for_where_training_puts_them(arguments: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["command"])
    for place, variable in (("outputs", None), ("elsewhere", "elsewhere")):
        monkeypatch.delenv("GIFT_VIT_OUTPUT", raising=False)
        if variable is not None:
            monkeypatch.setenv("GIFT_VIT_OUTPUT", variable)
        assert parse_arguments(arguments).root == place == compose_config().paths.output_root
