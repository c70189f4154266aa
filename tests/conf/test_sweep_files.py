"""The sweep files and the methods' grids: complete, spread out as Hydra does it, and with the paper's values."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.paths import conf_dir

DATASETS = {file.stem for file in (conf_dir() / "dataset").glob("*.yaml")} - {"folder", "parquet"}
METHODS = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
BENCHMARKS = ("fgvc", "vtab1k", "mini")


def sweep_config(*words: str) -> tuple[RunMode, dict[str, str], Any]:
    """Mode, axes and the rest of what a sweep command composes."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=list(words), return_hydra_config=True)
    return cfg.hydra.mode, {str(k): v for k, v in cfg.hydra.sweeper.params.items()}, cfg


def values_of(key: str, axis: str) -> list[str]:
    [override] = OverridesParser.create().parse_overrides([f"{key}={axis}"])
    return [str(value) for value in override.sweep_string_iterator()] if override.is_sweep_override() else [axis]


def test_every_benchmark_dataset_has_a_sweep() -> None:
    assert {file.stem for file in (conf_dir() / "sweep").glob("*.yaml")} == DATASETS | {"final"}
    assert len(DATASETS) == 24 + 5


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_a_sweep_is_of_its_dataset_and_takes_the_methods_grid_of_its_benchmark(dataset: str) -> None:
    mode, axes, cfg = sweep_config(f"sweep={dataset}", "method=lora")
    assert mode is RunMode.MULTIRUN, "without it Hydra ignores the axes"
    assert cfg.dataset.name == dataset
    assert cfg.recipe is None
    grid = OmegaConf.load(conf_dir() / "method/lora.yaml").grid[cfg.dataset.benchmark]  # pyright: ignore[reportAttributeAccessIssue]
    assert axes == dict(grid)
    assert f"sweep={dataset} method=" in (conf_dir() / f"sweep/{dataset}.yaml").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_point_of_a_methods_grids_is_a_run(method: str) -> None:
    grids: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"method/{method}.yaml"))["grid"]  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue, reportOptionalSubscript]
    assert tuple(grids) == BENCHMARKS
    for axes in grids.values():
        assert all(isinstance(axis, str) for axis in axes.values()), "a list would be one value"
        assert {"optim.lr", "optim.weight_decay"} <= set(axes)
        parsed = OverridesParser.create().parse_overrides([f"{key}={axis}" for key, axis in axes.items()])
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
        assert len({tuple(job) for job in jobs}) == len(jobs)
        for job in (jobs[0], jobs[-1]):
            load_config(compose_config([f"method={method}", *job]))


# spec of the authors' scripts: learning rates and weight decays by method and benchmark
PAPER = {
    ("gift", "fgvc"): ([1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3], [0.01, 0.001, 0.0001, 0]),
    ("gift", "vtab1k"): ([1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3], [0.01, 0.001, 0.0001, 0]),
    ("lora", "fgvc"): ([1e-3, 1.5e-3, 2e-3, 2.5e-3, 5e-3, 1e-2], [0.01, 0.001, 0.0001, 0]),
    ("lora", "vtab1k"): ([5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 1e-2], [0.01, 0.001, 0.0001, 0]),
    ("bitfit", "fgvc"): ([1e-3, 1.5e-3, 2e-3, 2.5e-3, 5e-3, 1e-2], [0]),
    ("bitfit", "vtab1k"): ([5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 1e-2], [0]),
    ("vpt_deep", "fgvc"): ([1e-3, 1.5e-3, 2e-3, 2.5e-3, 5e-3, 1e-2], [0]),
    ("vpt_deep", "vtab1k"): ([5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 1e-2], [0]),
}


@pytest.mark.parametrize(("method", "benchmark"), PAPER)
def test_the_papers_grids(method: str, benchmark: str) -> None:
    dataset = {"fgvc": "cub", "vtab1k": "vtab_dtd"}[benchmark]
    _, axes, _ = sweep_config(f"sweep={dataset}", f"method={method}")
    numbers = {key: [float(value) for value in values_of(key, axis)] for key, axis in axes.items()}
    lrs, decays = PAPER[method, benchmark]
    assert (numbers.pop("optim.lr"), numbers.pop("optim.weight_decay")) == (lrs, decays)
    assert numbers == ({"method.rank": [{"gift": 16, "lora": 8}[method]]} if method in {"gift", "lora"} else {})


def test_a_grid_can_be_narrowed_or_widened() -> None:
    _, axes, _ = sweep_config("sweep=cub", "method=gift", 'method.grid.fgvc={optim.lr:"1e-3,3e-3",method.rank:"4,16"}')
    assert axes == {"method.rank": "4,16", "optim.lr": "1e-3,3e-3", "optim.weight_decay": "1e-2,1e-3,1e-4,0"}


@pytest.mark.parametrize(("protocol", "seeds"), [("clean", "0,1,2"), ("gift_paper", "42")])
def test_finals_have_the_protocols_seeds(protocol: str, seeds: str) -> None:
    mode, axes, cfg = sweep_config("sweep=final", "dataset=cub", f"protocol={protocol}")
    assert (mode, axes, cfg.phase) == (RunMode.MULTIRUN, {"seed": seeds}, "final")


def test_recipes_in_the_repository_belong_to_a_dataset_and_a_method() -> None:
    files = set((conf_dir() / "recipe").glob("*.yaml"))
    for file in files - {conf_dir() / "recipe/none.yaml"}:
        chosen: Any = OmegaConf.load(file).recipe  # pyright: ignore[reportAttributeAccessIssue]
        assert file.stem == f"{chosen.dataset}_{chosen.method}"
        assert chosen.dataset in DATASETS
        assert chosen.method in METHODS
