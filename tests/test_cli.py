"""The commands as a person types them: each in a process of its own, from another working directory.

One signal is sent to a real start of Python; all other processes are forks of this one.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from gift_vit.common.cli import run_command
from gift_vit.common.tensors import write_tensors
from gift_vit.methods.adapter import read_adapter
from gift_vit.runs.run import Run
from tests.warm import Ended, run_module, start


def command(folder: Path, *words: str) -> Ended:
    return run_module(*words, cwd=folder)


def test_a_gpu_whose_memory_is_short_is_told_with_what_needs_less(capsys: pytest.CaptureFixture[str]) -> None:
    def score() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 9 GiB.")

    assert run_command(score) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the GPU's memory is too small (CUDA out of memory. Tried")
    assert line.endswith("a smaller batch_size=, where the command knows it, or device=cpu needs less")


def write_images(folder: Path, count: int) -> None:
    for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (70, 50), colour).save(folder / label / f"{index}.jpg")


OWN = ["debug=smoke", "run_name=smoke", "dataset=folder", "dataset.root=images", "trainer.batch_size=8", "phase=final"]
RUN = Path("outputs/final/folder_images/gift/test_vit/smoke")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a person's own images in it, and one finished run on them."""
    folder = tmp_path_factory.mktemp("place")
    write_images(folder / "images/train", 12)
    write_images(folder / "images/test", 3)
    done = command(folder, "gift_vit.train", *OWN)
    assert done.returncode == 0, done.stderr
    assert (folder / RUN / "result.json").is_file()
    return folder


def test_a_run_on_a_folder_from_another_directory_prints_plain_lines(finished: Path) -> None:
    again = command(finished, "gift_vit.train", *OWN)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert "\x1b" not in again.stderr
    assert {path.name for path in finished.iterdir()} == {"images", "outputs"}, "nothing is left anywhere else"
    result = json.loads((finished / RUN / "result.json").read_text())
    assert result["run"]["command"].startswith("python -m gift_vit.train debug=smoke run_name=smoke dataset=folder")
    assert result["run"]["overrides"] == OWN


def test_evaluate_prints_the_run_s_own_test_score(finished: Path) -> None:
    done = command(finished, "gift_vit.evaluate", f"run={RUN}")
    assert done.returncode == 0, done.stderr
    top1 = json.loads((finished / RUN / "result.json").read_text())["metrics"]["test_top1"]
    assert done.stdout.startswith(f"folder_images test: top-1 {top1:.2f} %, loss ")
    assert done.stdout.rstrip().endswith("6 images")


