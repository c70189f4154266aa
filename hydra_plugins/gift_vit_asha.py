"""``sweeper=asha``: Optuna's successive halving over a sweep's grid, which stops runs early that others outdo.

The sweeper and its runs share an Optuna study in a journal file, so that runs may be in other processes. A run learns of its
trial from the environment that Hydra sets for its job. Nothing else in the project knows of this plugin, and Optuna is imported
late: Hydra imports this module at every start.
"""

import json
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from hydra import compose
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from gift_vit.common.errors import ConfigError
from gift_vit.config.keys import identifying
from gift_vit.config.run_config import RunConfig
from gift_vit.data.config import composed_score
from gift_vit.engine.observer import EpochRecord, Observer, StopTraining
from gift_vit.runs.job import OBSERVER_VARIABLE
from gift_vit.runs.result import Result
from gift_vit.runs.run import Run
from gift_vit.sweeps.plan import Plan, Sweep, cell_of
from gift_vit.sweeps.select import choose
from hydra_plugins.gift_vit_sweepers import GridSweeper, expect_whole

if TYPE_CHECKING:
    import optuna

_VARIABLE = "GIFT_VIT_ASHA"  # journal, first rung's epochs, reduction factor, the score's name, the job's trial
_RUN = "run"  # user attribute of a trial: the name of its run


