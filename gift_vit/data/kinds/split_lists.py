"""An image tree with split lists: ``train.json``, ``val.json`` and ``test.json``, each ``{relative image path: class id}``.

The form of the FGVC splits of Savadikar et al. (arXiv 2312.00700) and of VPT before them. Class ids are strings or integers and
need not be contiguous; they are numbered once, over all splits together, because NABirds' val lacks two of its 555 classes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.data.base import FileSource, Origin, VisionDataset, fingerprint, register_dataset
from gift_vit.data.config import SPLITS, SplitListsConfig
from gift_vit.data.decode import Decoder

SplitList: TypeAlias = Mapping[str, "str | int"]


@register_dataset("split_lists", SplitListsConfig)
def build_split_lists(cfg: SplitListsConfig) -> VisionDataset:
    """Read the three lists and look whether every listed image is there."""
    root = expanded(cfg.root)
    image_root = root / cfg.image_root
    lists = {split: _read_list(_list_file(split, cfg)) for split in SPLITS}
    ids = _sorted_ids(lists, cfg)
    class_map = {class_id: index for index, class_id in enumerate(ids)}
    splits: dict[str, FileSource] = {}
    decode = Decoder.of_dataset(cfg)
    for split, listed in lists.items():
        labels = [class_map[class_id] for class_id in listed.values()]
        splits[split] = FileSource(image_root, list(listed), labels, _list_file(split, cfg), cfg.how_to_prepare(), decode)
    return VisionDataset(
        cfg.name,
        cfg.num_classes or len(ids),
        _class_names(ids, lists),
        {**splits},
        fingerprint(splits),
        decode.name,
        class_order="sorted class ids",
        origins={split: Origin((os.path.relpath(_list_file(split, cfg), root),)) for split in splits},
    )


def _list_file(split: str, cfg: SplitListsConfig) -> Path:
    return expanded(cfg.root) / cfg.splits_dir / f"{split}.json"


def _read_list(file: Path) -> dict[str, str | int]:
    try:
        listed = json.loads(file.read_bytes(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is no JSON: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if not isinstance(listed, _Pairs):
        raise ConfigError(f"{file} holds a JSON {type(listed).__name__}; expected an object {{relative image path: class id}}")
    ids: dict[str, str | int] = {}
    for path, class_id in listed:
        if isinstance(class_id, list):
            raise ConfigError(f"{file}: the class id of {path} is a JSON list or object; expected text or an integer")
        if ids.setdefault(os.path.normpath(path), class_id) != class_id:
            raise ConfigError(f"{file} has {path} twice, with the class ids {ids[os.path.normpath(path)]} and {class_id}")
    return ids


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, also those that are there twice."""


def _sorted_ids(lists: Mapping[str, SplitList], cfg: SplitListsConfig) -> list[str | int]:
    """The class ids of all splits together: strings in string order, integers in their order."""
    ids = {class_id for listed in lists.values() for class_id in listed.values()}
    types = {type(class_id) for class_id in ids}
    if types == {str} or types == {int}:
        return sorted(ids)  # pyright: ignore[reportArgumentType, reportCallIssue]
    found = ", ".join(sorted(kind.__name__ for kind in types)) or "nothing"
    raise ConfigError(f"dataset {cfg.name}: its split lists use {found} as class ids; expected all strings or all integers")


def _class_names(ids: list[str | int], lists: Mapping[str, SplitList]) -> list[str]:
    """The images' folder names where each class has a folder to itself (``001.Black_footed_Albatross``), else the ids."""
    folders: dict[str | int, set[str]] = {class_id: set() for class_id in ids}
    for listed in lists.values():
        for path, class_id in listed.items():
            folders[class_id].add(os.path.basename(os.path.dirname(path)))
    names = [name for found in folders.values() for name in found]
    return names if len(set(names)) == len(names) == len(ids) else [str(class_id) for class_id in ids]
