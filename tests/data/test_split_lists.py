"""Image trees with split lists. The five real FGVC lists are read in ``tests/data_prep/test_fgvc_real_lists.py``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import build_dataset
from gift_vit.data.config import SplitListsConfig

Make = Callable[..., Any]


def write(root: Path, lists: dict[str, Any], with_images: bool = True) -> Path:
    """The lists, and below ``images/`` a one-colour image per listed path, the colour counted up."""
    colour = 0
    for split, listed in lists.items():
        root.mkdir(exist_ok=True)
        (root / f"{split}.json").write_text(json.dumps(listed))
        for path in listed if with_images else []:
            (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 3), (colour, 0, 0)).save(root / "images" / path)
            colour += 1
    return root


def test_one_class_map_for_all_splits_and_string_ids_sort_as_strings(tmp_path: Path, make_config: Make) -> None:
    """Val lacks a class, as NABirds' does; numbering each split by itself would give its last image 1 instead of 2."""
    lists = {
        "train": {"9/a.png": 9, "1010/b.png": 1010, "12/c.png": 12},
        "val": {"9/d.png": 9, "1010/e.png": 1010},
        "test": {"1010/f.png": 1010, "12/g.png": 12},
    }
    dataset = build_dataset(make_config(SplitListsConfig, root=write(tmp_path, lists)))
    labels = {split: dataset.split(split).labels.tolist() for split in dataset.splits}
    assert labels == {"train": [0, 2, 1], "val": [0, 2], "test": [2, 1]}
    assert dataset.class_names == ["9", "12", "1010"]
    image, label = dataset.split("test")[1]
    assert (image.getpixel((0, 0)), label) == ((6, 0, 0), 1)
    lists = {"train": {"x/a.png": "9", "x/b.png": "10"}, "val": {"x/c.png": "10"}, "test": {"x/d.png": "009"}}
    dataset = build_dataset(make_config(SplitListsConfig, root=write(tmp_path / "strings", lists)))
    assert dataset.class_names == ["009", "10", "9"]
    assert dataset.split("train").labels.tolist() == [2, 1]


def test_the_fingerprint_sees_sizes_and_labels(tmp_path: Path, make_config: Make) -> None:
    lists = {"train": {"a.png": 1, "b.png": 2}, "val": {"c.png": 1}, "test": {"d.png": 2}}
    first = build_dataset(make_config(SplitListsConfig, root=write(tmp_path / "1", lists))).fingerprint
    assert build_dataset(make_config(SplitListsConfig, root=write(tmp_path / "2", lists))).fingerprint == first
    (tmp_path / "2/images/surplus.png").write_bytes(b"listed nowhere")
    assert build_dataset(make_config(SplitListsConfig, root=tmp_path / "2")).fingerprint == first
    with (tmp_path / "2/images/c.png").open("ab") as file:
        file.write(b"x")
    assert build_dataset(make_config(SplitListsConfig, root=tmp_path / "2")).fingerprint != first
    lists["val"] = {"c.png": 2}
    assert build_dataset(make_config(SplitListsConfig, root=write(tmp_path / "1", lists))).fingerprint != first


def test_missing_folders_and_lists_are_named(tmp_path: Path, make_config: Make) -> None:
    lists = {"train": {"a.png": 1}, "val": {"b.png": 1}}
    for root, absent in ((tmp_path / "gone", "gone"), (write(tmp_path, lists, with_images=False), "images")):
        with pytest.raises(ConfigError, match=rf"dataset some: there is no folder {tmp_path / absent}; ask the author"):
            build_dataset(make_config(SplitListsConfig, root=root))
    write(tmp_path, lists)
    with pytest.raises(ConfigError, match=rf"dataset some: there is no file {tmp_path}/test\.json; ask the author"):
        build_dataset(make_config(SplitListsConfig, root=tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", r"test\.json is no JSON: Expecting"),
        ('["a.png"]', r"test\.json holds a JSON list; expected an object"),
        ('{"b.png": "1"}', "its split lists use int, str as class ids; expected all strings or all integers"),
        ('{"b.png": [1]}', r"test\.json: the class id of b\.png is a JSON list or object; expected text or an integer"),
        ('{"b.png": {"id": 1}}', r"the class id of b\.png is a JSON list or object"),
        ('{"b.png": 1, "./b.png": 2}', r"test\.json has \./b\.png twice, with the class ids 1 and 2"),
        ("[" * 100_000, r"test\.json is no JSON"),
        ('{"b.png": null}', "its split lists use NoneType, int as class ids"),
    ],
)
def test_wrong_lists_are_named(tmp_path: Path, make_config: Make, content: str, message: str) -> None:
    write(tmp_path, {"train": {"a.png": 1}, "val": {"b.png": 1}})
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        build_dataset(make_config(SplitListsConfig, root=tmp_path))
