"""Sweeps whose runs a launcher starts in other processes of this machine, as a person types them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from PIL import Image

from gift_vit import train
from gift_vit.sweeps import run_state
from tests.test_sweeps import UNLOGGED

LAUNCHERS = {
    "processes": ["hydra.launcher.n_jobs=2"],
    "joblib": ["hydra/launcher=joblib_local", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray_local", "hydra.launcher.ray.init.num_cpus=2"],
    "submitit": ["hydra/launcher=submitit_local"],
}


def words_of(launcher: str, *words: str) -> list[str]:
    if launcher != "processes" and find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        pytest.skip(f"hydra-{launcher}-launcher is not installed")
    return [sys.executable, "-m", "gift_vit.train", "-m", "debug=smoke", "run_name=null", *LAUNCHERS[launcher], *words]


def start(folder: Path, words: list[str]) -> "subprocess.Popen[str]":
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GIFT_VIT", "OMP"))}
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder: Path, words: list[str]) -> tuple[int, str]:
    with start(folder, words) as process:
        output, _ = process.communicate(timeout=280)
    return process.returncode, output


def children(process: "subprocess.Popen[str]") -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def until(condition: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for a condition, while a process runs if one is given."""
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.2)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A person's own images, decoded once into a cache that all runs share; the words that choose them."""
    for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "images/train" / label).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (70, 50), colour).save(tmp_path / "images/train" / label / f"{index}.jpg")
    words = ["dataset=folder", "dataset.root=images", "dataset.val_fraction=0.25", "trainer.batch_size=6", "trainer.epochs=2"]
    return [*words, "dataset.cache=disk", "paths.cache_root=cache"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "launcher", ["processes", "joblib", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ray", "submitit"))]
)
def test_a_failing_run_stops_no_other_and_a_second_start_runs_what_is_missing(
    tmp_path: Path, images: list[str], launcher: str
) -> None:
    words = words_of(launcher, *images, "method.rank=2,99,4")
    code, output = finish(tmp_path, words)
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {result["run"]["config"]["method"]["rank"] for result in results} == {2, 4}, output
    assert {result["run"]["command"] for result in results} == {" ".join(["python", *words[1:]])}
    assert code == 2
    reason = "method.rank=99 is larger than the target's d_in=64"
    [failed] = tmp_path.rglob("failed.json")
    assert reason in json.loads(failed.read_text())["message"]
    lines = output.rstrip().splitlines()
    assert any(line.startswith("error: 1 of 3 runs failed") for line in lines)
    assert "Traceback" not in output
    if launcher != "submitit":  # its runs print into files
        assert output.count(f"error: {reason}") == 1
        assert output.index(f"error: {reason}") < output.index("error: 1 of 3 runs failed")
    logs = "".join(path.read_text() for path in tmp_path.rglob("train.log"))
    assert logs.count("images once into") == 2, "train and val, whichever run came first"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    failed_before = failed.stat().st_mtime_ns
    assert finish(tmp_path, words)[0] == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before
    assert failed.stat().st_mtime_ns > failed_before


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", ["processes", "joblib", pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_runs_at_a_time_end_resumably_with_the_command(tmp_path: Path, launcher: str, number: signal.Signals) -> None:
    with start(tmp_path, words_of(launcher, "trainer.epochs=500", "seed=0,1,2")) as process:
        try:
            until(lambda: len(list(tmp_path.rglob("last.ckpt"))) == 2, process)
            folders = [path.parent for path in tmp_path.rglob("last.ckpt")]
            assert [run_state(folder)[0] for folder in folders] == ["running", "running"]
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    for folder in folders:
        until(lambda folder=folder: run_state(folder)[0] != "running")
        assert run_state(folder) == ("interrupted", "")


@pytest.mark.timeout(600)
def test_a_killed_run_stops_no_other_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "gift_vit.train", "-m", "debug=smoke", "run_name=null", "trainer.epochs=500,2"]
    with start(tmp_path, words) as process:
        try:
            until(lambda: bool(list(tmp_path.rglob("last.ckpt"))), process)
            [run] = [path.parent for path in tmp_path.rglob("last.ckpt")]
            [child] = children(process)
            os.kill(child, signal.SIGKILL)
            output, _ = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGKILL, output
    killed = f"killed by SIGKILL (out of memory?): {run}"
    assert output.index(f"error: {killed}") < output.index("finished: ") < output.index("error: 1 of 2 runs failed")
    assert json.loads((run / "failed.json").read_text())["message"] == killed
    assert run_state(run) == ("failed", killed)
    assert (run / "last.ckpt").is_file()
    [result] = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["run"]["config"]["trainer"]["epochs"] == 2


