"""Collecting results, and every guard against numbers that do not belong together."""

import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.results.collect import build_grid, collect_results
from gift_vit.results.mini import mini_table
from gift_vit.results.request import Request
from gift_vit.runs.result import Result, to_json
from tests.results.conftest import make_result as make

Store = Callable[..., Result]


def test_collects_everything_in_path_order(stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, seed in (("final/b", 2), ("final/a/x/y", 1), ("search/c", 0)):
        stored(folder, seed=seed)
    (tmp_path / "outputs/final/a/failed.json").write_text("{")
    root = tmp_path / "outputs"
    results = collect_results(root)
    assert [(r.run.seed, r.path) for r in results] == list(zip((1, 2, 0), sorted(root.rglob("result.json")), strict=True))
    assert results == collect_results(str(root)) == collect_results(root / "search", root), "each run once"
    monkeypatch.chdir(tmp_path)
    assert results == collect_results(root, "outputs"), "also where one folder is given in two ways"
    assert [str(r.path) for r in collect_results("outputs", root)] == sorted(map(str, Path("outputs").rglob("result.json")))


def test_folders_and_records_that_cannot_be_read(stored: Store, tmp_path: Path) -> None:
    stored("a")
    root = tmp_path / "outputs"
    with pytest.raises(ConfigError, match=r"no folder .*nowhere; pass root="):
        collect_results(tmp_path / "nowhere")
    (root / "a/result.json").write_text("{")
    with pytest.raises(ConfigError, match=r"outputs/a/result\.json is no readable result.*delete it"):
        collect_results(root)


def test_grid_orders_cells_and_ignores_what_does_not_count() -> None:
    others = [make(run={"phase": "search"}), make(run={"benchmark": "fgvc", "protocol": "gift_paper"})]
    grid = build_grid([make("lora", "tiny_mammals", seed=3), make(seed=1), make(seed=0), *others], "mini")
    assert (grid.rows, grid.datasets) == ((("gift",), ("lora",)), ("digits", "tiny_mammals"))
    seeds = {key: [r.run.seed for r in cell] for key, cell in grid.cells.items()}
    assert seeds == {(("gift",), "digits"): [0, 1], (("lora",), "tiny_mammals"): [3]}
    assert grid.missing() == [(("gift",), "tiny_mammals"), (("lora",), "digits")]
    asked = build_grid(grid.results, "mini", ["tiny_birds", "digits", "digits"])
    assert (asked.datasets, asked.missing()) == (("tiny_birds", "digits"), [(("gift",), "tiny_birds")])


def test_rows_are_values_of_the_configuration_in_their_natural_order() -> None:
    ranks = [make(config={"method.rank": rank}, run={"name": str(rank)}) for rank in (16, 2, 128)]
    assert build_grid(ranks, "mini", rows=["method.rank"]).rows == (("2",), ("16",), ("128",))
    chosen: list[tuple[list[str], bool]] = [(["attn.qkv", "attn.proj"], True), (["attn.q"], False), (["mlp.fc1"], False)]
    targets = [make(config={"method.target_modules": modules, "method.share": share}) for modules, share in chosen]
    rows = build_grid(targets, "mini", rows=["method.target_modules", "method.share"]).rows
    assert rows == (("attn.q", "false"), ("mlp.fc1", "false"), ("attn.qkv, attn.proj", "true"))


def test_grids_that_cannot_be_made() -> None:
    mixed = [make(config={"method.rank": 2, "optim.lr": lr}, seed=seed) for seed, lr in enumerate((0.1, 0.2))]
    fgvc = [make(run={"benchmark": "fgvc"})]
    others = [([], ""), (fgvc, "give benchmark=fgvc, which has some, or "), ([make(run={"phase": "search"})], "")]
    for runs, rows, message in (
        (mixed, ["method.rank"], r"the cell 2 on digits would mix optim\.lr 0\.1 and 0\.2"),
        ([make()], ["method.num_tokens"], r"has no method\.num_tokens to make a row of; give rows="),
        ([make()], ["seed.value"], r"has no seed\.value to make"),
        *(
            (runs, [], f"no finished final run of benchmark mini among {len(runs)} results; {found}run")
            for runs, found in others
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            build_grid(runs, "mini", rows=rows)


SPREAD = "weights_spread_sha256"
GUARDS: list[tuple[dict[str, Any], str]] = [
    ({"config": {"optim.lr": 0.002}, "seed": 0}, "both claim seed 0 of the cell gift on digits .backbone vit_mini."),
    ({"seed": 1, "run": {"protocol": "gift_paper"}}, "one table would mix protocol clean and gift_paper"),
    ({"method": "lora", "run": {"protocol": "gift_paper"}}, "one table would mix protocol clean and gift_paper"),
    ({"method": "lora", "run": {"backbone": "test_vit"}}, "one table would mix backbone vit_mini and test_vit"),
    ({"method": "lora", "backbone": {"weights_sha256": "cd"}}, "one table would mix backbone.weights_sha256 abab"),
    ({"method": "lora", "backbone": {"mean": [0, 0, 0]}}, r"would mix backbone.mean \[0.5, 0.5, 0.5\] and \[0, 0"),
    ({"method": "lora", "data": {"fingerprint": "other"}}, "the column digits would mix fingerprint sha-digits and other"),
    ({"seed": 1, "data": {"train_split": "train"}}, "the column digits would mix train_split trainval and train"),
    ({"seed": 1, "data": {"val_images": 200}}, "the column digits would mix val_images None and 200"),
    ({"seed": 1, "config": {"optim.lr": 0.002}}, "the cell gift on digits would mix optim.lr 0.001 and 0.002"),
    ({"seed": 1, "config": {"method.target_modules": ["attn.qkv"]}}, "would mix method.target_modules .'attn.proj'. and"),
    ({"seed": 1, "config": {"optim.eps": None}}, "the cell gift on digits would mix optim.eps absent and None"),
    ({"seed": 1, "top1": None}, "is a final run without test_top1"),
    ({"seed": 1, "config": {f"method.{key}": 1 for key in ("rank", "share", "target_modules", "x", "y")}},
     r"method.rank 16 and 1, method.share False and 1, method.target_modules \['attn.proj'\] and 1 and 2 more:"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "message"), GUARDS)
def test_guard_names_the_files(stored: Store, tmp_path: Path, other: dict[str, Any], message: str) -> None:
    results = [stored("one"), stored("two", **other)]
    with pytest.raises(ConfigError, match=message) as error:
        mini_table(Request(results))
    with pytest.raises(ConfigError) as turned:  # whichever comes first, it is refused
        mini_table(Request(results[::-1]))
    for text in (str(error.value), str(turned.value)):
        named = [str(tmp_path / f"outputs/{name}/result.json") in text for name in ("one", "two")]
        assert (named, "\n" in text) == (["test_top1" not in text, True], False)


def test_a_cell_may_differ_in_where_and_how_it_ran() -> None:
    config = {
        "run_name": "other", "paths.output_root": "elsewhere", "paths.cache": "new", "tracker.mode": "online",
        "trainer.workers": 8, "trainer.device": "cuda",
    }  # fmt: skip
    grid = build_grid([make(seed=0), make(seed=1, config=config, backbone={"weights": "hub"})], "mini")
    assert len(grid.cells[("gift",), "digits"]) == 2
    assert build_grid([make("gift"), make("lora", config={"optim.lr": 0.01})], "mini").rows == (("gift",), ("lora",))


def test_a_column_may_differ_in_what_is_known_of_its_data_but_for_the_decoder() -> None:
    found = {"duplicates": {"shared": {}}, "warnings": ["a"], "class_names": ["x"], "splits": {}, "source": "prepared"}
    older, told = make(seed=0), make(seed=1, data={**found, "decoder": "Pillow 12.0"})
    assert len(build_grid([older, told], "mini").results) == 2
    other = make(seed=2, data={"decoder": "libjpeg 9"})
    with pytest.raises(ConfigError, match=r"the column digits would mix decoder Pillow 12\.0 and libjpeg 9: "):
        build_grid([older, told, other], "mini")


def test_a_column_is_of_the_same_pictures_where_they_are_known() -> None:
    """VTAB-1k's are of the same pixels, however they were prepared."""
    older, one, other = make(seed=0), make(seed=1, data={"sample": "a"}), make(seed=2, data={"sample": "b"})
    with pytest.raises(ConfigError, match="the column digits would mix sample a and b: "):
        build_grid([older, one, other], "mini")
    tasks = [make(seed=n, data={"sample": "ab"[n]}, run={"benchmark": "vtab1k"}) for n in range(2)]
    assert len(build_grid(tasks, "vtab1k").results) == 2


def test_rows_of_equal_numbers_are_one() -> None:
    runs = [make(seed=n, config={"optim.weight_decay": decay}) for n, decay in enumerate((1, 1.0))]
    assert len(build_grid(runs, "mini", rows=["optim.weight_decay"]).rows) == 1


def test_runs_older_than_the_second_fingerprint_stand_beside_those_that_have_it() -> None:
    older, newer, other = make(seed=0), make(seed=1, backbone={SPREAD: "ef"}), make(seed=2, backbone={SPREAD: "gh"})
    assert len(build_grid([older, newer], "mini").results) == 2
    with pytest.raises(ConfigError, match=f"one table would mix backbone.{SPREAD} ef and gh"):
        build_grid([older, newer, other], "mini")


def test_seeds_of_random_backbones_are_averaged() -> None:
    def drawn(seed: int, **config: object) -> Result:
        return make(seed=seed, backbone={"weights_sha256": str(seed), SPREAD: str(seed)}, config=config)

    random = [drawn(seed, **{"backbone.pretrained": False}) for seed in range(2)]
    assert len(build_grid(random, "mini").results) == 2
    local = [drawn(seed, **{"backbone.pretrained": False, "backbone.weights": "a.pth"}) for seed in range(2)]
    for mixed in ([random[0], drawn(1)], local):
        with pytest.raises(ConfigError, match=r"one table would mix backbone\.weights_sha256 "):
            build_grid(mixed, "mini")


def test_many_results_are_read_at_a_small_multiple_of_parsing_them(tmp_path: Path) -> None:
    filler = {f"section{i}": dict.fromkeys("abcdefghij", i) for i in range(10)}  # a configuration of 100 more values
    template = to_json(make("METHOD", "DATASET", 12345, config=filler))
    for method, dataset, seed in product(range(5), range(5), range(10)):
        path = tmp_path / "final" / f"d{dataset}" / f"m{method}" / f"seed{seed}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(template.replace("METHOD", f"m{method}").replace("DATASET", f"d{dataset}").replace("12345", str(seed)))
    started = time.process_time()
    assert len([json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]) == 250
    parsing = time.process_time() - started
    table = mini_table(Request(collect_results(tmp_path)))
    seconds = time.process_time() - started - parsing
    assert [row[6].values[2] for row in table.rows] == [10] * 5
    assert seconds < 30 * parsing, f"{seconds / parsing:.1f} times as long as parsing the files"
