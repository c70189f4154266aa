"""``python -m gift_vit.explain.score``: scores of a run against boxes, masks and parts that are drawn."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.explain.conftest import Command, train, write_table

SPLITS = {"train": 8, "val": 6, "test": 6}
BOXES = "path x y width height"
Squares = tuple[Path, dict[str, tuple[int, int, int]]]
Score = Callable[..., tuple[dict[str, Any], list[dict[str, str]], str]]


def save(picture: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Squares:
    """A run on pictures of a bright square, red or blue by class, and (x, y, side) by path, as the dataset's boxes have it."""
    root, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    found: dict[str, tuple[int, int, int]] = {}
    names = [f"{split}/{label}/{index}.png" for split in SPLITS for label in ("red", "blue") for index in range(SPLITS[split])]
    for name in names:
        x, y, side = (int(value) for value in generator.integers((0, 0, 16), (40, 40, 24)))
        picture = generator.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        picture[y : y + side, x : x + side, 0 if "red" in name else 2] = 255
        save(picture, root / "data" / name)
        found[name] = (x, y, side)
    write_table(root / "data" / "boxes.parquet", BOXES, [(path, x, y, side, side) for path, (x, y, side) in found.items()])
    words = ["dataset=folder", f"dataset.root={root / 'data'}", "run_name=squares", "trainer.batch_size=8"]
    return train(root, *words), found


@pytest.fixture
def score(squares: Squares, tmp_path: Path, call: Command) -> Score:
    """Takes what the files' names end in, and words; the report, the rows of candidates that are clusters, what was printed."""

    def scored(suffix: str, *words: str) -> tuple[dict[str, Any], list[dict[str, str]], str]:
        code, printed, _ = call("score", f"run={squares[0]}", f"out={tmp_path / 'out'}", *words)
        assert code == 0
        with (tmp_path / "out" / f"candidates{suffix}.csv").open() as file:
            clusters = [row for row in csv.DictReader(file) if row["maps"] == "clusters"]
        return json.loads((tmp_path / "out" / f"scores{suffix}.json").read_text()), clusters, printed

    return scored


def test_scores_of_a_run(score: Score) -> None:
    report, clusters, printed = score("", "layers=[0,5]", "batch_size=5")
    assert report["images"] == {"val": 12, "test": 12}
    makers = ["clusters", "random φ", "cls_attention", "rollout", "gradient", "centre"]
    assert [row["maps"] for row in report["scores"]] == [maker for maker in makers for _ in range(4)]
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in report["scores"])
    assert len(clusters) == 2 * 2 * 16
    assert [row["candidate"] for row in clusters[15:17]] == ["attn.proj of block 0, 15", "attn.proj of block 0, −0"]
    best = max(clusters, key=lambda row: float(row["val_pointing"]))
    reported = next(row for row in report["scores"] if row["maps"] == "clusters" and row["score"] == "pointing")
    assert reported["candidate"] == best["candidate"]
    assert reported["mean"] == pytest.approx(float(best["test_pointing"]), abs=1e-6)
    # a map and its negative cannot both point into a small square
    pointing = [float(row["test_pointing"]) for row in clusters]
    assert all(own + negative <= 1.5 for own, negative in zip(pointing, pointing[16:], strict=False))
    assert "chosen on 12 images of val, reported on 12 of test" in printed


def test_the_centre_box_of_a_run_by_hand(squares: Squares, score: Score) -> None:
    report, *_ = score("", "layers=[0]", "count=3")
    assert report["images"] == {"val": 3, "test": 3}
    row = next(row for row in report["scores"] if row["maps"] == "centre" and row["score"] == "pointing")
    hits = []
    for index in range(3):
        x, y, side = squares[1][f"test/blue/{index}.png"]
        inside = [sum(first <= pixel < first + side for pixel in (31, 32)) for first in (x, y)]
        hits.append(inside[0] * inside[1] / 4)  # of the four pixels around the middle
    assert sum(hits) > 0
    assert row["mean"] == pytest.approx(sum(hits) / 3)


