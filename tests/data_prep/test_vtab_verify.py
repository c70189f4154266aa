import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from vtab_origins import png

from data_prep.vtab import facts
from data_prep.vtab.records import Key, tfds_order
from data_prep.vtab.tasks import BUILDERS, TASKS
from data_prep.vtab.verify import check_byte_counts, check_cuts, check_labels, check_source, image_check
from gift_vit.common.errors import ConfigError
from tests.data.conftest import encode

EXPECTED = Path(__file__).parents[2] / "../shared/spec/vtab1k_expected_ids.json"
NUMBERS = {3000: ["AnnualCrop", "Forest", "HerbaceousVegetation", "Residential", "SeaLake"], 2000: ["Pasture"]}
NUMBERS[2500] = ["Highway", "Industrial", "PermanentCrop", "River"]
EUROSAT = {name: size for size, names in NUMBERS.items() for name in names}  # images of each class, numbered from 1


@cache
def keys_of(builder: str) -> dict[str, list[Key]]:
    """All keys in stored order, which follow from the official sizes and names."""
    if builder == "eurosat":
        keys = [f"{name}_{name}_{number}.jpg" for name, size in EUROSAT.items() for number in range(1, size + 1)]
        return {"train": tfds_order("train", keys)}
    prefix = {"train": "train_", "validation": "valid_", "test": "test_"} if builder == "patch_camelyon" else None
    counts = BUILDERS[builder].counts.items()
    rows = {split: [f"{prefix[split]}{row}" if prefix else row for row in range(size)] for split, size in counts}
    return {split: tfds_order(split, keys) for split, keys in rows.items()}


@pytest.mark.skipif(not EXPECTED.is_file(), reason=f"{EXPECTED} is not there")
def test_the_facts_are_those_of_the_specification() -> None:
    expected = json.loads(EXPECTED.read_text())
    expected["svhn_cropped"] = expected.pop("svhn")
    assert expected.keys() == facts.ID_HASHES.keys()
    for name, hashes in facts.ID_HASHES.items():
        assert hashes == {split: expected[name][f"{split}_sha256"] for split in ("train800", "val200", "test")}
    for task in ("eurosat", "sun397", "dsprites_location", "dsprites_orientation"):
        source, _, kind = task.partition("_") if "_" in task else (task, "", "label")
        assert facts.CLASS_COUNTS[task] == expected[source][f"classes_{kind}"]
        assert facts.HISTOGRAMS.get(task) == expected[source].get(f"hist1000_{kind}")


def test_facts_are_about_tasks_builders_and_splits_that_exist() -> None:
    assert set(facts.CLASS_COUNTS) | set(facts.HISTOGRAMS) <= set(TASKS)
    for table in (facts.NUM_BYTES, facts.OTHER_COUNTS):
        for builder, splits in table.items():
            assert set(splits) <= set(BUILDERS[builder].counts)
    assert set(BUILDERS) >= facts.LOCAL_KEYS
    assert set(facts.ID_HASHES) == {"cifar100", "svhn_cropped", "dsprites", "patch_camelyon", "eurosat", "sun397"}


@pytest.mark.parametrize("builder", sorted(set(facts.ID_HASHES) - {"sun397"}))  # whose names are a list of TFDS's
def test_ids_that_follow_from_the_official_sizes_are_the_known_ones(builder: str) -> None:
    keys, task = keys_of(builder), next(task for task in TASKS.values() if task.builder.name == builder)
    for split, stored in keys.items():
        check_source(BUILDERS[builder], split, stored, official=True)
    check_cuts(task, keys, official=True)
    shifted = {**keys, "train": keys["train"][1:] + keys["train"][:1]}
    check_cuts(task, shifted, official=False)
    with pytest.raises(ConfigError, match=r"train800 holds other images than the benchmark's: .* SHA-256 [0-9a-f]{12}…, expec"):
        check_cuts(task, shifted, official=True)


