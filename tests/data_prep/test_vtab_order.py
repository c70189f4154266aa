import hashlib
import importlib
import random

import pytest

from data_prep.vtab.order import tfds_order
from data_prep.vtab.records import Key


@pytest.mark.parametrize("keys", [range(500), [f"class/image_{index:03d}.jpg" for index in range(500)]], ids=["int", "str"])
def test_keys_are_sorted_by_the_md5_of_split_and_key_whatever_their_order(keys: list[Key]) -> None:
    def number(key: Key) -> int:
        return int(hashlib.md5(f"validation{key}".encode()).hexdigest(), 16)

    shuffled = random.Random(0).sample(list(keys), len(keys))
    assert tfds_order("validation", shuffled) == sorted(keys, key=number)


def test_the_order_depends_on_the_split() -> None:
    assert tfds_order("train", range(50)) != tfds_order("test", range(50))


def test_the_first_images_of_cifar100_and_svhn_are_the_known_ones() -> None:
    assert tfds_order("train", range(50000))[:5] == [16399, 1680, 47917, 17307, 27051]
    assert tfds_order("test", range(10000))[:5] == [9933, 5669, 163, 6686, 4747]
    assert tfds_order("train", range(73257))[65931:65934] == [21145, 64736, 23870]


def test_backslashes_count_as_slashes() -> None:
    windows = tfds_order("train", [f"folder\\{index}" for index in range(50)])
    assert [str(key).replace("\\", "/") for key in windows] == tfds_order("train", [f"folder/{index}" for index in range(50)])


@pytest.mark.parametrize("keys", [range(200), [f"a\\b/é_{index}" for index in range(200)]], ids=["int", "str"])
def test_it_is_the_order_of_tfds_own_hasher(keys: list[Key]) -> None:
    pytest.importorskip("tensorflow_datasets", reason="the extra vtab is not installed")
    hasher = importlib.import_module("tensorflow_datasets.core.hashing").Hasher("train")
    assert tfds_order("train", keys) == sorted(keys, key=hasher.hash_key)
