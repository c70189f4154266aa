import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.vtab.rules import binary_to_grey
from data_prep.vtab.tasks import TASKS

count, clevr, kitti = (TASKS[name].label for name in ("clevr_count", "clevr_distance", "kitti_distance"))


def clevr_objects(*distances: float) -> dict[str, Any]:
    return {"objects": {"pixel_coords": np.array([(300, -1, distance) for distance in distances], np.float32)}}


def kitti_objects(*objects: tuple[int, float]) -> dict[str, Any]:
    location = np.array([(-50, 200, distance) for _, distance in objects], np.float32).reshape(-1, 3)
    return {"objects": {"type": np.array([kind for kind, _ in objects], np.int64), "location": location}}


@pytest.mark.parametrize("number", range(3, 11))
def test_clevr_count_is_the_number_of_objects_from_three(number: int) -> None:
    assert count(clevr_objects(*range(number))) == number - 3


@pytest.mark.parametrize(
    ("distance", "label"),
    [
        (0.1, 0),
        (8.0, 0),
        (8.001, 1),
        (8.5, 1),
        (8.501, 2),
        (9.0, 2),
        (9.001, 3),
        (9.5, 3),
        (9.501, 4),
        (10.0, 4),
        (10.01, 5),
        (50, 5),
    ],
)
def test_clevr_distance_of_one_on_a_bound_is_the_nearer_class(distance: float, label: int) -> None:
    assert clevr(clevr_objects(60, distance, 99)) == label


def test_distances_are_compared_in_single_precision() -> None:
    just_above = 8.0 + 1e-8  # a double that no float tells from 8
    assert clevr({"objects": {"pixel_coords": [(0, 0, just_above)]}}) == 0
    assert kitti({"objects": {"type": [0], "location": [(0, 0, just_above)]}}) == 0


@pytest.mark.parametrize(
    ("objects", "label"),
    [
        ([], 3),
        ([(3, 5.0), (4, 5.0), (5, 5.0), (6, 5.0), (7, 5.0)], 3),  # people, cyclists, trams, others
        ([(0, 8.0)], 0),
        ([(1, 8.1)], 1),
        ([(2, 20.0)], 1),
        ([(0, 20.1)], 2),
        ([(0, 998.0)], 2),
        ([(3, 1.0), (0, 30.0), (2, 15.0)], 1),
    ],
)
def test_kitti_is_the_nearest_car_van_or_truck(objects: list[tuple[int, float]], label: int) -> None:
    assert kitti(kitti_objects(*objects)) == label


def test_distances_are_binned_as_by_the_largest_bound_below() -> None:
    def largest_below(distance: float, bounds: list[float]) -> int:
        return max(index for index, bound in enumerate(bounds) if bound < distance)

    draw = random.Random(0)
    for _ in range(300):
        distances = [round(draw.uniform(7, 11) * 4) / 4 for _ in range(draw.randint(1, 4))]  # many ties
        assert clevr(clevr_objects(*distances)) == largest_below(min(distances), [0, 8, 8.5, 9, 9.5, 10, 100])
        depths = [round(draw.uniform(1, 30)) for _ in range(draw.randint(1, 4))]
        assert kitti(kitti_objects(*((draw.randint(0, 2), depth) for depth in depths))) == largest_below(
            min(depths), [-100, 8, 20, 999]
        )


def test_dsprites_bins() -> None:
    location, orientation = (TASKS[f"dsprites_{kind}"].label for kind in ("location", "orientation"))
    assert [location({"label_x_position": x}) for x in range(32)] == np.repeat(range(16), 2).tolist()
    bins = [orientation({"label_orientation": np.int64(angle)}) for angle in range(40)]
    assert bins == [int(angle / 2.5) for angle in range(40)]
    assert np.bincount(bins).tolist() == [3, 2] * 8


@pytest.mark.parametrize(
    ("task", "features", "label"),
    [
        ("smallnorb_azimuth", {"label_azimuth": 17, "label_elevation": 8}, 17),
        ("smallnorb_elevation", {"label_azimuth": 17, "label_elevation": 8}, 8),
        ("cifar100", {"label": np.uint8(99), "coarse_label": 3}, 99),
        ("dmlab", {"label": 5}, 5),
    ],
)
def test_other_labels_are_taken_as_they_are(task: str, features: dict[str, Any], label: int) -> None:
    found = TASKS[task].label(features)
    assert found == label
    assert type(found) is int


def test_dsprites_images_become_black_and_white_without_loss() -> None:
    stored = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG")
    for name in ("dsprites_location", "dsprites_orientation"):
        with Image.open(io.BytesIO(TASKS[name].image(buffer.getvalue()))) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.repeat(stored[..., None] * 255, 3, axis=2))
    assert binary_to_grey is TASKS["dsprites_location"].image


def test_other_images_stay_the_bytes_that_are_stored() -> None:
    others = [task for name, task in TASKS.items() if not name.startswith("dsprites")]
    assert len(others) == 17
    assert all(task.image(b"bytes") == b"bytes" for task in others)
