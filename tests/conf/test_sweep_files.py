"""The sweep files and the methods' grids: complete, spread out as Hydra does it, and with the paper's values."""

from functools import cache
from math import prod
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.config.compose import compose_job, conf_dir, hydra_set_up
from gift_vit.config.loader import load_config
from tests.conf.files import composed, entire, parse, root, stems, together

DATASETS = set(stems("dataset")) - {"folder", "parquet", "csv", "text", "commonsense"}
METHODS = stems("method")
# none has a grid but the first two, of glue
TEXT_METHODS = ("gift_qv", "lora_text", "gift_qv_llm", "gift_proj", "gift_qkvud", "wegeft_qkvud", "lora_qkvud")
FITTED = {"knn", "linear_exact"}
BENCHMARKS = ("fgvc", "vtab1k", "mini")


@cache
def sweep_config(*words: str) -> tuple[RunMode, dict[str, str], DictConfig]:
    """Mode, axes and the rest of what a sweep command composes."""
    with hydra_set_up():
        cfg, hydra_cfg = compose_job(words)
    return hydra_cfg.mode, {str(k): v for k, v in hydra_cfg.sweeper.params.items()}, cfg  # pyright: ignore[reportReturnType]


def numbers(key: str, axis: str) -> list[float]:
    return [float(value) for value in words_of(key, axis)]


def words_of(key: str, axis: str) -> list[str]:
    [override] = parse(f"{key}={axis}")
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [axis]


@pytest.mark.parametrize("dataset", ["cub", "vtab_dtd", "tiny_mammals", "digits", "glue_rte"])
def test_a_sweep_is_of_its_dataset_and_takes_the_methods_grid_of_its_benchmark(dataset: str) -> None:
    method = "lora_text" if dataset.startswith("glue_") else "lora"
    mode, axes, cfg = sweep_config(f"sweep={dataset}", f"method={method}")
    assert mode is RunMode.MULTIRUN, "without it Hydra ignores the axes"
    assert load_config(cfg).dataset.name == dataset
    assert cfg.recipe is None
    assert axes == cfg.method.grid[cfg.dataset.benchmark]


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_a_sweep_is_the_same_file_as_another_but_for_its_dataset(dataset: str) -> None:
    text = (conf_dir() / f"sweep/{dataset}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert f"sweep={dataset} method=" in text
    of_glue = [{"override /method": "gift_qv"}, {"override /backbone": "roberta_base"}]
    expected = ["/_sweep", {"override /dataset": dataset}, *(of_glue if dataset.startswith("glue_") else [])]
    assert OmegaConf.create(text) == {"defaults": expected}
    given = entire(conf_dir() / f"dataset/{dataset}.yaml")
    assert (given.name, given.benchmark in {*BENCHMARKS, "glue"}) == (dataset, True)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in TEXT_METHODS])
def test_every_point_of_a_methods_grids_is_a_run(method: str) -> None:
    words = next(words for words in together() if f"method={method}" in words)
    cfg = composed(*words, "recipe=none")
    assert tuple(cfg.method.grid) == BENCHMARKS
    last = set()
    for axes in cfg.method.grid.values():
        assert all(isinstance(axis, str) for axis in axes.values()), "a list would be one value"
        assert ({"optim.lr", "optim.weight_decay"} <= set(axes)) != (method in FITTED), "a fitted method has neither"
        assert all(words_of(key, axis) for key, axis in axes.items())
        jobs = [tuple(job) for job in BasicSweeper.split_arguments(parse(*(f"{key}={axes[key]}" for key in axes)), None)[0]]
        assert len(set(jobs)) == len(jobs) == prod(len(words_of(key, axis)) for key, axis in axes.items())
        last.add(jobs[-1])
    for job in last:
        load_config(composed(*words, "recipe=none", *root(words), *job))  # an unknown key is an error


def test_the_equal_grid_is_the_same_for_every_method() -> None:
    of_gift, of_fact = (sweep_config("sweep=cub", f"method={method}", "grid=equal")[1] for method in ("gift", "fact_tk"))
    assert of_gift == of_fact
    assert prod(len(numbers(key, axis)) for key, axis in of_gift.items()) == 24
    assert set(of_gift) == {"optim.lr", "optim.weight_decay"}
    with pytest.raises(OmegaConfBaseException, match=r"unknown grid 'equl'; did you mean equal\? \(known: paper, equal\)"):
        sweep_config("sweep=cub", "grid=equl")