@pytest.mark.timeout(600)
def test_runs_of_a_sweep_share_processes_and_a_second_start_does_nothing(tmp_path: Path) -> None:
    common = ["debug=smoke", "run_name=null", "method=linear", "backbone.img_size=32", "trainer.parallel_runs=3"]
    common += ["trainer.epochs=3", "optim.weight_decay=1"]
    words = [sys.executable, "-m", "gift_vit.train", "-m", *common, "seed=0,1", "optim.lr=1e-3,1e-2,99999"]  # the last diverges
    code, output = finish(tmp_path, words)
    results = {path: json.loads(path.read_text()) for path in tmp_path.rglob("result.json")}
    assert {(r["run"]["seed"], r["run"]["config"]["optim"]["lr"]) for r in results.values()} == {
        (seed, lr) for seed in (0, 1) for lr in (1e-3, 1e-2)
    }, output
    assert {r["env"]["parallel_runs"] for r in results.values()} == {3}
    assert {r["run"]["command"] for r in results.values()} == {" ".join(["python", *words[1:]])}
    assert all("trainer.parallel_runs=3" in r["run"]["overrides"] for r in results.values())
    assert len(list(tmp_path.rglob("failed.json"))) == 2
    assert code == 1
    assert output.rstrip().splitlines()[-1].startswith("error: 2 of 6 runs failed")
    assert "Traceback" not in output
    before = {path: path.stat().st_mtime_ns for path in results}
    assert finish(tmp_path, words)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before


@pytest.mark.timeout(600)
def test_runs_that_share_a_process_end_resumably_or_are_told_to_be_killed(tmp_path: Path) -> None:
    common = ["debug=smoke", "run_name=null", "method=linear", "trainer.epochs=500", "trainer.parallel_runs=2"]
    words = [sys.executable, "-m", "gift_vit.train", "-m", *common, "seed=0,1"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        with start(tmp_path, words) as process:
            try:
                until(lambda: len(list(tmp_path.rglob("last.ckpt"))) == 2 and children(process) != [], process)
                folders = [path.parent for path in tmp_path.rglob("last.ckpt")]
                [child] = children(process)
                if number == signal.SIGTERM:
                    process.send_signal(number)
                else:
                    os.kill(child, number)
                output, _ = process.communicate(timeout=200)
            finally:
                process.kill()
        if number == signal.SIGTERM:
            assert process.returncode == 130, output
            assert {run_state(folder) for folder in folders} == {("interrupted", "")}
        else:
            assert process.returncode == 128 + number, output
            assert output.count("error: killed by SIGKILL (out of memory?): ") == 1
            assert {run_state(folder)[0] for folder in folders} == {"failed"}
        assert "Traceback" not in output


MISSING = {
    "joblib": ("joblib", "joblib"),
    "joblib_local": ("joblib", "joblib"),
    "ray_local": ("ray", "ray"),
    "slurm": ("submitit_slurm", "slurm"),
    "submitit_local": ("submitit_local", "slurm"),
}


@pytest.mark.parametrize("choice", MISSING)
def test_a_launcher_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], choice: str
) -> None:
    plugin, extra = MISSING[choice]
    Plugins.instance()  # has registered what is installed
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{plugin}.yaml", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    GlobalHydra.instance().clear()
    argv = ["train", "-m", "debug=smoke", "seed=0,1", f"hydra/launcher={choice}", *UNLOGGED]
    with patch.object(sys, "argv", argv), patch("gift_vit.cli.interrupt_on_sigterm"), pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: hydra/launcher={plugin} is not installed; type: pip install 'gift-vit[{extra}]'\n"
    )
