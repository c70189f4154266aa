"""The YAML of each dataset fills its config class, completely and under its own name."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from gift_vit.data import DatasetConfig, TransformConfig, build_dataset, get_dataset

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"
NAMES = ["cifar10_1k", "cub", "digits", "folder", "parquet", "tiny_insects", "tiny_mammals", "tiny_vehicles"]


def load(name: str, data_root: str = "/data", **values: Any) -> tuple[str, DatasetConfig]:
    whole = OmegaConf.create({"paths": {"data_root": data_root}, "dataset": OmegaConf.load(CONF / f"{name}.yaml")})
    OmegaConf.resolve(whole)
    dataset = whole.dataset
    assert isinstance(dataset, DictConfig)
    kind = dataset.pop("kind")
    schema = OmegaConf.structured(get_dataset(kind).config_cls)
    cfg = OmegaConf.to_object(OmegaConf.merge(schema, dataset, values))
    assert isinstance(cfg, DatasetConfig)
    return kind, cfg


def test_the_files_are_there() -> None:
    assert len(NAMES) == 8
    assert set(NAMES) <= {file.stem for file in CONF.glob("*.yaml")}


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_field_is_given_and_the_header_says_how_to_run(file: Path) -> None:
    values = OmegaConf.load(file)
    assert isinstance(values, DictConfig)
    expected = {field.name for field in fields(get_dataset(values.kind).config_cls)}
    assert {str(key) for key in values} == expected | {"kind"}
    assert {str(key) for key in values.transform} == {field.name for field in fields(TransformConfig)}
    header = file.read_text().splitlines()[0]
    assert header.startswith("# ")
    assert f"python -m gift_vit.train dataset={file.stem}" in header


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_valid(name: str) -> None:
    root = {} if name == "digits" else {"root": "/somewhere/birds"}
    _, cfg = load(name, **root)
    assert cfg.name == (f"{name}_birds" if name in {"folder", "parquet"} else name)
    assert cfg.benchmark == {"cub": "fgvc", "folder": "own", "parquet": "own"}.get(name, "mini")


@pytest.mark.parametrize(
    ("name", "classes"), [("tiny_mammals", 12), ("tiny_insects", 12), ("tiny_vehicles", 12), ("cifar10_1k", 10)]
)
def test_the_prepared_tasks_build(shared_data: Path, name: str, classes: int) -> None:
    _, cfg = load(name, str(shared_data))
    dataset = build_dataset(cfg)
    assert (dataset.name, dataset.num_classes) == (name, classes)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert len(dataset.fingerprint) == 64


def test_digits_build() -> None:
    kind, cfg = load("digits")
    assert kind == "digits"
    assert build_dataset(cfg).num_classes == 10
