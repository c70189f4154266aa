"""The benchmark's tasks: their cuts, in the order of TFDS, and what their labels and images are made of."""

import hashlib
import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.vtab.records import Key, tfds_order
from data_prep.vtab.tasks import BUILDERS, GROUPS, TASKS, Cut, binary_to_grey
from gift_vit.common.errors import ConfigError
from tests.data.conftest import encode

EYES, DSPRITES = "diabetic_retinopathy_detection", "train[589824:590024] train[663552:]"
# task: title, group, builder/config:version, classes, the three cuts, size of the test split, height and width
EXPECTED = {
    "cifar100": "CIFAR-100 natural cifar100:3.0.2 100 train[:800] train[45000:45200] test 10000 (32, 32)",
    "caltech101": "Caltech101 natural caltech101:3.0.2 102 train[:800] train[2754:2954] test 6084 None",
    "dtd": "DTD natural dtd:3.0.1 47 train[:800] validation[:200] test 1880 None",
    "flowers102": "Flowers102 natural oxford_flowers102:2.1.1 102 train[:800] validation[:200] test 6149 None",
    "pets": "Pets natural oxford_iiit_pet:4.0.0 37 train[:800] train[2944:3144] test 3669 None",
    "svhn": "SVHN natural svhn_cropped:3.1.0 10 train[:800] train[65931:66131] test 26032 (32, 32)",
    "sun397": "Sun397 natural sun397/tfds:4.0.0 397 train[:800] validation[:200] test 21750 None",
    "patch_camelyon": "Patch Camelyon specialized patch_camelyon:2.0.0 2 train[:800] validation[:200] test 32768 (96, 96)",
    "eurosat": "EuroSAT specialized eurosat/rgb:2.0.0 10 train[:800] train[16200:16400] train[21600:] 5400 (64, 64)",
    "resisc45": "Resisc45 specialized resisc45:3.0.0 45 train[:800] train[18900:19100] train[25200:] 6300 (256, 256)",
    "retinopathy": f"Retinopathy specialized {EYES}/btgraham-300:3.0.0 5 train[:800] validation[:200] test 42670 None",
    "clevr_count": "Clevr/count structured clevr:3.1.0 8 train[:800] train[63000:63200] validation 15000 (320, 480)",
    "clevr_distance": "Clevr/distance structured clevr:3.1.0 6 train[:800] train[63000:63200] validation 15000 (320, 480)",
    "dmlab": "DMLab structured dmlab:2.0.1 6 train[:800] validation[:200] test 22735 (360, 480)",
    "kitti_distance": "KITTI/distance structured kitti:3.3.0 4 train[:800] validation[:200] test 711 None",
    "dsprites_location": f"dSprites/loc structured dsprites:2.1.0 16 train[:800] {DSPRITES} 73728 (64, 64)",
    "dsprites_orientation": f"dSprites/ori structured dsprites:2.1.0 16 train[:800] {DSPRITES} 73728 (64, 64)",
    "smallnorb_azimuth": "SmallNORB/azi structured smallnorb:2.1.0 18 train[:800] test[:200] test[12150:] 12150 (96, 96)",
    "smallnorb_elevation": "SmallNORB/ele structured smallnorb:2.1.0 9 train[:800] test[:200] test[12150:] 12150 (96, 96)",
}


def test_there_are_tasks_of_all_builders_in_groups_of_7_4_and_8() -> None:
    assert list(TASKS) == list(EXPECTED)
    assert {task.builder.name for task in TASKS.values()} == set(BUILDERS)
    assert {group: len(names) for group, names in GROUPS.items()} == {"natural": 7, "specialized": 4, "structured": 8}
    assert [name for names in GROUPS.values() for name in names] == list(TASKS)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_task_is_what_the_benchmark_says(name: str) -> None:
    task = TASKS[name]
    builder = "/".join(filter(None, [task.builder.name, task.builder.config])) + ":" + task.builder.version
    counts = task.builder.counts
    cuts = " ".join(cut.expression(counts[cut.split]) for cut in task.cuts.values())
    test = len(task.cuts["test"].positions(counts[task.cuts["test"].split]))
    assert f"{task.title} {task.group} {builder} {task.num_classes} {cuts} {test} {task.size}" == EXPECTED[name]
    assert list(task.cuts) == ["train800", "val200", "test"]
    assert [len(task.cuts[split].positions(counts[task.cuts[split].split])) for split in ("train800", "val200")] == [800, 200]


def test_starts_are_rounded_down_and_a_split_that_ends_too_early_is_an_error() -> None:
    assert Cut("train", 60, 200).positions(1031) == range(618, 818)  # 618.6
    assert Cut("train", 80).positions(1031) == range(824, 1031)  # 824.8
    assert Cut("test").positions(7) == range(7)
    for cut in (Cut("train", 0, 800), Cut("train", 90, 200), Cut("train", 100)):
        with pytest.raises(ConfigError, match=r"train\[.*needs more examples than the split's 799"):
            cut.positions(799)


