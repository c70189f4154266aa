"""The command over finished runs of one short epoch: what it writes and says, that it goes on, and what it refuses."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gift_vit.backbones.build import build_backbone, input_statistics
from gift_vit.data.transforms import build_eval_transform
from gift_vit.invariance import cka, invert, stir
from gift_vit.invariance.inversion import Descent
from gift_vit.invariance.representations import open_layers
from gift_vit.runs.run import Run
from tests.warm import start

LAYERS = ["0", "3", "5", "pooled"]
WORDS = ("images=8", "layers=[0,3,-1]", "steps=6", "device=cpu")


def copied(folder: Path, parent: Path) -> Path:
    """A copy of a run, without what this command has written."""
    return Path(shutil.copytree(folder, parent / "run", ignore=shutil.ignore_patterns("invariance")))


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "invariance.json").read_text())


def images_of(run: Run, chosen: Sequence[int]) -> Tensor:
    """Images of val as the model sees them, in 0..1."""
    model, source = run.model(), run.data().split("val")
    transform = build_eval_transform(run.config.dataset.transform, input_statistics(model))
    return torch.stack([transform.finish(transform.prepare(source[index][0])) for index in chosen]) / 255


def close(matrix: list[list[float | None]], expected: Tensor) -> None:
    given = torch.tensor([[float("nan") if value is None else value for value in row] for row in matrix], dtype=torch.float64)
    torch.testing.assert_close(given, expected, rtol=1e-2, atol=2e-3, equal_nan=True)


def test_matrices_are_those_of_the_two_models(runs: dict[str, Path], call: Any, tmp_path: Path) -> None:
    """The command merges the adapter and goes through the images in parts; here neither is done. Some seconds."""
    code, printed, error = call(f"run={runs['lora']}", f"out={tmp_path}", "batch_size=3", *WORDS)
    assert code == 0, error
    found, run = record_of(tmp_path), Run.open(runs["lora"])
    size = len(run.data().split("val"))
    chosen = [round(place * (size - 1) / 7) for place in range(8)]
    assert found["images"] == [f"val{index:05}" for index in chosen]
    assert (found["layers"], found["split"], found["seen_in_training"]) == (LAYERS, "val", True)
    assert found["tokens"] == "all"
    assert found["descent"] == {"optimizer": "adam", "steps": 6, "step_size": 0.15, "seed": 0}
    images, descent, blocks = images_of(run, chosen), Descent(6, optimizer="adam"), [0, 3, 5]
    torch.manual_seed(run.config.seed)
    pretrained, tuned = build_backbone(run.config.backbone, 10), run.model()
    for name, unbiased in {"biased": False, "unbiased": True}.items():
        own = found[name]["stir"]
        close(own["tuned_given_pretrained"], stir(tuned, pretrained, images, blocks, unbiased, descent))
        close(own["pretrained_given_tuned"], stir(pretrained, tuned, images, blocks, unbiased, descent))
        close(own["within_tuned"], stir(tuned, tuned, images, blocks, unbiased, descent))
        rows = [open_layers(model, blocks).rows(images) for model in (pretrained, tuned)]
        close(found[name]["cka"], torch.tensor([[cka(p, f, unbiased) for f in rows[1]] for p in rows[0]], dtype=torch.float64))
        floors = {"pretrained": "independent_images", "tuned": "independent_images_of_tuned"}
        for (model, floor), given in zip(floors.items(), ("tuned_given_pretrained", "pretrained_given_tuned"), strict=True):
            weights = (np.array(own[given]) - np.array(found[name]["floors"][floor]))[:3, :3].clip(0)
            centroids = found[name]["measures"][f"invariances_of_{model}"]["by_layer"]["centroid"]
            assert centroids == pytest.approx(weights @ blocks / weights.sum(1))
    errors = invert(tuned, images, blocks, descent).errors
    assert found["errors"]["tuned"]["3"]["median"] == pytest.approx(float(errors[1].quantile(0.5)), rel=1e-2)
    by_image = found["errors"]["tuned"]["3"]["by_image"]
    assert found["errors"]["tuned"]["3"]["p90"] == pytest.approx(np.quantile(by_image, 0.9))
    assert not found["errors"]["tuned"]["3"]["converged"]
    mean = found["unbiased"]["measures"]["invariances_of_pretrained"]["means"]["all"]["retained"]["mean"]
    assert printed.startswith(f"{runs['lora']}: retained {mean:.3f} [")
    pooled = found["unbiased"]["stir"]["tuned_given_pretrained"][-1][-1]
    assert f"; of the pooled vector {pooled:.3f} (independent images " in printed
    assert "not converged: layers 0, 3, 5" in printed
    assert (tmp_path / "invariance.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "invariance.pdf").read_bytes()[:5] == b"%PDF-"


def test_blocks_that_training_left_alone_share_all_with_themselves(runs: dict[str, Path], call: Any) -> None:
    """The head alone was trained: STIR is that within the pretrained model, to the last bit; VPT has prompts to leave out."""
    code, printed, error = call(f"runs=[{runs['linear']},{runs['vpt_deep']}]", *WORDS)
    assert code == 0, error
    assert [line.partition(": retained")[0] for line in printed.splitlines()] == [str(runs["linear"]), str(runs["vpt_deep"])]
    found = record_of(runs["linear"] / "invariance")
    for own in (found["biased"], found["unbiased"]):
        assert own["stir"]["tuned_given_pretrained"] == own["stir"]["within_pretrained"] == own["stir"]["within_tuned"]
        assert own["stir"]["random_given_pretrained"] != own["stir"]["within_pretrained"]
        means = own["measures"]["invariances_of_pretrained"]["means"]["all"]
        assert means["compression"] == {"mean": 0, "low": 0, "high": 0}
        assert own["measures"]["invariances_of_pretrained"]["by_layer"]["compression"][0] is None
    prompted = record_of(runs["vpt_deep"] / "invariance")
    assert prompted["unbiased"]["stir"]["within_pretrained"] == found["unbiased"]["stir"]["within_pretrained"]
    assert prompted["unbiased"]["stir"]["tuned_given_pretrained"] != found["unbiased"]["stir"]["tuned_given_pretrained"]


def test_an_adapter_that_alone_of_its_kind_cannot_be_merged_is_left(runs: dict[str, Path], call: Any) -> None:
    """Lily, which peft does not merge: its inversions are those of the model that the run's folder gives."""
    code, _, error = call(f"run={runs['lily']}", "images=4", "layers=[-1]", "steps=2", "device=cpu")
    assert code == 0, error
    found, run = record_of(runs["lily"] / "invariance"), Run.open(runs["lily"])
    size = len(run.data().split("val"))
    images = images_of(run, [round(place * (size - 1) / 3) for place in range(4)])
    errors = invert(run.model(), images, [-1], Descent(2, optimizer="adam")).errors
    assert found["errors"]["tuned"]["5"]["by_image"] == pytest.approx(errors[0].tolist(), rel=1e-3)
    means = found["unbiased"]["measures"]["invariances_of_pretrained"]["means"]
    assert means["deep"]["retained"]["mean"] == means["all"]["retained"]["mean"] is not None
    assert means["shallow"]["retained"]["mean"] is None


