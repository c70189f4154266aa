"""python -m experiments.status: what is done, what is not and why, the best so far, the time left."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from experiments import status
from gift_vit.results.schema import write_result
from gift_vit.sweeps import Job, Sweep, write_sweep
from tests.results.conftest import make_result

COMMAND = "python -m gift_vit.train sweep=digits method=gift"


def print_status(*words: str) -> int:
    with patch.object(sys, "argv", ["status", *words]), pytest.raises(SystemExit) as stopped:
        status.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sweep of six runs: two done, one failed, one running, one never started, one refused."""
    monkeypatch.setenv("COLUMNS", "160")
    root = tmp_path / "outputs"
    folders = [root / f"search/digits/gift/vit_mini/lr{index}" for index in range(5)]
    for index, (val, seconds) in enumerate([(71.25, 100.0), (75.5, 140.0)]):
        result = make_result(top1=None, run={"phase": "search"}, cost={"total_seconds": seconds})
        result.metrics["val_top1"] = val
        write_result(folders[index] / "result.json", result)
    for folder in folders[2:4]:
        folder.mkdir()
    (folders[2] / "failed.json").write_text(json.dumps({"message": "the loss became nan in epoch 0"}))
    jobs = [Job((f"optim.lr={10.0**-index:g}", "method=gift"), str(folder)) for index, folder in enumerate(folders)]
    jobs.append(Job(("optim.lr=-1", "method=gift"), None, "optim.lr=-1.0: expected a number above 0"))
    write_sweep(root, Sweep(COMMAND, "2026-01-01T00:00:00+00:00", tuple(jobs)))
    descriptor = os.open(folders[3], os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield root
    os.close(descriptor)


def test_everything_about_a_sweep(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_status(f"root={outputs}") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        COMMAND,
        "6 runs: 2 done, 1 running, 1 failed, 1 refused, 1 missing",
        "best so far: top-1 75.50 % with optim.lr=0.1",
        "about 5 min left, 1 run(s) at a time",  # (0.5 running + 1 failed + 1 missing) of 120 s
        "optim.lr state top-1 % reason",
        "1 done 71.25",
        "0.1 done 75.50",
        "0.01 failed – the loss became nan in epoch 0",
        "0.001 running –",
        "0.0001 missing –",
        "-1 refused – optim.lr=-1.0: expected a number above 0",
    ]


def test_without_the_runs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_status(f"root={outputs}", "runs=false") == 0
    assert "never" not in (told := capsys.readouterr().out)
    assert "1 failed" in told
    assert "nan" not in told


def test_only_some_sweeps(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Job(("seed=0",), str(outputs / "final/cub/lora/vit_b16_in21k/lr1"))
    write_sweep(outputs, Sweep("python -m gift_vit.train sweep=final", "2026-01-02T00:00:00+00:00", (other,)))
    assert print_status(f"root={outputs}", "method=lora") == 0
    told = capsys.readouterr().out
    assert "sweep=final" in told
    assert COMMAND not in told
    assert print_status(f"root={outputs}", "dataset=dogs", "method=lora") == 2
    assert "error: no such sweep below" in capsys.readouterr().err


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_status(f"root={tmp_path / 'nowhere'}") == 2
    assert capsys.readouterr().err.startswith("error: no folder ")
    assert print_status(f"root={tmp_path}") == 2
    assert "start one with python -m gift_vit.train sweep=" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(10, "1 min"), (300, "5 min"), (3600, "1 h 0 min"), (86399, "24 h 0 min")])
def test_durations(seconds: float, text: str) -> None:
    assert status._duration(seconds) == text