def test_only_a_label_of_the_builder_has_its_class_names() -> None:
    without = {name for name, task in TASKS.items() if not task.label_is_builders}
    pairs = {"clevr": ("count", "distance"), "dsprites": ("location", "orientation"), "smallnorb": ("azimuth", "elevation")}
    assert without == {f"{name}_{kind}" for name, kinds in pairs.items() for kind in kinds} | {"kitti_distance"}


@pytest.mark.parametrize("keys", [range(500), [f"class/image_{index:03d}.jpg" for index in range(500)]], ids=["int", "str"])
def test_keys_are_sorted_by_the_md5_of_split_and_key_whatever_their_order(keys: list[Key]) -> None:
    shuffled = random.Random(0).sample(list(keys), len(keys))
    expected = sorted(keys, key=lambda key: int(hashlib.md5(f"validation{key}".encode()).hexdigest(), 16))
    assert tfds_order("validation", shuffled) == expected


def test_backslashes_count_as_slashes() -> None:
    windows = tfds_order("train", [f"folder\\{index}" for index in range(50)])
    assert [str(key).replace("\\", "/") for key in windows] == tfds_order("train", [f"folder/{index}" for index in range(50)])


count, clevr, kitti = (TASKS[name].label for name in ("clevr_count", "clevr_distance", "kitti_distance"))


def clevr_objects(*distances: float) -> dict[str, Any]:
    return {"objects": {"pixel_coords": np.array([(300, -1, distance) for distance in distances], np.float32)}}


def kitti_objects(*objects: tuple[int, float]) -> dict[str, Any]:
    location = np.array([(-50, 200, distance) for _, distance in objects], np.float32).reshape(-1, 3)
    return {"objects": {"type": np.array([kind for kind, _ in objects], np.int64), "location": location}}


CLEVR = {0.1: 0, 8.0: 0, 8.001: 1, 8.5: 1, 8.501: 2, 9.0: 2, 9.001: 3, 9.5: 3, 9.501: 4, 10.0: 4, 10.01: 5, 50: 5}


def test_clevr_counts_from_three_and_a_distance_on_a_bound_is_of_the_nearer_class() -> None:
    assert [count(clevr_objects(*range(number))) for number in range(3, 11)] == list(range(8))
    assert {distance: clevr(clevr_objects(60, distance, 99)) for distance in CLEVR} == CLEVR


def test_distances_are_compared_in_single_precision() -> None:
    just_above = 8.0 + 1e-8  # a double that no float tells from 8
    assert clevr({"objects": {"pixel_coords": [(0, 0, just_above)]}}) == 0
    assert kitti({"objects": {"type": [0], "location": [(0, 0, just_above)]}}) == 0


KITTI = {
    3: [[], [(3, 5.0), (4, 5.0), (5, 5.0), (6, 5.0), (7, 5.0)]],  # people, cyclists, trams, others
    0: [[(0, 8.0)]],
    1: [[(1, 8.1)], [(2, 20.0)], [(3, 1.0), (0, 30.0), (2, 15.0)]],
    2: [[(0, 20.1)], [(0, 998.0)]],
}


def test_kitti_is_the_nearest_car_van_or_truck() -> None:
    for label, scenes in KITTI.items():
        assert [kitti(kitti_objects(*objects)) for objects in scenes] == [label] * len(scenes)


def test_dsprites_bins() -> None:
    location, orientation = (TASKS[f"dsprites_{kind}"].label for kind in ("location", "orientation"))
    assert [location({"label_x_position": x}) for x in range(32)] == np.repeat(range(16), 2).tolist()
    bins = [orientation({"label_orientation": np.int64(angle)}) for angle in range(40)]
    assert bins == [int(angle / 2.5) for angle in range(40)]
    assert np.bincount(bins).tolist() == [3, 2] * 8


def test_other_labels_are_taken_as_they_are() -> None:
    norb = {"label_azimuth": 17, "label_elevation": 8}
    assert [TASKS[f"smallnorb_{kind}"].label(norb) for kind in ("azimuth", "elevation")] == [17, 8]
    others = [TASKS["cifar100"].label({"label": np.uint8(99), "coarse_label": 3}), TASKS["dmlab"].label({"label": 5})]
    assert [(label, type(label)) for label in others] == [(99, int), (5, int)]


def test_dsprites_images_become_black_and_white_without_loss_and_others_stay_as_they_are() -> None:
    stored = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    for name in ("dsprites_location", "dsprites_orientation"):
        with Image.open(io.BytesIO(TASKS[name].image(encode(stored)))) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.repeat(stored[..., None] * 255, 3, axis=2))
    assert binary_to_grey is TASKS["dsprites_location"].image
    others = [task for name, task in TASKS.items() if not name.startswith("dsprites")]
    assert all(task.image(b"bytes") == b"bytes" for task in others)
