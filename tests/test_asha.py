"""sweeper=asha with real runs whose training is replaced by given learning curves.

Halving says something from nine runs on, and each takes half a second to compose and to build: some tests take over 3 s.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from gift_vit.common.errors import RunError
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.engine.fit import FitInputs, FitResult
from gift_vit.engine.observer import EpochRecord, Observer
from gift_vit.runs.run import Run
from gift_vit.sweeps.plan import read_sweeps

EPOCHS = 9
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BEST = 3e-3
Told = pytest.CaptureFixture[str]
Command = Callable[..., int]


def curve(lr: float) -> list[float]:
    """Val top-1 after each epoch: the nearer to the best rate, the higher from the start."""
    height = 90.0 - 10 * abs(RATES.index(lr) - RATES.index(BEST))
    return [height * (epoch + 1) / (epoch + 2) for epoch in range(EPOCHS)]


def follow_curve(
    model: nn.Module,
    inputs: FitInputs,
    optim: OptimConfig,
    trainer: TrainerConfig,
    checkpoint: Path,
    observers: Sequence[Observer],
    stop_epoch: int | None = None,
) -> FitResult:
    """In place of training; resumable as training is."""
    history = json.loads(checkpoint.read_text()) if checkpoint.is_file() else []
    if history:
        for observer in observers:
            observer.resumed(list(history))
    for epoch in range(len(history), EPOCHS):
        for observer in observers:
            observer.epoch_started(epoch, EPOCHS, 8)
        record = {"epoch": epoch, "train_loss": 1.0, "steps": 1, "lr": optim.lr, "seconds": 1.0, "images_per_s": 8.0}
        history.append(record | {"val_top1": curve(optim.lr)[epoch], "val_loss": 1.0})
        checkpoint.write_text(json.dumps(history))
        for observer in observers:
            observer.epoch_done(history[-1])
    return FitResult(history, float(EPOCHS))


@pytest.fixture
def command(tmp_path: Path, train_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The training command in this process; its exit code."""
    monkeypatch.setattr("gift_vit.runs.train.fit", follow_curve)

    def command(
        *words: str, lr: str = ",".join(f"{rate:g}" for rate in RATES), file: bool = True, root: str = "outputs"
    ) -> int:
        grid = f'method.grid.mini={{optim.lr:"{lr}",optim.weight_decay:"0"}}'
        common = ["sweep=digits", grid] if file else ["-m", "dataset=digits", f"optim.lr={lr}"]
        common += ["method=gift", "debug=smoke", "backbone.img_size=32"]
        common += [f"trainer.epochs={EPOCHS}", f"paths.output_root={tmp_path / root}", "hydra/launcher=basic"]
        return train_here(*words, *common)

    return command


def epochs_by_rate(root: Path) -> dict[float, int]:
    """Epochs that each run has trained, from what its folder says."""
    done = {Run.open(path.parent).config.optim.lr: EPOCHS for path in root.rglob("result.json")}
    for path in root.rglob("pruned.json"):
        history = json.loads((path.parent / "last.ckpt").read_text())
        assert json.loads(path.read_text())["epochs"] == len(history)
        done[history[0]["lr"]] = len(history)
    return done


def test_it_finds_the_grids_best_point_for_less(command: Command, tmp_path: Path, capsys: Told) -> None:
    assert command("sweeper=asha") == 0
    trained = epochs_by_rate(tmp_path)
    assert set(trained) == set(RATES)
    assert trained[BEST] == EPOCHS
    assert {1, 3} & set(trained.values()), "rungs are at 1, 3 and 9 epochs"
    assert set(trained.values()) <= {1, 3, EPOCHS}
    finished, total = list(trained.values()).count(EPOCHS), sum(trained.values())
    assert total < 0.7 * EPOCHS * len(RATES)
    told = capsys.readouterr().err.splitlines()
    assert told[-2] == (
        f"asha: {finished} of 9 runs finished, {9 - finished} stopped early; {total} of 81 epochs trained, "
        f"{100 - 100 * total / 81:.0f} % saved"
    )
    assert told[-1] == "best: optim.lr=0.003 optim.weight_decay=0; there is no recipe to compare with"
    [sweep] = read_sweeps(tmp_path / "outputs")
    pruned = [run for job in sweep.jobs if (run := Run.open(str(job.folder))).state == "pruned"]
    assert len(pruned) == 9 - finished
    assert all(re.search(r"val top-1 \d+\.\d\d % is behind other settings'", run.reason) for run in pruned)


def test_the_runs_report_to_a_study_below_any_folder(command: Command, tmp_path: Path) -> None:
    assert command("sweeper=asha", lr="1e-5,3e-3", root="""Läufe "b" a\\b it's 100 %""") == 0
    assert epochs_by_rate(tmp_path)[BEST] == EPOCHS