class AshaSweeper(GridSweeper):
    """The points of a grid in random order, each stopped early where Optuna's pruner finds it behind others of its cell.

    Started again it goes on: points that are finished or pruned are not tried again, those that failed are.

    Args:
        max_batch_size: Runs that are launched at a time.
        params: The axes.
        reduction_factor: Of the runs at a rung, one in so many goes on.
        min_epochs: Epochs of the first rung; None: a run's epochs divided by the square of ``reduction_factor``.
        seed: Of the order.
    """

    def __init__(
        self, max_batch_size: int, params: dict[str, str] | None, reduction_factor: int, min_epochs: int | None, seed: int
    ) -> None:
        super().__init__(None, params)
        for name, value, lowest in (
            ("max_batch_size", max_batch_size, 1),
            ("reduction_factor", reduction_factor, 2),
            ("min_epochs", 1 if min_epochs is None else min_epochs, 1),
        ):
            expect_whole(name, value, lowest)
        self.at_a_time, self.reduction_factor, self.min_epochs, self.seed = max_batch_size, reduction_factor, min_epochs, seed

    def _check(self, overrides: Sequence[Override]) -> None:
        super()._check(overrides)
        assert self.config is not None
        if self.config.phase != "search" or self.config.trainer.eval_every != 1:
            raise ConfigError("sweeper=asha needs phase=search and trainer.eval_every=1: it looks at val after every epoch")

    def _run(self, plans: Sequence[Plan], sweep: Sweep, record: Path) -> list[int]:  # noqa: ARG002
        cells: dict[tuple[str, ...], list[Plan]] = defaultdict(list)
        for plan in plans:
            if plan.run is not None:
                cells[cell_of(identifying(plan.run.values))].append(plan)
        halvings = {cell: self._halving(Path(record.with_suffix(""), *cell), own) for cell, own in cells.items()}
        left = [(halving, plan) for halving in halvings.values() for plan in halving.left(self.seed)]
        refused = [plan for plan in plans if plan.run is None]
        whole = len(refused) + len(left)
        codes = self._launch(refused, 0, whole) if refused else []
        for start in range(0, len(left), self.at_a_time):
            trials = [(halving, halving.start(plan), plan) for halving, plan in left[start : start + self.at_a_time]]
            told = [replace(plan, words=(*plan.words, halving.word(trial))) for halving, trial, plan in trials]
            codes += self._launch(told, len(codes), whole)
            for halving, trial, _ in trials:
                halving.finish(trial)
        for cell, halving in halvings.items():
            names = [name for name, *every in zip(cell, *cells, strict=True) if len({*every}) > 1]
            print(": ".join([*names, halving.summary()]), file=sys.stderr)
            if done := halving.results():
                print(": ".join([*names, _against_recipe(done)]), file=sys.stderr)
        return codes

    def _halving(self, folder: Path, plans: Sequence[Plan]) -> "Halving":
        epochs = min(_epochs(plan) for plan in plans)
        folder.mkdir(parents=True, exist_ok=True)
        first_rung = self.min_epochs or max(1, epochs // self.reduction_factor**2)
        return Halving(folder / "journal", plans, first_rung, self.reduction_factor)


class Pruner(Observer):
    """Reports a run's val top-1 to its trial after every epoch, and stops the run where the study says so."""

    def __init__(self, study: "optuna.Study", trial: int, score_name: str) -> None:
        from optuna.trial import Trial

        self._trial = Trial(study, trial)  # a journal of one study identifies its trials by their numbers
        self._last_epoch, self._score_name = 0, score_name
        self._behind: tuple[int, float] | None = None  # epochs and score of before, after which it is to stop

    def resumed(self, history: list[EpochRecord]) -> None:
        """Report the epochs of before, where they are not reported yet."""
        for record in history:
            prune = _report(self._trial, record)
            self._behind = (record["epoch"] + 1, record["val_top1"]) if prune and "val_top1" in record else None

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:  # noqa: ARG002
        """Know which epoch is the last; a run that was behind when it was interrupted or stopped does not go on.

        Raises:
            StopTraining: To stop.
        """
        self._last_epoch = epochs - 1
        if self._behind is not None:
            self._stop(*self._behind)

    def epoch_done(self, record: EpochRecord) -> None:
        """Report, and stop where the study says so.

        Raises:
            StopTraining: To stop.
        """
        prune = _report(self._trial, record)
        if prune and "val_top1" in record and record["epoch"] < self._last_epoch:
            self._stop(record["epoch"] + 1, record["val_top1"])

    def _stop(self, epochs: int, top1: float) -> None:
        reason = f"stopped after epoch {epochs}: val {self._score_name} {top1:.2f} % is behind other settings'"
        raise StopTraining(reason, epochs=epochs, val_top1=top1)


def observer() -> Pruner:
    """What a job's run is watched by."""
    journal, min_epochs, reduction_factor, score_name, trial = json.loads(unquote(os.environ[_VARIABLE]))
    return Pruner(open_study(Path(journal), min_epochs, reduction_factor), trial, score_name)


class Halving:
    """The study of one cell of a sweep, from the sweeper's side.

    Args:
        journal: Its file; made where there is none, and anew where it is damaged.
        plans: The cell's jobs.
        min_epochs: Epochs of the first rung.
        reduction_factor: Of the runs at a rung, one in so many goes on.
    """

    def __init__(self, journal: Path, plans: Sequence[Plan], min_epochs: int, reduction_factor: int) -> None:
        self._by_name = {_run_of(plan).run_name: plan for plan in plans}  # two ways to type a value are one run
        self._told = [str(journal), min_epochs, reduction_factor, composed_score(_run_of(plans[0]).values["dataset"])]
        if not _is_whole(journal):
            journal.unlink()
        self._study = open_study(journal, min_epochs, reduction_factor)
        ended = [plan for trial in self._ended() if (plan := self._by_name.get(trial.user_attrs[_RUN])) is not None]
        if any(_state(plan) not in ("done", "pruned") for plan in ended):  # deleted since: nothing is to be compared with it
            journal.unlink()
            self._study = open_study(journal, min_epochs, reduction_factor)

    def left(self, seed: int) -> list[Plan]:
        """The jobs that are to be tried, in order; those whose runs were finished before come first, to be compared with."""
        order = list(self._by_name.values())
        random.Random(seed).shuffle(order)
        seen = {trial.user_attrs[_RUN] for trial in self._ended()}
        left = [plan for plan in order if _run_of(plan).run_name not in seen]
        return sorted(left, key=lambda plan: _state(plan) != "done")

    def start(self, plan: Plan) -> "optuna.Trial":
        """A trial for a job; a run that was finished before takes part with the scores it had.

        One that has not ended, because it failed or was interrupted, goes on with the trial it had: two would be compared.
        """
        from optuna.trial import Trial

        name = _run_of(plan).run_name
        begun = [t.number for t in self._trials() if t.user_attrs.get(_RUN) == name and t.state.name == "RUNNING"]
        trial = Trial(self._study, begun[0]) if begun else self._study.ask()
        trial.set_user_attr(_RUN, name)
        if _state(plan) == "done":
            for record in Run.open(_run_of(plan).folder).curve():
                _report(trial, record)
        return trial

    def word(self, trial: "optuna.Trial") -> str:
        """What a job is told, so that its run reports to the trial."""
        told = quote(json.dumps([*self._told, trial.number]))  # nothing that Hydra's grammar or interpolation would read
        return f"+hydra.job.env_set={{{OBSERVER_VARIABLE}: '{__name__}:observer', {_VARIABLE}: '{told}'}}"

    def finish(self, trial: "optuna.Trial") -> None:
        """Record how a launched job ended; the trial of one that is to be tried again stays open."""
        from optuna.trial import TrialState

        state = _state(self._by_name[trial.user_attrs[_RUN]])
        scores = self._trials()[trial.number].intermediate_values
        if state == "done" and scores:  # a finished run whose metrics are gone has none
            self._study.tell(trial, scores[max(scores)])
        elif state == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)

    def results(self) -> list[Result]:
        """Of the runs that are done."""
        return [result for plan in self._by_name.values() if (result := Run.open(_run_of(plan).folder).result)]

    def summary(self) -> str:
        """What was trained of the runs that are done or stopped; what failed saves nothing."""
        states = {name: _state(plan) for name, plan in self._by_name.items()}
        reached = {trial.user_attrs[_RUN]: max(trial.intermediate_values) for trial in self._ended()}
        epochs = {name: _epochs(self._by_name[name]) for name, state in states.items() if state in ("done", "pruned")}
        whole = sum(epochs.values())
        trained = sum(every if states[name] == "done" else reached.get(name, 0) for name, every in epochs.items())
        counts = Counter(states.values())
        summary = f"asha: {counts['done']} of {len(states)} runs finished, {counts['pruned']} stopped early"
        if failed := len(states) - len(epochs):
            summary += f", {failed} failed"
        return f"{summary}; {trained} of {whole} epochs trained, {100 * (whole - trained) / max(1, whole):.0f} % saved"

    def _trials(self) -> "list[optuna.trial.FrozenTrial]":
        return self._study.get_trials(deepcopy=False)

    def _ended(self) -> "list[optuna.trial.FrozenTrial]":
        return [trial for trial in self._trials() if trial.state.name in ("COMPLETE", "PRUNED")]