def test_a_killed_command_goes_on(runs: dict[str, Path], call: Any, tmp_path: Path) -> None:
    """It is killed after the first part; what that made is not made again, and the numbers are the same."""
    words = (f"run={runs['linear']}", "images=6", "layers=[0]", "batch_size=2", "device=cpu")
    folder = copied(runs["linear"], tmp_path)
    config, cache = folder / "config.yaml", Run.open(folder).config.paths.cache_root
    config.write_text(config.read_text().replace(f"cache_root: {cache}", f"cache_root: {tmp_path}"))
    own = (f"run={folder}", *words[1:])
    with start("gift_vit.invariance", *own, "steps=40", cwd=tmp_path) as process:
        process.until(lambda: list(tmp_path.glob("inversions/*.safetensors")))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("inversions/*.safetensors")}
    assert 0 < len(before) < 3
    assert not (folder / "invariance").exists()
    assert call(*own, "steps=40")[0] == 0
    after = {file: file.stat().st_mtime_ns for file in tmp_path.glob("inversions/*")}
    assert len(after) == 3
    assert before.items() <= after.items()
    assert call(*words, "steps=40", f"out={tmp_path / 'other'}")[0] == 0
    assert record_of(folder / "invariance") == record_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("lora", ["layers=[0,6]"], "layers=[0, 6]: the model has 6 blocks; give indices from 0 to 5"),
        ("lora", ["layers=[0,0]"], "layers=[0,0]: expected distinct indices"),
        ("lora", ["split=tset"], "digits has no tset split"),
        ("lora", ["tokens=patches"], "unknown tokens 'patches' (known: all, cls, mean)"),
        ("unfinished", [], "is not finished: it holds no result.json"),
        ("imported", [], "is an imported adapter: it has no result.json that says which weights it was trained on"),
        ("tiny", [], "split=val: digits has 3 images there, and the unbiased estimator of CKA needs 4 or more"),
        ("unwritable", [], "/invariance (Not a directory); choose another folder or change its permissions"),
        ("other weights", [], "was trained on other pretrained weights than"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    runs: dict[str, Path],
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    words: list[str],
    message: str,
) -> None:
    folder = copied(runs["lora"], tmp_path)
    if method in ("unfinished", "imported"):
        (folder / "result.json").unlink()
    if method == "imported":
        reported = {"top1": 90.0, "split": "test"}
        (folder / "imported.json").write_text(json.dumps({"reported": reported, "file": "a", "sha256": "b"}))
    if method == "unwritable":
        (folder / "invariance").touch()
    if method == "tiny":
        monkeypatch.setattr("gift_vit.invariance.measuring.spread_samples", lambda *_: [None] * 3)
    if method == "other weights":
        record = json.loads((folder / "result.json").read_text())
        record["backbone"]["weights_sha256"] = "0" * 64
        (folder / "result.json").write_text(json.dumps(record))
    code, printed, error = call(f"runs=[{runs['lora']},{folder}]", "device=cpu", *words)
    assert (code, printed) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert not (folder / "invariance").is_dir()


def test_words_that_do_not_fit_together(call: Any) -> None:
    for words, message in [
        (["run=a", "runs=[b]"], "give run=<a run's folder> or runs=[<folder>,<folder>], one of them"),
        (["runs=[a,a]"], "runs=[a,a]: give each folder once"),
        (["run=hf://a/b"], "hf://a/b is no folder to write to; give out=<folder>, or make one with gift_vit.pull"),
        (["runs=[a,b]", "out=c"], "out=c: the files of several runs would overwrite each other"),
    ]:
        code, _, error = call(*words)
        assert code == 2
        assert message in error
