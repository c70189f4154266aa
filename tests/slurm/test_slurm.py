"""Sweeps through a real Slurm on this machine; `make test-slurm`. Needs root, slurm-wlm and munge."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("cluster.sh")
WORDS = ["gift_vit.train", "-m", "debug=smoke", "run_name=null", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
WORDS += ["hydra.launcher.gpus_per_node=null", "hydra.launcher.mem_gb=null"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running Slurm; the environment in which its commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([SCRIPT, "start", folder], check=True)
        yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


def start(folder: Path, cluster: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *WORDS, *words]
    return subprocess.Popen(command, cwd=folder, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_failing_job_stops_no_other_and_a_second_start_submits_them_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    with start(tmp_path, cluster, "method.rank=2,99,4") as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "error: 1 of 3 runs failed" in output
    assert "Traceback" not in output
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {result["run"]["config"]["method"]["rank"] for result in results} == {2, 4}
    assert {result["run"]["command"] for result in results} == {" ".join(["python", "-m", *WORDS, "method.rank=2,99,4"])}
    [failed] = tmp_path.rglob("failed.json")
    assert "method.rank=99 is larger" in json.loads(failed.read_text())["message"]
    printed = [path.read_text() for path in (tmp_path / "outputs/slurm").rglob("*_log.err")]
    assert sum("error: method.rank=99 is larger than the target's d_in=64" in text for text in printed) == 1


def test_a_preempted_job_is_requeued_and_goes_on(tmp_path: Path, cluster: dict[str, str]) -> None:
    epochs = 12
    with start(tmp_path, cluster, f"trainer.epochs={epochs}", "seed=0") as process:
        until(lambda: list(tmp_path.rglob("last.ckpt")))
        [job] = subprocess.run(["squeue", "-ho", "%i"], env=cluster, text=True, capture_output=True, check=True).stdout.split()
        # what Slurm sends to a job that is preempted; SIGTERM alone is passed over by submitit
        subprocess.run(["scancel", "--signal=TERM", job], env=cluster, check=True)
        subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
        until(lambda: "Restarts=1" in shown(job, cluster))
        # Slurm would wait two minutes
        until(lambda: not subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster).returncode, 60)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    [run] = [path.parent for path in tmp_path.rglob("result.json")]
    assert not (run / "failed.json").exists()
    log = (run / "train.log").read_text()
    assert log.count(" adapter parameters ") == 2, "started twice"
    assert log.count(f" epoch 1/{epochs} ") == 1, "not from the beginning"
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(epochs))


def shown(job: str, cluster: dict[str, str]) -> str:
    return subprocess.run(["scontrol", "show", "job", job], env=cluster, text=True, capture_output=True, check=True).stdout
