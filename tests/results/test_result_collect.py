"""Collecting results, and every guard against numbers that do not belong together."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gift_vit.errors import ConfigError
from gift_vit.results.collect import build_grid, collect_results
from gift_vit.results.schema import Result, to_json
from gift_vit.results.tables import mini_table

Store = Callable[..., Result]


def test_collects_everything_in_path_order(stored: Store, tmp_path: Path) -> None:
    for folder, seed in (("final/b", 2), ("final/a/x/y", 1), ("search/c", 0)):
        stored(folder, seed=seed)
    (tmp_path / "outputs/final/a/failed.json").write_text("{")
    results = collect_results(tmp_path / "outputs")
    assert [r.run.seed for r in results] == [1, 2, 0]
    assert [r.path for r in results] == sorted((tmp_path / "outputs").rglob("result.json"))
    assert results == collect_results(str(tmp_path / "outputs"))


def test_filters(stored: Store, tmp_path: Path) -> None:
    stored("a", run={"phase": "search"}, top1=None)
    stored("b", method="lora", seed=1)
    stored("c", method="lora", seed=2, run={"protocol": "gift_paper"})
    root = tmp_path / "outputs"
    assert [r.run.seed for r in collect_results(root, phase="final")] == [1, 2]
    assert [r.run.seed for r in collect_results(root, method="lora", protocol="clean", backbone=None)] == [1]
    assert [r.run.seed for r in collect_results(root, seed=0)] == [0]
    assert collect_results(root, benchmark="fgvc") == []
    with pytest.raises(ConfigError, match=r"cannot be filtered by metod \(known: name, phase"):
        collect_results(root, metod="lora")


def test_absent_root_and_broken_file(stored: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*nowhere; pass root="):
        collect_results(tmp_path / "nowhere")
    result = stored("a")
    assert result.path is not None
    result.path.write_text("{")
    with pytest.raises(ConfigError, match=r"outputs/a/result\.json is no readable result.*delete it"):
        collect_results(tmp_path / "outputs", phase="search")


def test_grid_orders_cells_and_ignores_what_does_not_count(make: Store) -> None:
    grid = build_grid(
        [
            make("lora", "tiny_mammals", seed=3),
            make("gift", seed=1),
            make("gift", seed=0),
            make("gift", seed=0, top1=None, run={"phase": "search"}),
            make("gift", seed=0, run={"benchmark": "fgvc", "protocol": "gift_paper"}),
        ],
        "mini",
    )
    assert (grid.rows, grid.datasets) == ((("gift",), ("lora",)), ("digits", "tiny_mammals"))
    assert {key: [r.run.seed for r in cell] for key, cell in grid.cells.items()} == {
        (("gift",), "digits"): [0, 1],
        (("lora",), "tiny_mammals"): [3],
    }
    assert grid.missing() == [(("gift",), "tiny_mammals"), (("lora",), "digits")]


def test_rows_are_values_of_the_configuration_in_their_natural_order(make: Store) -> None:
    ranks = [make(config={"method.rank": rank}, run={"name": str(rank)}) for rank in (16, 2, 128)]
    assert build_grid(ranks, "mini", rows=["method.rank"]).rows == (("2",), ("16",), ("128",))
    chosen: list[tuple[list[str], bool]] = [(["attn.qkv", "attn.proj"], True), (["attn.q"], False), (["mlp.fc1"], False)]
    targets = [
        make(config={"method.target_modules": modules, "method.share": share}, run={"name": str(modules)})
        for modules, share in chosen
    ]
    assert build_grid(targets, "mini", rows=["method.target_modules", "method.share"]).rows == (
        ("attn.q", "false"),
        ("mlp.fc1", "false"),
        ("attn.qkv, attn.proj", "true"),
    )


def test_a_row_of_runs_that_differ_in_more_is_refused(make: Store) -> None:
    runs = [make(config={"method.rank": 2, "optim.lr": lr}, seed=seed) for seed, lr in enumerate((0.1, 0.2))]
    with pytest.raises(ConfigError, match=r"the cell 2 on digits would mix optim\.lr 0\.1 and 0\.2"):
        build_grid(runs, "mini", rows=["method.rank"])


def test_a_key_that_a_run_does_not_have_makes_no_rows(make: Store) -> None:
    with pytest.raises(ConfigError, match=r"has no method\.num_tokens to make a row of; give rows="):
        build_grid([make()], "mini", rows=["method.num_tokens"])
    with pytest.raises(ConfigError, match=r"has no seed\.value to make"):
        build_grid([make()], "mini", rows=["seed.value"])


def test_several_folders_count_each_run_once(stored: Callable[..., Result], tmp_path: Path) -> None:
    stored("a/gift")
    stored("b/lora", method="lora")
    root = tmp_path / "outputs"
    assert [r.run.method for r in collect_results(root / "b", root / "a", root)] == ["gift", "lora"]


def test_asked_datasets_are_the_columns(make: Store) -> None:
    runs = [make("gift", "digits"), make("gift", "tiny_mammals")]
    assert build_grid(runs, "mini", ["tiny_birds", "digits", "digits"]).datasets == ("tiny_birds", "digits")
    assert build_grid(runs, "mini", ["tiny_birds", "digits"]).missing() == [(("gift",), "tiny_birds")]


def test_no_run_that_counts(make: Store) -> None:
    for runs in ([], [make(run={"benchmark": "fgvc"})], [make(top1=None, run={"phase": "search"})]):
        with pytest.raises(ConfigError, match=rf"no finished final run of benchmark mini among {len(runs)} results; run"):
            build_grid(runs, "mini")


GUARDS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"config": {"optim.lr": 0.002}, "seed": 0}, "both claim seed 0 of the cell gift on digits .backbone vit_mini."),
    ({}, {"seed": 1, "run": {"protocol": "gift_paper"}}, "one table would mix protocol clean and gift_paper"),
    ({}, {"method": "lora", "run": {"protocol": "gift_paper"}}, "one table would mix protocol clean and gift_paper"),
    ({}, {"method": "lora", "run": {"backbone": "test_vit"}}, "one table would mix backbone vit_mini and test_vit"),
    ({}, {"method": "lora", "backbone": {"weights_sha256": "cd"}}, "one table would mix backbone.weights_sha256 abab"),
    ({}, {"method": "lora", "backbone": {"mean": [0, 0, 0]}}, r"would mix backbone.mean \[0.5, 0.5, 0.5\] and \[0, 0"),
    ({}, {"method": "lora", "data": {"fingerprint": "other"}}, "the column digits would mix fingerprint sha-digits and other"),
    ({}, {"seed": 1, "data": {"train_split": "train"}}, "the column digits would mix train_split trainval and train"),
    ({}, {"seed": 1, "config": {"optim.lr": 0.002}}, "the cell gift on digits would mix optim.lr 0.001 and 0.002"),
    ({}, {"seed": 1, "config": {"method.target_modules": ["attn.qkv"]}}, "would mix method.target_modules .'attn.proj'. and"),
    ({}, {"seed": 1, "config": {"optim.eps": None}}, "the cell gift on digits would mix optim.eps absent and None"),
    ({}, {"seed": 1, "top1": None}, "is a final run without test_top1"),
]  # fmt: skip


def test_number_of_guards() -> None:
    assert len(GUARDS) == 12


@pytest.mark.parametrize(("first", "second", "message"), GUARDS)
@pytest.mark.parametrize("order", [1, -1])
def test_guard_names_the_files(
    stored: Store, tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str, order: int
) -> None:
    stored("one", **first)
    stored("two", **second)
    results = collect_results(tmp_path / "outputs")
    if order == 1:
        with pytest.raises(ConfigError, match=message) as error:
            mini_table(results)
    else:  # whichever comes first, it is refused
        with pytest.raises(ConfigError) as error:
            mini_table(results[::-1])
    text = str(error.value)
    assert str(tmp_path / "outputs/two/result.json") in text
    assert "test_top1" in text or str(tmp_path / "outputs/one/result.json") in text
    assert "\n" not in text


def test_many_differences_are_cut(make: Store) -> None:
    config = {"optim.lr": 1, "optim.weight_decay": 1, "method.rank": 1, "trainer.epochs": 1, "method.kind": "lora"}
    with pytest.raises(ConfigError, match=r"method.kind gift and lora, method.rank 16 and 1, optim.lr 0.001 and 1 and 2 more"):
        build_grid([make(seed=0), make(seed=1, config=config)], "mini")


def test_a_cell_may_differ_in_where_and_how_it_ran(make: Store) -> None:
    config = {
        "run_name": "other", "paths.output_root": "elsewhere", "paths.cache": "new", "tracker.mode": "online",
        "trainer.workers": 8, "trainer.device": "cuda",
    }  # fmt: skip
    grid = build_grid([make(seed=0), make(seed=1, config=config, backbone={"weights": "hub"})], "mini")
    assert len(grid.cells[("gift",), "digits"]) == 2


def test_rows_may_differ_in_configuration(make: Store) -> None:
    grid = build_grid([make("gift"), make("lora", config={"optim.lr": 0.01})], "mini")
    assert grid.rows == (("gift",), ("lora",))


def test_a_thousand_results_are_read_at_a_small_multiple_of_parsing_them(make: Store, tmp_path: Path) -> None:
    methods, datasets, seeds = [f"m{i}" for i in range(10)], [f"d{i}" for i in range(10)], range(10)
    filler = {f"section{i}": {f"key{j}": j for j in range(10)} for i in range(10)}  # a configuration of 100 more values
    template = to_json(make("METHOD", "DATASET", 12345, config=filler))
    for method in methods:
        for dataset in datasets:
            for seed in seeds:
                path = tmp_path / "final" / dataset / method / f"seed{seed}" / "result.json"
                path.parent.mkdir(parents=True)
                path.write_text(template.replace("METHOD", method).replace("DATASET", dataset).replace("12345", str(seed)))
    started = time.process_time()
    for path in tmp_path.rglob("result.json"):
        json.loads(path.read_text())
    parsing = time.process_time() - started
    started = time.process_time()
    table = mini_table(collect_results(tmp_path))
    seconds = time.process_time() - started
    assert len(table.rows) == 10
    assert all(row[6].values[2] == 10 for row in table.rows)
    assert seconds < 30 * parsing, f"{seconds / parsing:.1f} times as long as parsing the files"
