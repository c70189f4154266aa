"""The YAML of each dataset fills its config class, completely and under its own name."""

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import DatasetConfig, TransformConfig, build_dataset, get_dataset

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"
FILES = sorted(CONF.glob("*.yaml"))
MINI = {"cifar10_1k": 10, "digits": 10, "tiny_insects": 12, "tiny_mammals": 12, "tiny_vehicles": 12}
FGVC = {"cub": 200, "nabirds": 555, "flowers": 102, "dogs": 120, "cars": 196}
# https://arxiv.org/abs/1910.04867, table of the 19 tasks; dSprites and SmallNORB as the benchmark bins them
VTAB = {
    **{"vtab_cifar100": 100, "vtab_caltech101": 102, "vtab_dtd": 47, "vtab_flowers102": 102, "vtab_pets": 37, "vtab_svhn": 10},
    **{"vtab_sun397": 397, "vtab_patch_camelyon": 2, "vtab_eurosat": 10, "vtab_resisc45": 45, "vtab_retinopathy": 5},
    **{"vtab_clevr_count": 8, "vtab_clevr_distance": 6, "vtab_dmlab": 6, "vtab_kitti_distance": 4},
    **{
        "vtab_dsprites_location": 16,
        "vtab_dsprites_orientation": 16,
        "vtab_smallnorb_azimuth": 18,
        "vtab_smallnorb_elevation": 9,
    },
}
OWN = {"folder": None, "parquet": None}
BENCHMARKS = {"mini": MINI, "fgvc": FGVC, "vtab1k": VTAB, "own": OWN}


def load(name: str, *overrides: str) -> DatasetConfig:
    return load_config(compose_config([f"dataset={name}", *overrides])).dataset


def test_the_files_are_there() -> None:
    assert (len(MINI), len(FGVC), len(VTAB)) == (5, 5, 19)
    assert {file.stem for file in FILES} == {name for names in BENCHMARKS.values() for name in names}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_field_is_given_and_the_header_says_how_to_run(file: Path) -> None:
    values = OmegaConf.load(file)
    assert isinstance(values, DictConfig)
    expected = {field.name for field in fields(get_dataset(values.kind).config_cls)}
    assert {str(key) for key in values} == expected | {"kind"}
    assert {str(key) for key in values.transform} == {field.name for field in fields(TransformConfig)}
    header = file.read_text().splitlines()[0]
    assert header.startswith("# ")
    assert f"python -m gift_vit.train dataset={file.stem}" in header


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_configs_are_valid(benchmark: str) -> None:
    for name, num_classes in BENCHMARKS[benchmark].items():
        cfg = load(name, *(["dataset.root=/somewhere/birds"] if benchmark == "own" else []))
        assert cfg.name == (f"{name}_birds" if benchmark == "own" else name)
        assert (cfg.benchmark, cfg.num_classes) == (benchmark, num_classes)
        prepare = {
            "fgvc": f"python -m data_prep.fgvc {name}",
            "vtab1k": f"python -m data_prep.vtab {name.removeprefix('vtab_')}",
        }.get(benchmark, "")
        assert prepare in cfg.how_to_prepare()


@pytest.mark.parametrize(
    ("protocol", "fgvc", "vtab"), [("clean", None, "tf1_bilinear"), ("gift_paper", "bilinear", "tf1_bilinear")]
)
def test_the_protocol_says_how_to_resize(protocol: str, fgvc: str | None, vtab: str) -> None:
    chosen = {name: load(name, f"protocol={protocol}").transform for name in (*FGVC, *VTAB)}
    assert {chosen[name].resize for name in FGVC} == {fgvc}
    assert {chosen[name].resize for name in VTAB} == {vtab}
    assert {(chosen[name].crop_ratio, chosen[name].random_crop, chosen[name].hflip) for name in FGVC} == {(0.875, True, 0.5)}
    assert {(chosen[name].crop_ratio, chosen[name].random_crop, chosen[name].hflip) for name in VTAB} == {(None, False, 0.0)}
    assert load("vtab_dtd", "dataset.transform.resize=bicubic").transform.resize == "bicubic"


@pytest.mark.parametrize("name", [name for name in MINI if name != "digits"])
def test_the_tiny_tasks_build(shared_data: Path, name: str) -> None:
    dataset = build_dataset(load(name, f"dataset.root={shared_data}"))
    assert (dataset.name, dataset.num_classes) == (name, MINI[name])
    assert list(dataset.splits) == ["train", "val", "test"]
    assert len(dataset.fingerprint) == 64


def test_digits_build() -> None:
    assert build_dataset(load("digits")).num_classes == 10