def test_scores_against_segmentations(squares: Squares, tmp_path: Path, score: Score) -> None:
    """Masks that are the boxes give the scores of the boxes; other masks do not."""
    masks, other = (tmp_path / name for name in ("masks", "other"))
    for path, (x, y, side) in squares[1].items():
        votes = np.zeros((64, 64), np.uint8)
        votes[y : y + side, x : x + side] = 153
        for where, picture in ((masks, votes), (other, 153 - votes)):
            save(picture, where / "segmentations" / path)
    found = [score("", "layers=[2]", "count=4")]
    for where in (masks, other):
        words = ["truth=segmentations", f"annotations={where}", "mask_threshold=0.55"]
        found.append(score("_segmentations", "layers=[2]", "count=4", *words))
    reports, candidates, _ = zip(*found, strict=True)
    for first, second in zip(reports[0]["scores"], reports[1]["scores"], strict=True):
        assert (first["maps"], first["score"]) == (second["maps"], second["score"])
        assert first["mean"] == pytest.approx(second["mean"], abs=0.02)
    assert (reports[1]["truth"], reports[1]["mask_threshold"]) == ("segmentations", 0.55)
    energies = [np.array([float(row["test_energy"]) for row in clusters]) for clusters in candidates]
    np.testing.assert_allclose(energies[1], energies[0], atol=0.02)
    np.testing.assert_allclose(energies[1] + energies[2], 1, atol=0.01)  # a mask and the rest of the picture


def test_scores_against_parts(squares: Squares, tmp_path: Path, score: Score) -> None:
    """The middle of the picture is hit by the centre map in every image, a corner in none."""
    paths = list(squares[1])
    rows = [(path, name, *xy, True) for path in paths for name, xy in (("middle", (32.0, 32.0)), ("corner", (6.0, 6.0)))]
    write_table(tmp_path / "parts.parquet", "path part x y visible", rows)
    write_table(tmp_path / "boxes.parquet", BOXES, [(path, 0.0, 0.0, 40.0, 20.0) for path in paths])
    report, clusters, printed = score("_parts", "truth=parts", f"annotations={tmp_path}", "layers=[0,3]")
    assert (report["images"], report["alpha"]) == ({"val": 12, "test": 12}, 0.1)
    found = {(row["maps"], row["part"]): row for row in report["scores"]}
    assert len(found) == 2 * 6
    whole = {"mean": 1, "low": 1, "high": 1}
    middle, corner = found["centre", "middle"], found["centre", "corner"]
    assert (middle["hit"], middle["exclusivity"], middle["images"]) == (whole, whole, 12)
    assert (corner["hit"]["mean"], corner["exclusivity"]["mean"]) == (0, 0)
    best = max(clusters, key=lambda row: float(row["val_corner hit"]))
    assert found["clusters", "corner"]["candidate"] == best["candidate"]
    assert found["clusters", "corner"]["hit"]["mean"] == pytest.approx(float(best["test_corner hit"]), abs=1e-6)
    assert f"corner  hit {float(best['test_corner hit']):.3f} [" in printed
    assert "centre  hit 0.500, mean over 2 parts, each with its best candidate" in printed


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("elsewhere.png", 1.0, 1.0),
            "none of the boxes is of an image in the val split of dataset folder_data; do the paths ",
        ),
        (("val/red/0.png", 900.0, 1.0), "all boxes of images in the val split of dataset folder_data lie outside of what the "),
    ],
)
def test_annotations_of_other_images_or_places_are_an_error(
    squares: Squares, tmp_path: Path, call: Command, row: tuple[str, float, float], message: str
) -> None:
    write_table(tmp_path / "boxes.parquet", BOXES, [(*row, 1.0, 1.0)])
    code, _, error = call("score", f"run={squares[0]}", f"annotations={tmp_path}", f"out={tmp_path / 'out'}")
    assert code == 2
    assert error.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
