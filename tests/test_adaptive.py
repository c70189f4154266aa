"""sweeper=adaptive: what it asks for, and whole sweeps of runs whose training is replaced by given scores.

A run takes half a second to compose and to build: the whole sweeps take over 3 s.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from gift_vit.common.errors import RunError
from gift_vit.config.keys import identifying
from gift_vit.engine.config import OptimConfig
from gift_vit.engine.fit import FitResult
from gift_vit.engine.observer import EpochRecord
from gift_vit.runs.run import Run
from gift_vit.sweeps.adaptive import Tried, Words, beyond, further
from gift_vit.sweeps.plan import read_sweeps
from gift_vit.sweeps.select import Edge
from tests.results.conftest import make_result


def tried(words: str, val: float | None, of_grid: bool = True, **record: Any) -> Tried:
    """A run of 200 val images, whose configuration is that of its words; without a score it failed."""
    values = {key: float(text) for key, text in (word.split("=") for word in words.split()) if key != "seed"}
    seed = int(words.partition("seed=")[2] or 0)
    run = {"phase": "search", **record}
    result = make_result(val=val, seed=seed, config=values, run=run, data={"val_images": 200})
    return Tried(tuple(words.split()), identifying(result.run.config), None if val is None else result, of_grid)


def asked_after(runs: Sequence[Tried], widen: int, seeds: int) -> list[Words]:
    """What is asked for when these runs have ended."""
    return further(runs, {run.words for run in runs}, widen, seeds)


@pytest.mark.parametrize(
    ("best", "values", "expected"),
    [
        (5e-2, (1e-2, 2.5e-2, 5e-2), 0.1),
        (1e-3, (1e-3, 2.5e-3, 5e-3), 4e-4),
        (64, (16, 32, 64), 128),
        (1, (1, 2, 4), None),
        (1e-2, (0.0, 1e-2), None),
        (1.01, (1.0, 1.01), None),
    ],
)
def test_the_next_value_keeps_the_axis_s_spacing(best: float, values: tuple[float, ...], expected: float | None) -> None:
    assert beyond(Edge("optim.lr", best, values)) == expected


def test_an_edge_is_widened_with_every_value_of_the_other_axes() -> None:
    grid = {(1e-3, 0.0): 70.0, (2e-3, 0.0): 90.0, (1e-3, 0.1): 60.0, (2e-3, 0.1): 80.0}
    runs = [tried(f"optim.lr={lr:g} optim.weight_decay={wd:g} seed=0", score) for (lr, wd), score in grid.items()]
    asked = asked_after(runs, widen=2, seeds=2)
    assert asked == [
        ("optim.weight_decay=0", "seed=0", "optim.lr=0.004"),
        ("optim.weight_decay=0.1", "seed=0", "optim.lr=0.004"),
    ]
    runs += [tried(f"optim.weight_decay={wd} optim.lr=0.004 seed=0", 91.0 - wd, of_grid=False) for wd in (0, 0.1)]
    assert {words[-1] for words in asked_after(runs, widen=2, seeds=1)} == {"optim.lr=0.008"}
    assert asked_after(runs, widen=1, seeds=1) == []


def test_two_open_axes_are_widened_one_after_the_other_so_that_the_grid_stays_whole() -> None:
    """The score rises with both axes up to 0.008 and 0.2."""
    runs: list[Tried] = []
    words = [f"optim.lr={lr} optim.weight_decay={wd} seed=0" for lr in ("0.001", "0.002") for wd in ("0.05", "0.1")]
    while words:
        for word in words:
            lr, wd = (float(value.partition("=")[2]) for value in sorted(word.split())[:2])
            score = 50 + 1000 * min(lr, 0.016 - lr) + 50 * min(wd, 0.4 - wd)
            runs.append(tried(word, score, of_grid=len(runs) < 4))
        words = [" ".join(sorted(asked)) for asked in asked_after(runs, widen=4, seeds=1)]
    points = {(run.config["optim.lr"], run.config["optim.weight_decay"]) for run in runs}
    assert points == {(lr, wd) for lr in (0.001, 0.002, 0.004, 0.008, 0.016) for wd in (0.05, 0.1, 0.2, 0.4)}


def test_an_axis_without_effect_is_not_widened() -> None:
    """Of equal scores the smallest value is chosen, which lies on the edge."""
    grid = {(lr, wd): 90.0 - abs(lr - 2) for lr in (1, 2, 3) for wd in (0.1, 0.2, 0.3)}
    runs = [tried(f"optim.lr={lr} optim.weight_decay={wd} seed=0", score) for (lr, wd), score in grid.items()]
    assert asked_after(runs, widen=2, seeds=1) == []
    runs = [run for run in runs if run.config["optim.weight_decay"] != 0.2]
    assert {words[-1] for words in asked_after(runs, widen=2, seeds=1)} == {"optim.weight_decay=0.033"}, "none lies between"


def test_an_axis_is_widened_with_every_seed_that_the_grid_has() -> None:
    runs = [tried(f"optim.lr={lr} seed={seed}", 50.0 + 1e4 * lr) for lr in (1e-3, 2e-3) for seed in (0, 1)]
    assert asked_after(runs, widen=1, seeds=2) == [("seed=0", "optim.lr=0.004"), ("seed=1", "optim.lr=0.004")]


def test_settings_that_val_cannot_tell_apart_get_another_seed_once_no_edge_is_open() -> None:
    """At 90 % of 200 images the standard error is 2.12 points."""
    scores = {"1e-3": 70.0, "2e-3": 88.0, "4e-3": 90.0, "8e-3": 87.5}
    runs = [tried(f"optim.lr={lr} seed=0", score) for lr, score in scores.items()]
    assert asked_after(runs, widen=2, seeds=2) == [("optim.lr=4e-3", "seed=1"), ("optim.lr=2e-3", "seed=1")]
    assert asked_after(runs, widen=2, seeds=1) == []
    runs += [tried("optim.lr=4e-3 seed=1", 80.0, of_grid=False), tried("optim.lr=2e-3 seed=1", 86.0, of_grid=False)]
    assert asked_after(runs, widen=2, seeds=2) == [("seed=0", "optim.lr=0.016")], "of the means 8e-3 is the highest now"
    runs = [tried(f"optim.lr={lr} seed=42", score) for lr, score in scores.items()]
    assert asked_after(runs, widen=2, seeds=2) == [("optim.lr=4e-3", "seed=43"), ("optim.lr=2e-3", "seed=43")]
    sole = [tried(f"optim.lr={lr} seed=0", score) for lr, score in (scores | {"2e-3": 80.0}).items()]
    assert asked_after(sole, widen=2, seeds=2) == []


def test_an_edge_beyond_which_runs_failed_is_none() -> None:
    scores = {"1e-3": 70.0, "2e-3": 88.0, "4e-3": 90.0}
    runs = [tried(f"optim.lr={lr} seed=0", score) for lr, score in scores.items()]
    [beyond] = asked_after(runs, widen=2, seeds=2)
    seeds = [("optim.lr=4e-3", "seed=1"), ("optim.lr=2e-3", "seed=1")]
    assert further(runs, {beyond}, widen=2, seeds=2) == seeds, "refused"
    failed = tried("optim.lr=0.008 seed=0", None, of_grid=False)
    assert asked_after([*runs, failed], widen=2, seeds=2) == seeds
    assert asked_after([*runs, tried("optim.lr=9e-3 seed=0", None)], widen=2, seeds=2) == seeds, "one of the grid"
    assert further([*runs, failed], {beyond, *seeds}, widen=2, seeds=2) == [], "a seed that failed is not tried again"
    assert asked_after([failed], widen=2, seeds=2) == []


@pytest.mark.parametrize("what", ["method", "backbone", "protocol"])
def test_cells_are_told_apart(what: str) -> None:
    runs = [
        tried(f"optim.lr={lr} seed=0", 70.0 + i, True, **{what: name})
        for name in ("one", "other")
        for i, lr in enumerate(("1e-3", "2e-3"))
    ]
    runs[3:] = [tried("optim.lr=2e-3 seed=0", 60.0, True, **{what: "other"})]
    assert [words[-1] for words in asked_after(runs, widen=1, seeds=1)] == ["optim.lr=0.004", "optim.lr=0.0005"]


def scored(lr: float, seed: int) -> float:
    """Val top-1 of a run: best at 0.04, where the seeds differ."""
    return {0.01: 60.0, 0.02: 70.0, 0.04: 90.0 - 10 * seed, 0.08: 89.0, 0.16: 50.0}[lr]


def finish(_model: object, _inputs: object, optim: OptimConfig, _trainer: object, checkpoint: Path, *_: object) -> FitResult:
    """In place of training."""
    seed = int(checkpoint.parent.name.partition("seed")[2][0])
    record: EpochRecord = {"epoch": 0, "train_loss": 1.0, "steps": 1, "lr": optim.lr, "seconds": 1.0, "images_per_s": 8.0}
    record["val_top1"], record["val_loss"] = scored(optim.lr, seed), 1.0
    return FitResult([record], 1.0)


def test_a_whole_sweep_goes_on_until_its_choice_is_settled_and_its_record_has_all(
    tmp_path: Path, train_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gift_vit.runs.train.fit", finish)
    grid = 'method.grid.mini={optim.lr:"0.01,0.02",optim.weight_decay:"0"}'
    words = ["sweep=digits", "sweeper=adaptive", "method=gift", "debug=smoke", "backbone.img_size=32", grid]
    words += ["trainer.epochs=1", f"paths.output_root={tmp_path}", "hydra/launcher=basic"]
    for _ in range(2):  # started again there is nothing left to run
        assert train_here(*words) == 0
        runs = [Run.open(file.parent) for file in tmp_path.rglob("result.json")]
        tried = {(run.config.optim.lr, run.config.seed) for run in runs}
        assert tried == {(0.01, 0), (0.02, 0), (0.04, 0), (0.08, 0), (0.04, 1), (0.08, 1), (0.16, 0)}
        [sweep] = read_sweeps(tmp_path)
        assert len(sweep.jobs) == len(tried)
    [before] = read_sweeps(tmp_path)
    with monkeypatch.context() as patch:  # killed while it looks at the grid again
        patch.setattr("hydra_plugins.gift_vit_sweepers.GridSweeper._launch", Mock(side_effect=RunError("killed")))
        assert train_here(*words) != 0
    assert {job.folder for job in read_sweeps(tmp_path)[0].jobs} == {job.folder for job in before.jobs}
    assert "phase=search" in refused_line(train_here, capsys, *words, "phase=final")


def test_a_run_that_fails_closes_its_edge_until_it_is_mended(
    tmp_path: Path, train_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*args: Any) -> FitResult:
        if args[2].lr == 0.04:
            raise RunError("the loss became nan")
        return finish(*args)

    words = ["-m", "sweeper=adaptive", "debug=smoke", "backbone.img_size=32", "optim.lr=0.01,0.02"]
    words += ["method=linear", "trainer.epochs=1", f"paths.output_root={tmp_path}", "hydra/launcher=basic"]
    near = {0.01: 69.0, 0.02: 70.0, 0.04: 10.0}
    monkeypatch.setitem(globals(), "scored", lambda lr, _: near[lr])
    for fit, code, expected in ((diverge, 1, set()), (finish, 0, {(0.04, 0)})):
        monkeypatch.setattr("gift_vit.runs.train.fit", fit)
        assert train_here(*words) == code
        runs = [Run.open(file.parent).config for file in tmp_path.rglob("result.json")]
        settled = {(lr, seed) for lr in (0.01, 0.02) for seed in (0, 1)}
        assert {(run.optim.lr, run.seed) for run in runs} == settled | expected
        assert len(read_sweeps(tmp_path)[0].jobs) == 5
        assert ("1 of 5 runs failed" in capsys.readouterr().err) == bool(code)


def refused_line(train_here: Callable[..., int], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says that is refused."""
    assert train_here(*words) == 2
    return capsys.readouterr().err
