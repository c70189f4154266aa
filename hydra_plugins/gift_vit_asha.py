"""``sweeper=asha``: Optuna's successive halving over a sweep's grid, which stops runs early that others outdo.

The sweeper and its runs share an Optuna study in a journal file, so that runs may be in other processes. A run learns of its
trial from the environment that Hydra sets for its job. Nothing else in the project knows of this plugin, and Optuna is imported
late: Hydra imports this module at every start.
"""

import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from gift_vit.common.errors import ConfigError
from gift_vit.config.keys import identifying, score_order, tie_order
from gift_vit.data.config import composed_score
from gift_vit.engine.observer import EpochRecord, Observer, StopTraining
from gift_vit.runs.job import OBSERVER_VARIABLE
from gift_vit.runs.run import Run
from gift_vit.sweeps.plan import Sweep
from hydra_plugins.gift_vit_sweepers import GridSweeper, expect_whole

if TYPE_CHECKING:
    import optuna

_VARIABLE = "GIFT_VIT_ASHA"  # journal, first rung's epochs, reduction factor, the score's name, the job's trial
_JOB = "job"  # user attribute of a trial: the index of its job


class AshaSweeper(GridSweeper):
    """The points of a grid in random order, each stopped early where Optuna's pruner finds it behind others.

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
        self._epochs()

    def _run(self, jobs: Sequence[list[str]], sweep: Sweep, record: Path) -> list[int]:
        epochs = self._epochs()
        first_rung = self.min_epochs or max(1, epochs // self.reduction_factor**2)
        assert self.config is not None
        journal, score = record.with_suffix(".journal"), composed_score(self.config.dataset)
        halving = Halving(journal, first_rung, self.reduction_factor, score)
        codes: list[int] = []
        left = halving.left(sweep, self.seed)
        for start in range(0, len(left), self.at_a_time):
            batch = left[start : start + self.at_a_time]
            trials = [halving.start(sweep, index) for index in batch]
            words = [[*jobs[i], halving.word(trial)] for i, trial in zip(batch, trials, strict=True)]
            codes += self._launch(words, len(codes), len(left))
            for trial in trials:
                halving.finish(sweep, trial)
        print(halving.summary(sweep, epochs), file=sys.stderr)
        if (best := halving.best(sweep)) is not None:
            print(_against_recipe(jobs[best], list(self.params)), file=sys.stderr)
        return codes

    def _epochs(self) -> int:
        """Epochs of a whole run."""
        assert self.config is not None
        trainer, protocol = self.config.trainer, self.config.protocol
        if self.config.phase != "search" or trainer.eval_every != 1:
            raise ConfigError("sweeper=asha needs phase=search and trainer.eval_every=1: it looks at val after every epoch")
        cut: int | None = protocol.search_epochs[self.config.dataset.benchmark]
        return min(trainer.epochs, cut or trainer.epochs)


class Pruner(Observer):
    """Reports a run's val top-1 to its trial after every epoch, and stops the run where the study says so."""

    def __init__(self, study: "optuna.Study", trial: int, score_name: str) -> None:
        from optuna.trial import Trial

        self._trial = Trial(study, trial)  # a journal of one study identifies its trials by their numbers
        self._last_epoch, self._score_name = 0, score_name

    def resumed(self, history: list[EpochRecord]) -> None:
        """Report the epochs of before, where they are not reported yet."""
        for record in history:
            _report(self._trial, record)

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:  # noqa: ARG002
        """Know which epoch is the last."""
        self._last_epoch = epochs - 1

    def epoch_done(self, record: EpochRecord) -> None:
        """Report, and ask whether to go on.

        Raises:
            StopTraining: If not.
        """
        _report(self._trial, record)
        if "val_top1" in record and record["epoch"] < self._last_epoch and self._trial.should_prune():
            epochs, top1 = record["epoch"] + 1, record["val_top1"]
            reason = f"stopped after epoch {epochs}: val {self._score_name} {top1:.2f} % is behind other settings'"
            raise StopTraining(reason, epochs=epochs, val_top1=top1)


def observer() -> Pruner:
    """What a job's run is watched by."""
    journal, min_epochs, reduction_factor, score_name, trial = json.loads(os.environ[_VARIABLE])
    return Pruner(open_study(Path(journal), min_epochs, reduction_factor), trial, score_name)