def open_study(journal: Path, min_epochs: int, reduction_factor: int) -> "optuna.Study":
    """The study of a journal file, made where there is none.

    Raises:
        ConfigError: If Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError("sweeper=asha needs Optuna: pip install 'gift-vit[asha]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(journal))),
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=reduction_factor),
        load_if_exists=True,
    )


def _is_whole(journal: Path) -> bool:
    """Whether every line can be read; a disk that was full leaves half a one, and more behind it."""
    try:
        return all(isinstance(json.loads(line), dict) for line in journal.read_bytes().splitlines())
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _report(trial: "optuna.Trial", record: Mapping[str, Any]) -> bool:
    """Report the score of one epoch of a run, if it has one and it is not reported yet; whether to stop the run.

    Of runs that are finished this is asked too: Optuna compares others only with those that it was asked about at their rung.
    """
    epochs = int(record["epoch"]) + 1
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if "val_top1" in record and epochs not in known:
        trial.report(record["val_top1"], epochs)
    return trial.should_prune()


def _run_of(plan: Plan) -> RunConfig:
    assert plan.run is not None, "refused ones have no cell"
    return plan.run


def _state(plan: Plan) -> str:
    return Run.open(_run_of(plan).folder).state


def _epochs(plan: Plan) -> int:
    """Epochs of the whole run."""
    return _run_of(plan).stop_epoch or _run_of(plan).trainer.epochs


def _against_recipe(done: Sequence[Result]) -> str:
    """What ``select`` takes of the runs, and whether a recipe that is there, chosen from a whole grid, says the same."""
    try:
        choice = choose(done)
    except ConfigError as error:
        return f"no best: {error}"
    best = choice.settings[0]
    typed = {word.partition("=")[0]: word for word in best.overrides}
    groups = {"dataset": choice.dataset, "method": choice.method}
    words = [typed.get(group, f"{group}={name}") for group, name in groups.items()]
    theirs = compose("train", overrides=[*words, f"recipe={'_'.join(groups.values())}"])
    recipe = {key: OmegaConf.select(theirs, key) for key in best.values}
    listed = " ".join(f"{key}={value}" for key, value in best.values.items())
    if theirs.recipe is None:
        return f"best: {listed}; there is no recipe to compare with"
    own = {key: getattr(choice, key) for key in ("backbone", "protocol", "data")}
    others = [key for key, value in own.items() if theirs.recipe.get(key, value) != value]
    if others:
        return f"best: {listed}; the recipe that is there is of other {', '.join(others)}"
    if best.values == recipe:
        return f"best: {listed}; the same as the recipe's"
    return f"best: {listed}; the recipe says {' '.join(f'{key}={value}' for key, value in recipe.items())}"
