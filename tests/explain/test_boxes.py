"""Boxes from file to mask, and scores of a run against boxes, masks and parts that are drawn."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import InputStatistics, TransformConfig, build_eval_transform
from gift_vit.errors import ConfigError
from gift_vit.explain import score as command
from gift_vit.explain.boxes import object_mask, read_boxes
from gift_vit.record import Call
from gift_vit.run import execute
from tests.explain.calling import call_command

STATS = InputStatistics(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


@pytest.mark.parametrize("crop_ratio", [None, 0.875, 1.0])
@pytest.mark.parametrize("size", [(300, 200), (211, 333), (64, 64), (40, 90)])
def test_a_mask_covers_what_the_transform_makes_of_the_box(crop_ratio: float | None, size: tuple[int, int]) -> None:
    transform = build_eval_transform(TransformConfig(crop_ratio, False, 0.0, None), STATS)
    width, height = size
    box = (width // 4, height // 3, width // 2, height // 4)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    seen = transform.finish(transform.prepare(Image.fromarray(picture)))[0] > 127
    mask = object_mask([transform.place_box(box, *size)], 64)
    assert 0 < mask.sum() < 64 * 64
    assert (mask & seen).sum() / (mask | seen).sum() > 0.93


def test_several_boxes_are_one_mask_and_what_is_outside_is_not_in_it() -> None:
    mask = object_mask([(0, 0, 2, 1), (1, 0, 2, 3), (-5, 2, 6, 9), (50, 50, 9, 9)], 4)
    assert mask.int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]


def test_files_that_hold_no_boxes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no boxes: .*boxes.parquet is not there; give annotations="):
        read_boxes(tmp_path / "boxes.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ConfigError, match=r"text.parquet is no table of boxes: "):
        read_boxes(tmp_path / "text.parquet")
    pq.write_table(pa.table({"path": ["a"], "x": [1.0]}), tmp_path / "short.parquet")
    with pytest.raises(ConfigError, match=r"short.parquet is no table of boxes: "):
        read_boxes(tmp_path / "short.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on bright squares in dark pictures, one class red and one blue, with their boxes in the dataset's root."""
    root, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    boxes: list[tuple[str, int, int, int, int]] = []
    for split, count in [("train", 8), ("val", 6), ("test", 6)]:
        for label in ("red", "blue"):
            (root / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                x, y, side = (int(value) for value in generator.integers((0, 0, 16), (40, 40, 24)))
                picture = generator.integers(0, 60, (64, 64, 3)).astype(np.uint8)
                picture[y : y + side, x : x + side, 0 if label == "red" else 2] = 255
                path = f"{split}/{label}/{index}.png"
                Image.fromarray(picture).save(root / "data" / path)
                boxes.append((path, x, y, side, side))
    columns = zip(("path", "x", "y", "width", "height"), zip(*boxes, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), root / "data" / "boxes.parquet")
    words = ["debug=smoke", "dataset=folder", f"dataset.root={root / 'data'}", "phase=final", "run_name=squares"]
    cfg = load_config(compose_config([*words, f"paths.output_root={root / 'outputs'}", "trainer.batch_size=8"]))
    execute(cfg, Call("python -m gift_vit.train", []))
    return cfg.folder


def test_scores_of_a_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_command(command, monkeypatch, f"run={run}", f"out={tmp_path}", "layers=[0,5]", "batch_size=5") == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["images"] == {"val": 12, "test": 12}
    makers = ["clusters", "random φ", "cls_attention", "rollout", "gradient", "centre"]
    assert [row["maps"] for row in report["scores"]] == [maker for maker in makers for _ in range(4)]
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in report["scores"])
    with (tmp_path / "candidates.csv").open() as file:
        rows = list(csv.DictReader(file))
    clusters = [row for row in rows if row["maps"] == "clusters"]
    assert len(clusters) == 2 * 2 * 16
    assert [row["candidate"] for row in clusters[15:17]] == ["attn.proj of block 0, 15", "attn.proj of block 0, −0"]
    best = max(clusters, key=lambda row: float(row["val_pointing"]))
    reported = next(row for row in report["scores"] if row["maps"] == "clusters" and row["score"] == "pointing")
    assert reported["candidate"] == best["candidate"]
    assert reported["mean"] == pytest.approx(float(best["test_pointing"]), abs=1e-6)
    # a map and its negative cannot both point into a small square
    assert all(
        float(a["test_pointing"]) + float(b["test_pointing"]) <= 1.5 for a, b in zip(clusters, clusters[16:], strict=False)
    )
    assert "chosen on 12 images of val, reported on 12 of test" in capsys.readouterr().out


