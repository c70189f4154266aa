"""Sweeps through a real Slurm on this machine; `make test-slurm`. Needs root, slurm-wlm and munge."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm import run_module, start, until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("cluster.sh")
WORDS = ["gift_vit.train", "-m", "debug=smoke", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
WORDS += ["hydra.launcher.gpus_per_node=null", "hydra.launcher.mem_gb=null"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A running Slurm, which all commands find."""
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        try:
            subprocess.run([SCRIPT, "start", folder], check=True)
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield
        finally:
            subprocess.run([SCRIPT, "stop", folder], check=True)


def test_a_failing_job_stops_no_other_and_a_second_start_submits_them_again(tmp_path: Path) -> None:
    ended = run_module(*WORDS, "method.rank=2,99,4", cwd=tmp_path, timeout=600, fresh=True)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 2, output
    assert "error: 1 of 3 runs failed" in output
    assert "Traceback" not in output
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {result["run"]["config"]["method"]["rank"] for result in results} == {2, 4}
    assert {result["run"]["command"] for result in results} == {" ".join(["python", "-m", *WORDS, "method.rank=2,99,4"])}
    [failed] = tmp_path.rglob("failed.json")
    assert "method.rank=99 is larger" in json.loads(failed.read_text())["message"]
    printed = [path.read_text() for path in (tmp_path / "outputs/slurm").rglob("*_log.err")]
    assert sum("error: method.rank=99 is larger than the target's d_in=64" in text for text in printed) == 1


def test_a_preempted_job_is_requeued_and_goes_on(tmp_path: Path) -> None:
    epochs = 12
    with start(*WORDS, f"trainer.epochs={epochs}", "seed=0", cwd=tmp_path, fresh=True) as process:
        process.until(lambda: list(tmp_path.rglob("last.ckpt")))
        [job] = subprocess.run(["squeue", "-ho", "%i"], text=True, capture_output=True, check=True).stdout.split()
        # what Slurm sends to a job that is preempted; SIGTERM alone is passed over by submitit
        subprocess.run(["scancel", "--signal=TERM", job], check=True)
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        until(lambda: "Restarts=1" in shown(job))
        # Slurm would wait two minutes
        until(lambda: not subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"]).returncode, 60)
        ended = process.wait(600)
    assert ended.returncode == 0, ended
    [run] = [path.parent for path in tmp_path.rglob("result.json")]
    assert not (run / "failed.json").exists()
    log = (run / "train.log").read_text()
    assert log.count(" adapter parameters ") == 2, "started twice"
    assert log.count(f" epoch 1/{epochs} ") == 1, "not from the beginning"
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(epochs))


def shown(job: str) -> str:
    return subprocess.run(["scontrol", "show", "job", job], text=True, capture_output=True, check=True).stdout
