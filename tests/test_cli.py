"""The commands as a person types them: a process of its own, from another working directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from gift_vit.data import build_dataset
from gift_vit.run import load_finished_model, load_run


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIFT_VIT")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a person's own images in it, and one finished run on them."""
    folder = tmp_path_factory.mktemp("place")
    for split, count in (("train", 12), ("test", 3)):
        for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            (folder / "images" / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (70, 50), colour).save(folder / "images" / split / label / f"{index}.jpg")
    return folder


OWN = ["debug=smoke", "dataset=folder", "dataset.root=images", "trainer.batch_size=8", "phase=final"]
RUN = Path("outputs/final/folder_images/gift/test_vit/smoke")


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    done = command(place, "gift_vit.train", *OWN)
    assert done.returncode == 0, done.stderr
    assert (place / RUN / "result.json").is_file()
    return place


def test_a_run_on_a_folder_from_another_directory_prints_plain_lines(finished: Path) -> None:
    again = command(finished, "gift_vit.train", *OWN)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert "\x1b" not in again.stderr
    assert {path.name for path in finished.iterdir()} == {"images", "outputs"}, "nothing is left anywhere else"
    result = json.loads((finished / RUN / "result.json").read_text())
    assert result["run"]["command"].startswith("python -m gift_vit.train debug=smoke dataset=folder")
    assert result["run"]["overrides"] == OWN


def test_evaluate_prints_the_run_s_own_test_score(finished: Path) -> None:
    done = command(finished, "gift_vit.evaluate", f"run={RUN}")
    assert done.returncode == 0, done.stderr
    top1 = json.loads((finished / RUN / "result.json").read_text())["metrics"]["test_top1"]
    assert done.stdout.startswith(f"folder_images test: top-1 {top1:.2f} %, loss ")
    assert done.stdout.rstrip().endswith("6 images")


def test_evaluate_refuses_data_that_is_not_the_run_s_own(finished: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished / "images", tmp_path / "images")
    (other / "test/red/0.jpg").unlink()
    done = command(finished, "gift_vit.evaluate", f"run={RUN}", f"dataset_root={other}")
    assert done.returncode == 2
    assert "was trained on other data than folder_images holds now" in done.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_merge_writes_a_plain_timm_checkpoint_that_predicts_the_same(finished: Path, suffix: str) -> None:
    done = command(finished, "gift_vit.merge", f"run={RUN}", f"out=merged{suffix}")
    assert done.returncode == 0, done.stderr
    out = finished / f"merged{suffix}"
    assert 'timm.create_model("test_vit.r160_in1k", num_classes=2, img_size=64, checkpoint_path="merged' in done.stdout
    plain = timm.create_model("test_vit.r160_in1k", num_classes=2, img_size=64, checkpoint_path=str(out)).eval()
    cfg = load_run(finished / RUN)
    tuned = load_finished_model(cfg, finished / RUN).eval()
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), tuned(images), atol=1e-5, rtol=1e-5)
    out.unlink()


def test_a_sweep_goes_on_past_a_failing_job_and_a_second_start_runs_only_what_is_missing(tmp_path: Path) -> None:
    words = ["gift_vit.train", "-m", "debug=smoke", "run_name=null", "method.rank=2,99,4"]
    done = command(tmp_path, *words)
    assert done.returncode == 2
    assert "error: method.rank=99 is larger than the target's d_in=64" in done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert "Traceback" not in done.stderr
    names = {path.parent.name.partition("rank")[2].partition("_")[0] for path in tmp_path.rglob("result.json")}
    assert names == {"2", "4"}
    [failed] = tmp_path.rglob("failed.json")
    assert "rank99" in failed.parent.name
    again = command(tmp_path, *words)
    assert again.stderr.count("finished already") == 2


MISTAKES = {
    "unknown dataset": (["gift_vit.train", "dataset=cubb"], "error: unknown dataset 'cubb'; did you mean cub?"),
    "missing data": (
        ["gift_vit.train", "debug=smoke", "dataset=tiny_mammals"],
        "type: python -m gift_vit.train dataset=tiny_mammals dataset.root=<folder that holds tiny_imagenet/",
    ),
    "output root is a file": (
        ["gift_vit.train", "debug=smoke", "paths.output_root=/dev/null"],
        "error: cannot write /dev/null/search/digits/gift/test_vit/smoke",
    ),
    "null group": (["gift_vit.train", "dataset=null"], "error: "),
    "unknown run": (["gift_vit.evaluate", "run=nowhere"], "error: nowhere is no run folder"),
    "unknown word": (["gift_vit.merge", "runn=x"], "error: unexpected argument 'runn=x': expected run=…, out=…"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_user_s_mistake_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    words, message = MISTAKES[name]
    done = command(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    traced = command(tmp_path, *words, GIFT_VIT_TRACEBACK="1")
    assert "Traceback" in traced.stderr


def test_a_failure_is_one_line_exit_code_1_and_failed_json(tmp_path: Path) -> None:
    done = command(tmp_path, "gift_vit.train", "debug=smoke", "optim.lr=1e30", "trainer.epochs=3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the loss became ")
    assert "Traceback" not in done.stderr
    [failed] = tmp_path.rglob("failed.json")
    assert "Traceback" in json.loads(failed.read_text())["traceback"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_leaves_a_resumable_run(tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "gift_vit.train", "debug=smoke", "trainer.epochs=200"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        folder = tmp_path / "outputs/search/digits/gift/test_vit/smoke"
        deadline = time.monotonic() + 200
        while not (folder / "last.ckpt").is_file():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "can be resumed with the same command" in stderr
    assert "Traceback" not in stderr
    assert (folder / "last.ckpt").is_file()
    assert not (folder / "failed.json").exists()


def test_an_unreadable_image_is_named(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (8, 8)).save(folder / label / f"{index}.png")
    broken = folder / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    done = command(
        tmp_path, "gift_vit.train", "debug=smoke", "dataset=folder", "dataset.root=images", "dataset.val_fraction=0.25"
    )
    assert done.returncode == 2
    assert "images/train/b/3.png" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "module",
    [
        *(
            "gift_vit.train",
            "gift_vit.evaluate",
            "gift_vit.merge",
            "gift_vit.import_gift",
            "gift_vit.explain",
            "gift_vit.explain.score",
        ),
        *("data_prep.fgvc", "data_prep.vtab", "data_prep.status"),
        *("experiments.demo", "experiments.tables", "experiments.bench_data", "experiments.mini", "experiments.select"),
        *("experiments.status", "experiments.report", "experiments.dashboard"),
    ],
)
def test_help_is_readable(module: str) -> None:
    done = command(Path(__file__).parent.parent, module, "--help")
    assert done.returncode == 0
    assert f"python -m {module}" in done.stdout
    # Hydra puts all choices of a group on one line
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("dataset: ", "method: ", "sweep: "))]
    assert max(len(line) for line in lines) <= 140
    assert len(done.stdout.splitlines()) <= 90


def test_the_data_of_a_run_may_have_moved(finished: Path, tmp_path: Path) -> None:
    cfg = load_run(finished / RUN, dataset_root=str(finished / "images"))
    assert build_dataset(cfg.dataset).num_classes == 2