@pytest.mark.parametrize("task", ["dsprites_location", "dsprites_orientation"])
def test_histograms_of_dsprites_follow_from_the_rows(task: str) -> None:
    def label_of(row: int) -> int:
        return TASKS[task].label({"label_x_position": row // 32 % 32, "label_orientation": row // 1024 % 40})

    stored = keys_of("dsprites")["train"]
    rows = {name: [int(stored[i]) for i in cut.positions(len(stored))] for name, cut in TASKS[task].cuts.items()}
    labels = {name: np.array([label_of(row) for row in chosen]) for name, chosen in rows.items()}
    check_labels(TASKS[task], labels)
    swapped = {**labels, "val200": (labels["val200"] + 1) % 16}
    with pytest.raises(ConfigError, match=r"train800 and val200 hold \[.*\] images of the classes, expected \["):
        check_labels(TASKS[task], swapped)


def test_a_wrong_number_a_repeated_key_and_a_wrong_order_are_errors() -> None:
    stored = tfds_order("test", [f"{name}.jpg" for name in range(3669)])
    twice, swapped = [*stored[:8], *stored[7:-1]], [*stored[:5], stored[6], stored[5], *stored[7:]]
    for keys, official, message in [
        (stored, True, None),
        (stored[1:], True, "oxford_iiit_pet's split test holds 3668 images, expected 3669"),
        (stored[1:], False, None),
        (twice, True, f"holds '{stored[7]}' twice"),
        (swapped, True, f"position 5 holds '{stored[6]}', expected '{stored[5]}'"),
        (swapped, False, f"position 5 holds '{stored[6]}', expected '{stored[5]}'"),
    ]:
        with pytest.raises(ConfigError, match=message) if message else nullcontext():
            check_source(BUILDERS["oxford_iiit_pet"], "test", keys, official)
    for size in (76126, 76127, 76128, 76129):  # one image cannot be decoded, and may be left out
        wrong = f"sun397's split train holds {size} images, expected 76127 or 76128; .* get it anew"
        with nullcontext() if size in {76127, 76128} else pytest.raises(ConfigError, match=wrong):
            check_source(BUILDERS["sun397"], "train", tfds_order("train", range(size)), official=True)


def test_the_three_splits_may_not_share_an_image() -> None:
    counts = TASKS["dtd"].builder.counts.items()
    keys: dict[str, list[Key]] = {split: [f"{split}_{index}" for index in range(size)] for split, size in counts}
    check_cuts(TASKS["dtd"], keys, official=True)
    keys["test"][7] = keys["train"][799]
    with pytest.raises(ConfigError, match="train800 and test share 1 images, among them 'train_799'; expected none"):
        check_cuts(TASKS["dtd"], keys, official=True)
    keys["test"][7] = keys["train"][800]  # not one of the 800
    check_cuts(TASKS["dtd"], keys, official=True)

    small: dict[str, list[Key]] = {"train": [f"{index}" for index in range(1033)]}
    with pytest.raises(ConfigError, match="train800 and val200 share 181 images"):
        check_cuts(TASKS["eurosat"], small, official=False)
    rows: dict[str, list[Key]] = {"train": list(range(50000)), "test": list(range(10000))}
    check_cuts(TASKS["cifar100"], rows, official=False)  # row numbers of two splits are different images


def cycling(train: int, val: int, test: int) -> dict[str, NDArray[np.int64]]:
    """Labels that run through so many classes of each split."""
    sizes = {"train800": (800, train), "val200": (200, val), "test": (1000, test)}
    return {name: np.arange(size) % classes for name, (size, classes) in sizes.items()}


@pytest.mark.parametrize("task", ["cifar100", "caltech101", "flowers102"])
def test_published_class_counts_of_val200_are_checked(task: str) -> None:
    count, classes = facts.CLASS_COUNTS[task]["val200"], TASKS[task].num_classes
    check_labels(TASKS[task], cycling(classes, count, classes))
    with pytest.raises(ConfigError, match=f"{count + 1} classes occur in val200, expected {count}"):
        check_labels(TASKS[task], cycling(classes, count + 1, classes))
    check_labels(TASKS[task], cycling(classes, count + 1, classes), canonical=False)


def test_caltech101_with_other_byte_counts_is_a_local_split() -> None:
    caltech = BUILDERS["caltech101"]
    assert check_byte_counts(caltech, {"num_bytes_train": "44481158", "num_bytes_test": "94837659"}) == []
    for description in ({"num_bytes_train": "44481159", "num_bytes_test": "94837659"}, {"num_bytes_test": "94837659"}, {}):
        (warning,) = check_byte_counts(caltech, description)
        assert "local" in warning
        assert f"num_bytes_train is {description.get('num_bytes_train', 'unknown')} (canonical: 44481158)" in warning


@pytest.mark.parametrize("builder", ["oxford_flowers102", "eurosat", "dmlab"])
def test_byte_counts_of_others_are_compared_where_they_are_told(builder: str) -> None:
    right = {f"num_bytes_{split}": str(number) for split, number in facts.NUM_BYTES[builder].items()}
    assert check_byte_counts(BUILDERS[builder], right) == []
    assert check_byte_counts(BUILDERS[builder], {"builder": builder}) == []
    with pytest.raises(ConfigError, match=f"{builder}'s num_bytes_train is 12, expected {right['num_bytes_train']}"):
        check_byte_counts(BUILDERS[builder], {**right, "num_bytes_train": "12"})
    assert check_byte_counts(BUILDERS["dtd"], {"num_bytes_train": "12"}) == []


SIZED = {name: task.size for name, task in TASKS.items() if task.size is not None}


@pytest.mark.parametrize("name", SIZED)
def test_images_of_another_size_are_errors(name: str) -> None:
    height, width = SIZED[name]
    check = image_check(TASKS[name], official=True)
    check(png(size=(width, height)), "key")
    with pytest.raises(ConfigError, match=f"image key is {height}×{width + 1} pixels, expected {height}×{width}"):
        check(png(size=(width + 1, height)), "key")
    image_check(TASKS[name], official=False)(png(size=(width + 1, height)), "key")


@pytest.mark.parametrize("official", [True, False])
def test_an_image_that_cannot_be_decoded_is_an_error(official: bool) -> None:
    check = image_check(TASKS["dtd"], official)
    for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
        check(encode(Image.new(mode, (5, 5)), "TIFF"), "key")
    for broken in (b"", b"no image", png(size=(50, 50))[:40]):
        with pytest.raises(ConfigError, match=r"cannot decode image banded/a\.jpg"):
            check(broken, "banded/a.jpg")


def test_dsprites_are_black_and_white() -> None:
    check = image_check(TASKS["dsprites_location"], official=True)
    check(png("L", (64, 64), 255), "0")
    check(TASKS["dsprites_location"].image(png("L", (64, 64), 1)), "0")
    for grey in (1, 254):
        with pytest.raises(ConfigError, match=f"image 7 has pixels of {grey}, expected only 0 and 255"):
            check(png("L", (64, 64), grey), "7")


def retinopathy_image(size: tuple[int, int], corner: int = 128) -> bytes:
    image = Image.new("RGB", size, (128, 128, 128))
    image.paste((200, 90, 30), (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    image.paste((corner,) * 3, (size[0] - 9, size[1] - 9, size[0], size[1]))
    return encode(image, "JPEG", quality=72)


def test_retinopathy_images_are_cropped_with_grey_corners() -> None:
    check = image_check(TASKS["retinopathy"], official=True)
    check(retinopathy_image((540, 540)), "10_left")
    check(retinopathy_image((540, 444)), "10_left")
    with pytest.raises(ConfigError, match="image 10_left is 400×541 pixels, expected at most 540 each way"):
        check(retinopathy_image((541, 400)), "10_left")
    with pytest.raises(ConfigError, match=r"image 10_left has corners of .*, expected the grey 128"):
        check(retinopathy_image((540, 540), corner=0), "10_left")