def test_a_method_without_a_grid_of_the_benchmark_takes_the_equal_one() -> None:
    words = "sweep=glue_rte", "method=full"
    with pytest.raises(
        OmegaConfBaseException, match="grid=paper: this method has none for this benchmark; give grid=equal, or"
    ):
        sweep_config(*words)
    assert list(sweep_config(*words, "grid=equal")[1]) == ["optim.lr", "optim.weight_decay"]


# spec of the authors' scripts: learning rates and weight decays by method and benchmark
PAPER = {
    ("gift", "fgvc"): ([1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3], [0.01, 0.001, 0.0001, 0]),
    ("gift", "vtab1k"): ([1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3], [0.01, 0.001, 0.0001, 0]),
    ("lora", "fgvc"): ([1e-3, 1.5e-3, 2e-3, 2.5e-3, 5e-3, 1e-2], [0.01, 0.001, 0.0001, 0]),
    ("lora", "vtab1k"): ([5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 1e-2], [0.01, 0.001, 0.0001, 0]),
    ("bitfit", "fgvc"): ([1e-3, 1.5e-3, 2e-3, 2.5e-3, 5e-3, 1e-2], [0]),
    ("bitfit", "vtab1k"): ([5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 1e-2], [0]),
    ("vpt_deep", "fgvc"): ([1e-3, 1.5e-3, 2e-3, 2.5e-3, 5e-3, 1e-2], [0]),
    ("gift_qv", "glue"): ([1e-4, 2.5e-4, 5e-4, 7.5e-4, 1e-3], [0, 1e-4, 1e-3, 1e-2]),
    ("vpt_deep", "vtab1k"): ([5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 1e-2], [0]),
}


@pytest.mark.parametrize(("method", "benchmark"), PAPER)
def test_the_papers_grids(method: str, benchmark: str) -> None:
    dataset = {"fgvc": "cub", "vtab1k": "vtab_dtd", "glue": "glue_rte"}[benchmark]
    _, axes, _ = sweep_config(f"sweep={dataset}", f"method={method}")
    values = {key: numbers(key, axis) for key, axis in axes.items()}
    assert (values.pop("optim.lr"), values.pop("optim.weight_decay")) == PAPER[method, benchmark]
    assert values == ({"method.rank": [{"gift": 16, "lora": 8}[method]]} if method in {"gift", "lora"} else {})
    assert list(axes) == [*values, "optim.lr", "optim.weight_decay"], "the order of the runs, and of the words in their records"


def test_a_grid_can_be_narrowed_or_widened() -> None:
    _, axes, _ = sweep_config("sweep=cub", "method=gift", 'method.grid.fgvc={optim.lr:"1e-3,3e-3",method.rank:"4,16"}')
    assert axes == {"method.rank": "4,16", "optim.lr": "1e-3,3e-3", "optim.weight_decay": "1e-2,1e-3,1e-4,0"}


@pytest.mark.parametrize(("protocol", "seeds"), [("clean", "0,1,2"), ("gift_paper", "42"), ("glue_gift", "42,43,44,45,46")])
def test_finals_have_the_protocols_seeds(protocol: str, seeds: str) -> None:
    task = ("dataset=glue_rte", "backbone=roberta_base") if protocol == "glue_gift" else ("dataset=cub",)
    mode, axes, cfg = sweep_config("sweep=final", *task, f"protocol={protocol}")
    assert (mode, axes, load_config(cfg).phase) == (RunMode.MULTIRUN, {"seed": seeds}, "final")


def test_every_benchmark_dataset_has_a_sweep_and_recipes_belong_to_a_dataset_and_a_method() -> None:
    assert set(stems("sweep")) == DATASETS | {"final"}
    assert len(DATASETS) == 24 + 5 + 8
    files = set((conf_dir() / "recipe").glob("*.yaml"))
    for file in files - {conf_dir() / "recipe/none.yaml"}:
        chosen: Any = OmegaConf.load(file).recipe  # pyright: ignore[reportAttributeAccessIssue]
        assert file.stem == f"{chosen.dataset}_{chosen.method}"
        assert chosen.dataset in DATASETS
        assert chosen.method in METHODS
