"""Run folders that version 0.1.0 wrote: everything that looks at runs reads them.

``old_run`` holds a final run of GIFT and a search run of LoRA, both of one epoch of vit_mini on digits:
``python -m gift_vit.train debug=smoke backbone=vit_mini phase=final method.rank=2 run_name=old`` (``phase=search method=lora
method.rank=1``) at commit 092b833, with neutral paths.
"""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf

from gift_vit.backbones import vit_mini  # noqa: F401 - registers it with timm
from gift_vit.methods import GiftConfig, LoraConfig
from gift_vit.runs.run import Run, find_runs
from tests.warm import run_module

OLD = Path(__file__).parent / "old_run"
FINAL, SEARCH = OLD / "final/digits/gift/vit_mini/old", OLD / "search/digits/lora/vit_mini/old"


def test_they_are_runs() -> None:
    final, search = find_runs(OLD)
    assert (final.folder, search.folder) == (FINAL, SEARCH)
    assert (final.state, search.state) == ("done", "done")
    assert final.config.method == GiftConfig(rank=2, target_modules=["attn.proj"])
    assert isinstance(search.config.method, LoraConfig)
    assert (final.config.run_name, final.config.trainer.epochs, final.config.compute.memory) == ("old", 1, "fast")
    assert [record["epoch"] for record in search.curve()] == [0.0]
    assert final.result is not None
    assert final.result.run.gift_vit_version == "0.1.0"
    written = json.loads((FINAL / "result.json").read_text())
    assert final.result.metrics.items() <= written["metrics"].items()
    assert {"best_val_top1", "best_val_epoch"} <= written["metrics"].keys()
    assert written["env"]["parallel_runs"] == 1


def test_keys_of_a_configuration_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    shutil.copytree(FINAL, tmp_path / "run")
    cfg = OmegaConf.load(FINAL / "config.yaml")
    cfg.trainer.parallel_runs, cfg.pruning = 1, None
    for key in ("cls_last_block", "memory", "speed"):  # added since the first runs of that version
        del cfg.trainer[key]
    OmegaConf.save(cfg, tmp_path / "run/config.yaml")
    assert Run.open(tmp_path / "run").config == Run.open(FINAL).config


@pytest.mark.parametrize(("folder", "split", "images"), [(FINAL, "test", 797), (SEARCH, "val", 200)])
def test_it_is_evaluated_as_it_was(folder: Path, split: str, images: int, tmp_path: Path) -> None:
    """To rounding, which another processor may do otherwise; over 3 s, since vit_mini is the one with weights of its own."""
    done = run_module("gift_vit.evaluate", f"run={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"digits {split}: top-1 ")
    assert done.stdout.endswith(f", {images} images\n")
    then = json.loads((folder / "result.json").read_text())["metrics"]
    assert float(done.stdout.split()[3]) == pytest.approx(then[f"{split}_top1"], abs=0.3)


def test_it_is_merged(tmp_path: Path) -> None:
    done = run_module("gift_vit.merge", f"run={FINAL}", "out=merged.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint = str(tmp_path / "merged.pth")
    plain = timm.create_model("vit_mini_patch8_64.tiny_imagenet", num_classes=10, checkpoint_path=checkpoint).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), Run.open(FINAL).model()(images), atol=1e-5, rtol=1e-5)


def test_it_is_explained(tmp_path: Path) -> None:
    done = run_module("gift_vit.explain", f"run={FINAL}", "count=1", "layers=[-1]", "formats=[png]", "out=maps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps/maps.npz").is_file()


def test_it_stands_in_tables_and_is_chosen_from(tmp_path: Path) -> None:
    done = run_module("experiments.tables", f"root={OLD}", "format=csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16.31" in done.stdout
    done = run_module("experiments.select", f"root={OLD}", "out=recipe", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = OmegaConf.load(tmp_path / "recipe/digits_lora.yaml")
    assert (recipe.recipe.backbone, recipe.optim.lr, recipe.method.rank) == ("vit_mini", 0.001, 1)
