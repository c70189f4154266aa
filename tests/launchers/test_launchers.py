"""Sweeps whose runs a launcher starts in other processes of this machine, as a person types them.

Each is a sweep of two or three real runs, some of them twice, and its first start is a new Python's: over 3 s, some over 10.
"""

import json
import os
import re
import signal
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from gift_vit.config.loader import load_job
from gift_vit.runs.run import Run
from tests.test_cli import write_images
from tests.warm import Process, run_module, start, until

LAUNCHERS = {
    "processes": ["hydra.launcher.n_jobs=2"],
    "joblib": ["hydra/launcher=joblib_local", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray_local", "hydra.launcher.ray.init.num_cpus=2"],
    "submitit": ["hydra/launcher=submitit_local"],
}
# those of others start Python anew for every run
SLOW = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for name in ("joblib", "ray", "submitit")]


def words_of(launcher: str, *words: str) -> list[str]:
    if launcher != "processes" and find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        pytest.skip(f"hydra-{launcher}-launcher is not installed")
    return ["gift_vit.train", "-m", "debug=smoke", *LAUNCHERS[launcher], *words]


def children(process: Process) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A person's own images, decoded once into a cache that all runs share; the words that choose them."""
    write_images(tmp_path / "images/train", 12)
    words = ["dataset=folder", "dataset.root=images", "dataset.val_fraction=0.25", "trainer.batch_size=6", "trainer.epochs=2"]
    return [*words, "dataset.cache=disk", "paths.cache_root=cache"]


@pytest.mark.parametrize("launcher", ["processes", *SLOW])
def test_a_failing_run_stops_no_other_and_a_second_start_runs_what_is_missing(
    tmp_path: Path, images: list[str], launcher: str
) -> None:
    words = words_of(launcher, *images, "method.rank=2,99,4")
    ended = run_module(*words, cwd=tmp_path, fresh=True)
    output = ended.stdout + ended.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {result["run"]["config"]["method"]["rank"] for result in results} == {2, 4}, output
    assert {result["run"]["command"] for result in results} == {" ".join(["python", "-m", *words])}
    assert ended.returncode == 2
    reason = "method.rank=99 is larger than the target's d_in=64"
    [failed] = tmp_path.rglob("failed.json")
    assert reason in json.loads(failed.read_text())["message"]
    assert any(line.startswith("error: 1 of 3 runs failed") for line in output.splitlines())
    assert "Traceback" not in output
    if launcher == "processes":  # each line says whose it is
        lines = ended.stderr.splitlines()
        assert [line for line in lines if line.startswith("run ")] == [
            f"run {number} of 3: {' '.join(words[2:3])} {' '.join(images)} method.rank={rank}"
            for number, rank in ((1, 2), (2, 99), (3, 4))
        ]
        names = {path.parent.name for path in tmp_path.rglob("train.log")}
        own = [line for line in lines if not line.startswith(("run ", "error: 1 of 3"))]
        assert {line.partition(": ")[0].rpartition("/")[2] for line in own} <= names | {failed.parent.name}
        assert "HYDRA" not in output
    if launcher != "submitit":  # its runs print into files
        assert output.count(f"error: {reason}") == 1
        assert output.index(f"error: {reason}") < output.index("error: 1 of 3 runs failed")
    logs = "".join(path.read_text() for path in tmp_path.rglob("train.log"))
    assert logs.count("images once into") == 2, "train and val, whichever run came first"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    failed_before = failed.stat().st_mtime_ns
    assert run_module(*words, cwd=tmp_path, fresh=launcher != "processes").returncode == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before
    assert failed.stat().st_mtime_ns > failed_before


@pytest.mark.parametrize("launcher", ["processes", *SLOW[:-1]])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_two_runs_at_a_time_end_resumably_with_the_command(tmp_path: Path, launcher: str, number: signal.Signals) -> None:
    if (launcher, number) == ("ray", signal.SIGTERM):
        pytest.skip("Ray has a handler of SIGTERM of its own, which ends the command with another code")
    words = words_of(launcher, "trainer.epochs=5000", "seed=0,1,2")
    with start(*words, cwd=tmp_path, fresh=launcher != "processes") as process:
        process.until(lambda: len(list(tmp_path.rglob("last.ckpt"))) == 2)
        runs = [Run.open(path.parent) for path in tmp_path.rglob("last.ckpt")]
        assert [run.state for run in runs] == ["running", "running"]
        process.send_signal(number)
        ended = process.wait(60)
    assert ended.returncode == 130, ended
    assert "Traceback" not in ended.stdout + ended.stderr
    until(lambda: "running" not in {run.state for run in runs})
    assert [(run.state, run.reason) for run in runs] == [("interrupted", "")] * 2