class Halving:
    """The study of one sweep, from the sweeper's side.

    Args:
        journal: Its file; made where there is none.
        min_epochs: Epochs of the first rung.
        reduction_factor: Of the runs at a rung, one in so many goes on.
        score_name: What the score on val is, in a sentence.
    """

    def __init__(self, journal: Path, min_epochs: int, reduction_factor: int, score_name: str) -> None:
        self._journal, self._min_epochs, self._reduction_factor = journal, min_epochs, reduction_factor
        self._score_name = score_name
        self._study = open_study(journal, min_epochs, reduction_factor)

    def left(self, sweep: Sweep, seed: int) -> list[int]:
        """Indices of the jobs that are neither finished nor pruned, in the order they are to be tried in."""
        order = list(range(len(sweep.jobs)))
        random.Random(seed).shuffle(order)
        seen = {trial.user_attrs[_JOB] for trial in self._ended()}
        return [index for index in order if index not in seen]

    def start(self, sweep: Sweep, index: int) -> "optuna.Trial":
        """A trial for a job; a run that was finished before takes part with the scores it had."""
        trial = self._study.ask()
        trial.set_user_attr(_JOB, index)
        run = _run_of(sweep, index)
        if run and run.state == "done":
            for record in run.curve():
                _report(trial, record)
        return trial

    def word(self, trial: "optuna.Trial") -> str:
        """What a job is told, so that its run reports to the trial."""
        settings = json.dumps([str(self._journal), self._min_epochs, self._reduction_factor, self._score_name, trial.number])
        quoted = settings.replace("\\", "\\\\").replace("'", "\\'")
        return f"+hydra.job.env_set={{{OBSERVER_VARIABLE}: '{__name__}:observer', {_VARIABLE}: '{quoted}'}}"

    def finish(self, sweep: Sweep, trial: "optuna.Trial") -> None:
        """Record how a launched job ended."""
        from optuna.trial import TrialState

        run = _run_of(sweep, trial.user_attrs[_JOB])
        if run and run.state == "done":
            scores = self._trials()[trial.number].intermediate_values
            self._study.tell(trial, scores[max(scores)])
        else:
            self._study.tell(trial, state=TrialState.PRUNED if run and run.state == "pruned" else TrialState.FAIL)

    def best(self, sweep: Sweep) -> int | None:
        """Index of the job with the highest last val top-1, of equal ones that which ``select`` takes; None if none is done."""
        finished = [trial for trial in self._ended() if trial.state.name == "COMPLETE"]
        ranked = [
            (score_order(trial.value), tie_order(identifying(run.values)), trial.user_attrs[_JOB])
            for trial in finished
            if trial.value is not None and (run := _run_of(sweep, trial.user_attrs[_JOB]))
        ]
        return min(ranked)[-1] if ranked else None

    def summary(self, sweep: Sweep, epochs: int) -> str:
        """What was trained of the whole grid, whose runs have ``epochs`` epochs."""
        ended = self._ended()
        trained = sum(max(trial.intermediate_values) for trial in ended)
        finished = sum(trial.state.name == "COMPLETE" for trial in ended)
        share = 100 * trained / (epochs * len(sweep.jobs))
        return (
            f"asha: {finished} of {len(sweep.jobs)} runs finished, {len(ended) - finished} stopped early; "
            f"{trained} of {epochs * len(sweep.jobs)} epochs trained, {100 - share:.0f} % saved"
        )

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


def _report(trial: "optuna.Trial", record: Mapping[str, Any]) -> None:
    """Report the score of one epoch of a run, if it has one and it is not reported yet."""
    epochs = int(record["epoch"]) + 1
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if "val_top1" in record and epochs not in known:
        trial.report(record["val_top1"], epochs)


def _run_of(sweep: Sweep, index: int) -> Run | None:
    """The run of a job; None: its configuration was refused."""
    folder = sweep.jobs[index].folder
    return Run.open(folder) if folder else None


def _against_recipe(best: list[str], keys: Sequence[str]) -> str:
    """The best job's values, and whether a recipe that is there, chosen from a whole grid, says the same."""
    mine = compose("train", overrides=best)
    theirs = compose("train", overrides=["phase=final", *(f"{group}={mine[group].name}" for group in ("dataset", "method"))])
    chosen, recipe = ({key: OmegaConf.select(cfg, key) for key in keys} for cfg in (mine, theirs))
    listed = " ".join(f"{key}={value}" for key, value in chosen.items())
    if theirs.recipe is None:
        return f"best: {listed}; there is no recipe to compare with"
    if chosen == recipe:
        return f"best: {listed}; the same as the recipe's"
    return f"best: {listed}; the recipe says {' '.join(f'{key}={value}' for key, value in recipe.items())}"
