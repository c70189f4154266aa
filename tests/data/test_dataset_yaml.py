"""Every dataset's YAML, under its own name; and the tasks that lie beside the repository, which are what it says."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.fgvc.facts import FACTS
from data_prep.glue.tasks import TASKS as GLUE
from data_prep.vtab.tasks import TASKS
from gift_vit.config import load_config
from gift_vit.config.compose import compose_config
from gift_vit.data.base import build_dataset
from gift_vit.data.config import DatasetConfig, ParquetConfig

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"
FILES = sorted(CONF.glob("*.yaml"))
MINI = {"cifar10_1k": 10, "digits": 10, "tiny_insects": 12, "tiny_mammals": 12, "tiny_vehicles": 12}
FGVC = {name: facts.classes for name, facts in FACTS.items()}  # tests/data_prep has their numbers
VTAB = {f"vtab_{name}": task.num_classes for name, task in TASKS.items()}
OWN = {"folder": None, "parquet": None, "csv": None}
BENCHMARKS = {"mini": MINI, "fgvc": FGVC, "vtab1k": VTAB, "own": OWN}
OF_TEXTS = {"text", "commonsense", *(f"glue_{name}" for name in GLUE)}  # tests/data/test_glue.py and others have them


def load(name: str, *overrides: str) -> DatasetConfig:
    return load_config(compose_config([f"dataset={name}", *overrides])).dataset


def test_the_files_are_there_and_say_how_to_run() -> None:
    assert (len(MINI), len(FGVC), len(VTAB)) == (5, 5, 19)
    assert {file.stem for file in FILES} == {name for names in BENCHMARKS.values() for name in names} | OF_TEXTS
    for file in FILES:
        assert f"python -m gift_vit.train dataset={file.stem}" in "\n".join(file.read_text().splitlines()[:2])


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_configs_are_valid(benchmark: str) -> None:
    geometry = {"fgvc": [(0.875, True, 0.5)], "vtab1k": [(None, False, 0.0)]}.get(benchmark)
    command = {"fgvc": "python -m data_prep.fgvc ", "vtab1k": "python -m data_prep.vtab "}.get(benchmark)
    for name, num_classes in BENCHMARKS[benchmark].items():
        cfg = load(name, *(["dataset.root=/somewhere/birds"] if benchmark == "own" else []))
        assert cfg.name == (f"{name}_birds" if benchmark == "own" else name)
        assert (cfg.benchmark, cfg.num_classes) == (benchmark, num_classes)
        assert command is None or command + name.removeprefix("vtab_") in cfg.how_to_prepare()
        how = cfg.transform
        assert geometry is None or (how.crop_ratio, how.random_crop, how.hflip) in geometry
        assert benchmark == "own" or how.resize == ("tf1_bilinear" if benchmark == "vtab1k" else None)


def test_the_protocol_says_how_to_resize_and_a_person_has_the_last_word() -> None:
    assert load("cub", "protocol=gift_paper").transform.resize == "bilinear"
    assert load("vtab_dtd", "protocol=gift_paper").transform.resize == "tf1_bilinear"
    assert load("vtab_dtd", "dataset.transform.resize=bicubic").transform.resize == "bicubic"


@pytest.mark.parametrize("name", [name for name in MINI if name != "digits"])
def test_the_tiny_tasks(shared_data: Path, name: str) -> None:
    cfg = load(name, f"dataset.root={shared_data}")
    assert isinstance(cfg, ParquetConfig)
    dataset = build_dataset(cfg)
    sizes = {"train": 800, "val": 200, "test": 5000} if name == "cifar10_1k" else {"train": 960, "val": 240, "test": 2400}
    assert dataset.class_names is not None
    assert dataset.num_classes == len(set(dataset.class_names)) == MINI[name]
    for split, size in sizes.items():
        assert np.bincount(dataset.split(split).labels).tolist() == [size // MINI[name]] * MINI[name]
    rows = pq.read_table(cfg.found()["test"][0]).to_pylist()
    for index in (0, 1234, len(rows) - 1):
        image, label = dataset.split("test")[index]
        expected = Image.open(io.BytesIO(rows[index]["image"]["bytes"])).convert("RGB")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
        assert label == rows[index]["label"]