def test_a_second_start_has_nothing_to_do_and_the_whole_grid_goes_on_with_what_was_stopped(
    command: Command, tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stopped may be the best in the end."""
    few, known = "1e-5,1e-4,3e-3,1e-2", curve
    monkeypatch.setitem(globals(), "curve", lambda lr: [*known(lr)[:-1], 99.0 if lr == 1e-5 else known(lr)[-1]])
    command("sweeper=asha", lr=few)
    before, told = epochs_by_rate(tmp_path), capsys.readouterr().err.splitlines()[-2:]
    assert min(before.values()) < EPOCHS
    assert command("sweeper=asha", lr=few) == 0
    assert epochs_by_rate(tmp_path) == before
    again = capsys.readouterr().err.splitlines()
    assert [line for line in again if line.startswith(("asha", "best"))] == told
    assert "epoch 1/9" not in "".join(again)
    assert command(lr=few) == 0
    assert set(epochs_by_rate(tmp_path).values()) == {EPOCHS}
    assert not list(tmp_path.rglob("pruned.json"))
    assert not list(tmp_path.rglob("last.ckpt"))
    for path in tmp_path.rglob("result.json"):
        run = Run.open(path.parent)
        assert run.result is not None
        assert run.result.metrics["val_top1"] == curve(run.config.optim.lr)[-1]
    assert command("sweeper=asha", lr=few) == 0
    again = capsys.readouterr().err.splitlines()[-2:]
    assert again[0] == "asha: 4 of 4 runs finished, 0 stopped early; 36 of 36 epochs trained, 0 % saved"
    assert again[1].startswith("best: optim.lr=1e-05 ")


def test_what_was_stopped_stays_so_under_another_command(command: Command, tmp_path: Path) -> None:
    few = "1e-5,1e-4,3e-3,1e-2"
    command("sweeper=asha", lr=few)
    before = epochs_by_rate(tmp_path)
    assert command("sweeper=asha", "hydra.sweeper.max_batch_size=2", lr=few) == 0
    assert epochs_by_rate(tmp_path) == before


@pytest.mark.parametrize("lost", ["runs", "end of the journal"])
def test_what_was_lost_is_made_again(command: Command, tmp_path: Path, lost: str) -> None:
    few = "1e-5,1e-4,3e-3,1e-2"
    command("sweeper=asha", lr=few)
    before = epochs_by_rate(tmp_path)
    [journal] = tmp_path.rglob("journal")
    if lost == "runs":
        shutil.rmtree(tmp_path / "outputs/search")
    else:
        journal.write_bytes(journal.read_bytes()[:-20])
    assert command("sweeper=asha", lr=few) == 0
    assert epochs_by_rate(tmp_path) == before


def test_runs_that_are_finished_already_take_part_with_their_scores(command: Command, tmp_path: Path) -> None:
    command(lr=f"{BEST:g}")
    command("sweeper=asha", lr=f"{BEST:g},1e-5,1e-4,1e-2,1e-1")
    trained = epochs_by_rate(tmp_path)
    assert trained.pop(BEST) == EPOCHS
    assert set(trained.values()) == {1}, "the best is known from the start"
    assert len(trained) == 4


def test_a_finished_run_whose_metrics_are_gone_may_be_chosen(command: Command, tmp_path: Path, capsys: Told) -> None:
    command(lr=f"{BEST:g}")
    [metrics] = tmp_path.rglob("metrics.jsonl")
    metrics.unlink()
    assert command("sweeper=asha", lr=f"{BEST:g},1e-5") == 0
    assert set(epochs_by_rate(tmp_path).values()) == {EPOCHS}
    assert capsys.readouterr().err.splitlines()[-1].startswith("best: optim.lr=0.003 ")


def test_only_runs_of_one_cell_are_compared(
    command: Command, tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one protocol every score is half as high as on the other."""
    known = curve

    def by_protocol(model: nn.Module, inputs: FitInputs, optim: OptimConfig, trainer: TrainerConfig, *others: Any) -> FitResult:
        share = 0.5 if others[0].parent.name.startswith("gift") else 1.0
        monkeypatch.setitem(globals(), "curve", lambda lr: [share * score for score in known(lr)])
        return follow_curve(model, inputs, optim, trainer, *others)

    monkeypatch.setattr("gift_vit.runs.train.fit", by_protocol)
    protocols = ["protocol=clean,gift_paper", "optim.warmup_epochs=0"]
    assert command("sweeper=asha", *protocols, lr=f"1e-5,{BEST:g}") == 0
    finished = [Run.open(path.parent).config for path in tmp_path.rglob("result.json")]
    assert {run.protocol.name for run in finished if run.optim.lr == BEST} == {"clean", "gift_paper"}
    told = [line for line in capsys.readouterr().err.splitlines() if "asha: " in line or "best: " in line]
    assert [line.split(" runs ")[0] for line in told[::2]] == [
        f"{name}: asha: {sum(run.protocol.name == name for run in finished)} of 2" for name in ("clean", "gift_paper")
    ]
    assert all(" of 18 epochs trained" in line for line in told[::2])
    assert [line.split(";")[0] for line in told[1::2]] == [
        f"{name}: best: optim.lr=0.003 optim.weight_decay=0 optim.warmup_epochs=0" for name in ("clean", "gift_paper")
    ]


def test_a_run_that_fails_saves_nothing_and_is_tried_again(
    command: Command, tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: nn.Module, inputs: FitInputs, optim: OptimConfig, *others: Any) -> FitResult:
        if optim.lr < 1e-2:
            raise RunError("no space left")
        return follow_curve(model, inputs, optim, *others)

    with monkeypatch.context() as broken:
        broken.setattr("gift_vit.runs.train.fit", fails)
        assert command("sweeper=asha", lr="1e-4,1e-3,1e-2") == 1
    assert len(list(tmp_path.rglob("failed.json"))) == 2
    said = f"asha: 1 of 3 runs finished, 0 stopped early, 2 failed; {EPOCHS} of {EPOCHS} epochs trained, 0 % saved\n"
    assert said in capsys.readouterr().err
    assert command("sweeper=asha", lr="1e-4,1e-3") == 0
    assert not list(tmp_path.rglob("failed.json"))
    assert set(epochs_by_rate(tmp_path)) == {1e-4, 1e-3, 1e-2}


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [(KeyboardInterrupt(), 130, 3), (RunError("no space left"), 1, EPOCHS)],  # alone at the next rung where the first fails
)
def test_a_run_that_goes_on_later_is_compared_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, last: int
) -> None:
    """Of six runs at a rung two go on, of seven too: the last one is the second."""
    tried: list[float] = []

    def by_order(lr: float) -> list[float]:
        tried.extend({lr} - {*tried})
        return [(90.0, 70.0, 60.0, 50.0, 40.0, 80.0)[tried.index(lr)]] * EPOCHS

    class Breaks(Observer):
        def epoch_done(self, record: EpochRecord) -> None:
            if record["lr"] == tried[0]:
                raise error

    def breaks(
        model: nn.Module, inputs: FitInputs, optim: OptimConfig, trainer: TrainerConfig, checkpoint: Path, *others: Any
    ) -> FitResult:
        return follow_curve(model, inputs, optim, trainer, checkpoint, [*others[0], Breaks()], *others[1:])

    monkeypatch.setitem(globals(), "curve", by_order)
    rates = ",".join(f"{rate:g}" for rate in RATES[:6])
    with monkeypatch.context() as broken:
        broken.setattr("gift_vit.runs.train.fit", breaks)
        assert command("sweeper=asha", lr=rates) == code
    assert command("sweeper=asha", lr=rates) == 0
    trained = epochs_by_rate(tmp_path)
    assert [trained[rate] for rate in tried] == [EPOCHS, 1, 1, 1, 1, last]
    [journal] = tmp_path.rglob("journal")
    study = import_module("hydra_plugins.gift_vit_asha").open_study(journal, 1, 3)
    assert len(study.get_trials()) == 6


