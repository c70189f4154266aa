"""The facts against the paper's own lists, where those are present, and against the YAML of each dataset."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.fgvc.facts import FACTS, Archive
from data_prep.fgvc.prepare import prepare
from data_prep.fgvc.workspace import Arguments, read_record
from gift_vit.config import load_config
from gift_vit.config.compose import compose_config, conf_dir
from gift_vit.data.base import build_dataset
from tests.data_prep.fgvc_trees import jpeg

LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "fgvc_splits"


def test_the_facts_are_of_one_piece() -> None:
    assert list(FACTS) == ["cub", "nabirds", "flowers", "cars", "dogs"]
    digests = []
    for name, facts in FACTS.items():
        assert facts.name == name
        assert facts.paper["train"] + facts.paper["val"] == facts.official["train"] + facts.official.get("val", 0)
        assert facts.paper["test"] == facts.official["test"]
        files = [*facts.lists.values(), *facts.extras.values()]
        files += [archive.file for archive in (facts.images, facts.segmentations) if isinstance(archive, Archive)]
        digests += [file.sha256 for file in files]
        assert all(file.url.split("?")[0].endswith(f"/{file.name}") for file in files)
    assert len(digests) == len(set(digests)) == 15 + 4 + 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest or "") for digest in digests)


@pytest.mark.parametrize("name", FACTS)
def test_the_yaml_agrees_with_the_facts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIFT_VIT_DATA", "/data")
    facts = FACTS[name]
    values = load_config(compose_config([f"dataset={name}"])).values["dataset"]
    assert (values["root"], values["splits_dir"], values["image_root"]) == (f"/data/{name}", "splits/paper", facts.image_root)
    assert values["prepare"] == f"type: python -m data_prep.fgvc {name} root=/data"
    header = (conf_dir() / f"dataset/{name}.yaml").read_text().splitlines()[0]
    counts = "train {train:,}, val {val:,}, test {test:,}".format(**facts.paper)
    assert f"({counts})" in header
    assert f", {facts.classes} " in header


@pytest.mark.skipif(not LISTS.is_dir(), reason="needs the paper's lists in ../shared/data/fgvc_splits")
@pytest.mark.parametrize("name", FACTS)
def test_the_real_lists_prepare(name: str, tmp_path: Path) -> None:
    """With the real facts and lists, each listed image a link to one small JPEG; then read as training reads it.

    Preparing checks the counts, classes and checksums that the facts have, and that no image is in two splits.
    """
    facts = FACTS[name]
    files = {split: LISTS / facts.lists_folder / f"{split}.json" for split in ("train", "val", "test")}
    lists = {split: json.loads(file.read_bytes()) for split, file in files.items()}
    one = tmp_path / "one.jpg"
    one.write_bytes(jpeg(9))
    image_root = tmp_path / name / facts.image_root
    paths = [path for listed in lists.values() for path in listed]
    for folder in {os.path.dirname(path) for path in paths}:
        (image_root / folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.link(one, image_root / path)
    request = Arguments(name, str(tmp_path), splits_from=str(LISTS), check_images=False, annotations=False)
    record = prepare(facts, request)
    assert record["splits"]["paper"]["counts"] == facts.paper
    assert record["splits"]["paper"]["sha256"] == {split: file.sha256 for split, file in facts.lists.items()}
    assert (record["images"], record["bytes"]) == (len(paths), len(paths) * one.stat().st_size)
    assert read_record(tmp_path / name) == record
    dataset = build_dataset(load_config(compose_config([f"dataset={name}", f"paths.data_root={tmp_path}"])).dataset)
    ids = np.unique(np.concatenate([list(listed.values()) for listed in lists.values()]))
    for split, listed in lists.items():
        np.testing.assert_array_equal(ids[dataset.split(split).labels], list(listed.values()))
    if name == "cars":
        official = prepare(facts, replace(request, splits="official"))["splits"]["official"]["counts"]
        assert official == {"train": 7329, "val": 815, "test": 8041}, "as many as in the paper's"