def test_the_centre_box_of_a_run_by_hand(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_command(command, monkeypatch, f"run={run}", f"out={tmp_path}", "layers=[0]", "count=3") == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["images"] == {"val": 3, "test": 3}
    row = next(row for row in report["scores"] if row["maps"] == "centre" and row["score"] == "pointing")
    boxes = pq.read_table(Path(OmegaConf.load(run / "config.yaml").dataset.root, "boxes.parquet")).to_pylist()
    hits = []
    for box in [next(box for box in boxes if box["path"] == f"test/blue/{index}.png") for index in range(3)]:
        inside = [box[axis] <= pixel < box[axis] + box["width"] for axis in "yx" for pixel in (31, 32)]
        hits.append(sum(inside[:2]) * sum(inside[2:]) / 4)  # of the four pixels around the middle
    assert sum(hits) > 0
    assert row["mean"] == pytest.approx(sum(hits) / 3)


def test_scores_against_segmentations(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that are the boxes give the scores of the boxes; other masks do not."""
    boxes, masks, other = (tmp_path / name for name in ("boxes", "masks", "other"))
    root = Path(OmegaConf.load(run / "config.yaml").dataset.root)
    for row in pq.read_table(root / "boxes.parquet").to_pylist():
        votes = np.zeros((64, 64), np.uint8)
        votes[int(row["y"]) : int(row["y"] + row["height"]), int(row["x"]) : int(row["x"] + row["width"])] = 153
        for where, picture in ((masks, votes), (other, 153 - votes)):
            file = (where / "segmentations" / row["path"]).with_suffix(".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    same = [f"run={run}", "layers=[2]", "count=4"]
    assert call_command(command, monkeypatch, *same, f"out={boxes}") == 0
    for where in (masks, other):
        words = ["truth=segmentations", f"annotations={where}", f"out={where}", "mask_threshold=0.55"]
        assert call_command(command, monkeypatch, *same, *words) == 0
    reports = [json.loads((tmp_path / name).read_text()) for name in ("boxes/scores.json", "masks/scores_segmentations.json")]
    for first, second in zip(*(report["scores"] for report in reports), strict=True):
        assert (first["maps"], first["score"]) == (second["maps"], second["score"])
        assert first["mean"] == pytest.approx(second["mean"], abs=0.02)
    assert reports[1]["truth"] == "segmentations"
    assert reports[1]["mask_threshold"] == 0.55
    energies = []
    for file in (boxes / "candidates.csv", *(where / "candidates_segmentations.csv" for where in (masks, other))):
        with file.open() as text:
            energies.append(np.array([float(row["test_energy"]) for row in csv.DictReader(text) if row["maps"] == "clusters"]))
    np.testing.assert_allclose(energies[1], energies[0], atol=0.02)
    np.testing.assert_allclose(energies[1] + energies[2], 1, atol=0.01)  # a mask and the rest of the picture


def test_scores_against_parts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The middle of the picture is hit by the centre map in every image, a corner in none."""
    root = Path(OmegaConf.load(run / "config.yaml").dataset.root)
    paths = pq.read_table(root / "boxes.parquet").column("path").to_pylist()
    rows = [(path, name, *xy, True) for path in paths for name, xy in (("middle", (32.0, 32.0)), ("corner", (6.0, 6.0)))]
    columns = zip(("path", "part", "x", "y", "visible"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), tmp_path / "parts.parquet")
    box = {"path": paths, "x": [0.0] * 40, "y": [0.0] * 40, "width": [40.0] * 40, "height": [20.0] * 40}
    pq.write_table(pa.table(box), tmp_path / "boxes.parquet")
    words = ["truth=parts", f"annotations={tmp_path}", f"out={tmp_path / 'out'}", "layers=[0,3]"]
    assert call_command(command, monkeypatch, f"run={run}", *words) == 0
    report = json.loads((tmp_path / "out" / "scores_parts.json").read_text())
    assert report["images"] == {"val": 12, "test": 12}
    assert report["alpha"] == 0.1
    found = {(row["maps"], row["part"]): row for row in report["scores"]}
    assert len(found) == 2 * 6
    whole = {"mean": 1, "low": 1, "high": 1}
    middle, corner = found["centre", "middle"], found["centre", "corner"]
    assert (middle["hit"], middle["exclusivity"], middle["images"]) == (whole, whole, 12)
    assert (corner["hit"]["mean"], corner["exclusivity"]["mean"]) == (0, 0)
    with (tmp_path / "out" / "candidates_parts.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["maps"] == "clusters"]
    best = max(rows, key=lambda row: float(row["val_corner hit"]))
    assert found["clusters", "corner"]["candidate"] == best["candidate"]
    assert found["clusters", "corner"]["hit"]["mean"] == pytest.approx(float(best["test_corner hit"]), abs=1e-6)
    printed = capsys.readouterr().out
    assert f"corner  hit {float(best['test_corner hit']):.3f} [" in printed
    assert "centre  hit 0.500, mean over 2 parts, each with its best candidate" in printed


MISTAKES = [
    (["annotations={tmp}/none"], "error: there are no boxes: {tmp}/none/boxes.parquet is not there; give annotations="),
    (["truth=parts"], "error: there are no parts: "),
    (["truth=segmentations"], "error: there are no segmentations: "),
    (["truth=masks"], "error: unknown truth 'masks' (known: boxes, segmentations, parts)"),
    (["annotations={tmp}"], "error: none of the boxes is of an image in the val split of dataset folder_data"),
    (["response=both"], "error: unknown response 'both'"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_every_mistake_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert len(MISTAKES) == 6
    box = {name: [1.0] for name in ("x", "y", "width", "height")}
    pq.write_table(pa.table({"path": ["elsewhere.png"], **box}), tmp_path / "boxes.parquet")
    assert (
        call_command(
            command, monkeypatch, f"run={run}", f"out={tmp_path / 'out'}", *(word.format(tmp=tmp_path) for word in words)
        )
        == 2
    )
    assert capsys.readouterr().err.splitlines()[-1].startswith(message.format(tmp=tmp_path))
    assert not (tmp_path / "out").exists()