def test_of_equal_ones_it_names_what_the_choice_takes(
    command: Command, tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever run was tried first."""
    monkeypatch.setitem(globals(), "curve", lambda _: [80.0] * EPOCHS)
    assert command("sweeper=asha", lr="1e-2,1e-4,1e-3") == 0
    assert set(epochs_by_rate(tmp_path).values()) == {EPOCHS}
    assert "best: optim.lr=0.0001 optim.weight_decay=0;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rate", "file", "verdict"),
    [
        (BEST, True, "best: optim.lr=0.003 optim.weight_decay=0; the same as the recipe's"),
        (1e-2, False, "best: optim.lr=0.003 optim.weight_decay=0.0001; the recipe says optim.lr=0.01 optim.weight_decay=0"),
    ],
)
def test_it_says_whether_the_recipe_agrees(
    command: Command, tmp_path: Path, capsys: Told, rate: float, file: bool, verdict: str
) -> None:
    """Whether the axes are a sweep file's or the command line's."""
    (tmp_path / "conf/recipe").mkdir(parents=True)
    (tmp_path / "conf/recipe/digits_gift.yaml").write_text(
        "# @package _global_\n# Chosen.\n"
        "recipe: {dataset: digits, method: gift, backbone: test_vit, protocol: clean, changes: {}}\n"
        f"optim: {{lr: {rate}, weight_decay: 0}}\n"
    )
    assert command("--config-dir", str(tmp_path / "conf"), "sweeper=asha", lr="1e-4,3e-3", file=file) == 0
    assert capsys.readouterr().err.splitlines()[-1] == verdict


@pytest.mark.parametrize("word", ["trainer.eval_every=0", "phase=final"])
def test_without_a_score_after_every_epoch_it_is_refused(command: Command, tmp_path: Path, capsys: Told, word: str) -> None:
    assert command("sweeper=asha", word) == 2
    assert "error: sweeper=asha needs phase=search and trainer.eval_every=1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


def test_a_protocol_without_the_datasets_benchmark_is_refused(train_here: Command, capsys: Told) -> None:
    assert train_here("sweep=glue_rte", "protocol=gift_paper", "sweeper=asha", "optim.lr=1e-3", "optim.weight_decay=0") == 2
    assert "protocol.final_train has no entry for benchmark 'glue' of dataset glue_rte" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(command: Command, capsys: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert command("sweeper=asha", lr="1e-4,1e-3") == 2
    assert capsys.readouterr().err == "error: sweeper=asha needs Optuna: pip install 'gift-vit[asha]'\n"