def test_a_killed_run_stops_no_other_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["gift_vit.train", "-m", "debug=smoke", "trainer.epochs=5000,2"]
    with start(*words, cwd=tmp_path) as process:
        process.until(lambda: list(tmp_path.rglob("last.ckpt")))
        [run] = [Run.open(path.parent) for path in tmp_path.rglob("last.ckpt")]
        [child] = children(process)
        os.kill(child, signal.SIGKILL)
        ended = process.wait()
    assert ended.returncode == 128 + signal.SIGKILL, ended.stderr
    killed = f"killed by SIGKILL (out of memory?): {run.folder}"
    told = ended.stderr
    assert told.index(f"error: {killed}") < told.index("finished: ") < told.index("error: 1 of 2 runs failed")
    assert (run.state, run.reason) == ("failed", killed)
    assert (run.folder / "last.ckpt").is_file()
    [result] = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["run"]["config"]["trainer"]["epochs"] == 2


@pytest.mark.parametrize("launcher", ["processes", SLOW[0]])
def test_runs_end_with_a_sweep_that_is_killed(tmp_path: Path, launcher: str) -> None:
    words = words_of(launcher, "trainer.epochs=5000", "seed=0,1")
    with start(*words, cwd=tmp_path, fresh=launcher != "processes") as process:
        process.until(lambda: len(list(tmp_path.rglob("last.ckpt"))) == 2)
        runs = [Run.open(path.parent) for path in tmp_path.rglob("last.ckpt")]
        jobs = children(process)
        process.send_signal(signal.SIGKILL)
        until(lambda: "running" not in {run.state for run in runs}, 20)
    assert [(run.state, run.reason) for run in runs] == [("interrupted", "")] * 2
    if launcher == "processes":
        assert all("interrupted: " in (run.folder / "train.log").read_text() for run in runs)
        until(lambda: not any(Path(f"/proc/{job}/cmdline").exists() for job in jobs), 20)


@pytest.mark.parametrize(("threads", "expected"), [(None, 5), ("1", 1)], ids=["shared out", "a person's own"])
def test_jobs_are_planned_once_and_each_has_its_share_of_the_cores_and_its_last_line(
    threads: str | None,
    expected: int,
    train_here: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Plugins.instance()
    planned = Mock(wraps=load_job)
    monkeypatch.setattr("gift_vit.sweeps.plan.load_job", planned)
    monkeypatch.setattr(import_module("hydra_plugins.gift_vit_launcher"), "cores", lambda: 10)
    monkeypatch.setattr("gift_vit.runs.train.train_run", lambda *_: print(torch.get_num_threads(), end=" threads"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert train_here("-m", "debug=smoke", "seed=0,1", "hydra.launcher.n_jobs=2", f"paths.output_root={tmp_path}") == 0
    lines = sorted(line for line in capfd.readouterr().out.splitlines() if "threads" in line)
    assert [re.sub(r"clean_.*_(seed\d).*:", r"\1:", line) for line in lines] == [
        f"seed{seed}: {expected} threads" for seed in (0, 1)
    ]
    assert planned.call_count == 2


@pytest.mark.parametrize(
    ("slurm", "told"),
    [
        (False, "there is no Slurm on this machine: type the command on one of the cluster's, or another launcher"),
        (True, "Slurm did not take the jobs: sbatch: error: invalid partition specified: nope"),
    ],
)
def test_what_slurm_does_not_take_is_one_line(slurm: bool, told: str, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name in ("srun", "sbatch") if slurm else ():
        (tmp_path / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    words = ["-m", "debug=smoke", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=nope"]
    ended = run_module("gift_vit.train", *words, cwd=tmp_path, PATH=str(tmp_path))
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, f"error: {told}")
    assert not (tmp_path / "outputs/sweeps").exists(), "nothing began, and nothing is planned"


MISSING = {
    "joblib": ("joblib", "joblib"),
    "joblib_local": ("joblib", "joblib"),
    "ray_local": ("ray", "ray"),
    "slurm": ("submitit_slurm", "slurm"),
    "submitit_local": ("submitit_local", "slurm"),
}


@pytest.mark.parametrize("choice", MISSING)
def test_a_launcher_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], train_here: Callable[..., int], choice: str
) -> None:
    plugin, extra = MISSING[choice]
    Plugins.instance()  # has registered what is installed
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{plugin}.yaml", raising=False)
    assert train_here("-m", "debug=smoke", "seed=0,1", f"hydra/launcher={choice}") == 2
    told = f"error: hydra/launcher={choice} is not installed; type: pip install 'gift-vit[{extra}]'\n"
    assert capsys.readouterr().err == told