def test_evaluate_takes_data_that_has_moved_and_no_other(finished: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished / "images", tmp_path / "images")
    words = ["gift_vit.evaluate", f"run={RUN}", f"dataset_root={other}"]
    assert command(finished, *words).returncode == 0
    (other / "test/red/0.jpg").unlink()
    done = command(finished, *words)
    assert done.returncode == 2
    assert "was trained on other data than folder_images holds now" in done.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_merge_writes_a_plain_timm_checkpoint_that_predicts_the_same(finished: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"merged{suffix}"
    done = command(finished, "gift_vit.merge", f"run={RUN}", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert f'timm.create_model("test_vit.r160_in1k", num_classes=2, img_size=64, checkpoint_path="{out}")' in done.stdout
    plain = timm.create_model("test_vit.r160_in1k", num_classes=2, img_size=64, checkpoint_path=str(out)).eval()
    tuned = Run.open(finished / RUN).model()
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), tuned(images), atol=1e-5, rtol=1e-5)
    record = json.loads((finished / RUN / "result.json").read_text())["data"]
    facts = {"dataset": "folder_images", "class_names": ["blue", "red"], "decoder": record["decoder"]}
    facts |= {
        "interpolation": "bicubic",
        "crop_ratio": 0.875,
        "shorter_side": 73,
        "input_size": 64,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    if suffix == ".safetensors":
        with safe_open(out, framework="pt") as file:
            assert file.metadata() == {"format": "pt"} | {key: json.dumps(value) for key, value in facts.items()}
    else:
        content = torch.load(out, weights_only=True)
        assert json.loads(json.dumps({key: value for key, value in content.items() if key != "state_dict"})) == facts
    assert record["class_names"] == facts["class_names"]


def test_merge_prints_the_lines_that_give_the_chosen_pooling(finished: Path, tmp_path: Path) -> None:
    done = command(finished, "gift_vit.train", *OWN, "backbone.global_pool=avg", f"paths.output_root={tmp_path}")
    assert done.returncode == 0, done.stderr
    [folder] = (file.parent for file in tmp_path.rglob("result.json"))
    assert json.loads((folder / "result.json").read_text())["backbone"]["global_pool"] == "avg"
    done = command(finished, "gift_vit.merge", f"run={folder}", f"out={tmp_path / 'merged.safetensors'}")
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = {"timm": timm}
    exec(dedent(done.stdout.partition("load it with\n")[2]), made)
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        expected = Run.open(folder).model()(images)
        torch.testing.assert_close(made["model"].eval()(images), expected, atol=1e-5, rtol=1e-5)
        made["model"].reset_classifier(2, global_pool="token")
        made["model"].head.load_state_dict(Run.open(folder).model().get_submodule("head").state_dict())
        assert not torch.allclose(made["model"](images), expected, atol=1e-3), "the other pooling would be seen"


DIVERGED = {
    "gift_vit.evaluate": "error: no score on test: logits of 6 of 6 examples are NaN or infinite; lower optim.lr",
    "gift_vit.merge": "merged.pth is not written: the weights of blocks.0.attn.proj.weight are NaN or infinite in places",
    "gift_vit.explain": "error: no map can be made: logits are NaN or infinite in places; the training diverged",
}


@pytest.mark.parametrize("module", DIVERGED)
def test_nothing_is_made_of_a_model_that_has_diverged(finished: Path, tmp_path: Path, module: str) -> None:
    """Its weights are finite, what they give is not."""
    run = shutil.copytree(finished / RUN, tmp_path / "run")
    adapter = read_adapter(run / "adapter.safetensors")
    huge = {name: torch.full_like(tensor, 1e30) for name, tensor in adapter.tensors.items()}
    write_tensors(adapter.path, huge, {key: json.dumps(value) for key, value in adapter.metadata.items()})
    out = {"gift_vit.evaluate": [], "gift_vit.merge": ["out=merged.pth"], "gift_vit.explain": ["out=maps", "count=1"]}
    root = [] if module == "gift_vit.merge" else [f"dataset_root={finished / 'images'}"]
    done = command(tmp_path, module, f"run={run}", *out[module], *root)
    assert (done.returncode, done.stdout) == (1, "")
    assert DIVERGED[module] in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("merged*")) + list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "words",
    [
        ["gift_vit.verify", "runs=~/runs", "score=false"],
        ["experiments.crate", "runs=~/runs"],
        ["experiments.status", "root=~/runs"],
        ["experiments.tables", "root=~/runs"],
    ],
)
def test_runs_are_found_in_the_home_folder(tmp_path: Path, words: list[str]) -> None:
    shutil.copytree(Path(__file__).parent / "runs/old_run", tmp_path / "runs")
    done = run_module(*words, cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("flag", [["--info"], ["--info", "config"], ["--cfg", "job"]])
def test_hydra_s_own_flags_may_stand_before_a_word(tmp_path: Path, flag: list[str]) -> None:
    done = command(tmp_path, "gift_vit.train", *flag, "seed=17")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed: 17" in done.stdout.splitlines()


ENDLESS = ["gift_vit.train", "debug=smoke", "run_name=smoke", "trainer.epochs=2000"]
ENDLESS_RUN = Path("outputs/search/digits/gift/test_vit/smoke")


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_an_interrupted_process_leaves_a_resumable_run(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """SIGTERM as a scheduler sends it to a process that it has started, or to the loader's workers too: over 5 s."""
    with start(*ENDLESS, "trainer.workers=1", cwd=tmp_path, fresh=number == signal.SIGTERM) as process:
        process.until((tmp_path / ENDLESS_RUN / "last.ckpt").is_file)
        assert Run.open(tmp_path / ENDLESS_RUN).state == "running"
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert workers
        for pid in [*workers, process.pid] if to_all else [process.pid]:
            os.kill(int(pid), number)
        ended = process.wait()
    assert ended.returncode == 130
    assert "can be resumed with the same command" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert Run.open(tmp_path / ENDLESS_RUN).state == "interrupted"
