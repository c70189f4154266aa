"""Stopping a search run early where other settings were better at the same epoch, decided by Optuna's pruner.

The sweeper (``sweeper=asha``) and its runs share an Optuna study in a journal file, so that runs may be in other processes.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gift_vit.errors import ConfigError
from gift_vit.layout import METRICS, PRUNED, RESULT
from gift_vit.sweeps import Sweep

if TYPE_CHECKING:
    import optuna

_JOB = "job"  # user attribute of a trial: the index of its job


class PrunedRun(Exception):
    """A run was stopped early; ``epochs`` are done, ``val_top1`` (in percent) is its score after them."""

    def __init__(self, epochs: int, val_top1: float) -> None:
        super().__init__(f"stopped after epoch {epochs}: val top-1 {val_top1:.2f} % is behind other settings'")
        self.epochs, self.val_top1 = epochs, val_top1


@dataclass
class PruningConfig:
    """Where a run reports to, and the rule.

    Attributes:
        journal: The study's journal file.
        trial: The number of the run's trial in it.
        min_epochs: Epochs of the first rung.
        reduction_factor: Of the runs at a rung, one in so many goes on.
    """

    journal: str
    trial: int
    min_epochs: int
    reduction_factor: int


class Pruner:
    """An observer of training that reports val top-1 after every epoch and stops the run where the study says so."""

    def __init__(self, cfg: PruningConfig) -> None:
        from optuna.trial import Trial

        study = open_study(Path(cfg.journal), cfg.min_epochs, cfg.reduction_factor)
        self._trial = Trial(study, cfg.trial)  # a journal of one study identifies its trials by their numbers
        self._last_epoch = 0

    def resumed(self, history: list[dict[str, float]]) -> None:
        """Report the epochs of before, where they are not reported yet."""
        for record in history:
            _report(self._trial, record)

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:  # noqa: ARG002
        """Know which epoch is the last."""
        self._last_epoch = epochs - 1

    def step_done(self, loss: Any, lr: float, images: int) -> None:
        """Nothing to do."""

    def epoch_done(self, record: Mapping[str, float]) -> None:
        """Report, and ask whether to go on.

        Raises:
            PrunedRun: If not.
        """
        _report(self._trial, record)
        if record["epoch"] < self._last_epoch and self._trial.should_prune():
            raise PrunedRun(int(record["epoch"]) + 1, record["val_top1"])


class Halving:
    """The study of one sweep, from the sweeper's side.

    Args:
        journal: Its file; made where there is none.
        min_epochs: Epochs of the first rung.
        reduction_factor: Of the runs at a rung, one in so many goes on.
    """

    def __init__(self, journal: Path, min_epochs: int, reduction_factor: int) -> None:
        self._journal, self._min_epochs, self._reduction_factor = journal, min_epochs, reduction_factor
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
        folder = sweep.jobs[index].folder
        if folder and Path(folder, RESULT).is_file():
            for line in Path(folder, METRICS).read_text().splitlines():
                _report(trial, json.loads(line))
        return trial

    def word(self, trial: "optuna.Trial") -> str:
        """What the training command is told, so that its run reports to the trial."""
        rule = f"min_epochs: {self._min_epochs}, reduction_factor: {self._reduction_factor}"
        return f'pruning={{journal: "{self._journal}", {rule}, trial: {trial.number}}}'

    def finish(self, sweep: Sweep, trial: "optuna.Trial") -> None:
        """Record how a launched job ended."""
        from optuna.trial import TrialState

        folder = Path(sweep.jobs[trial.user_attrs[_JOB]].folder or "")
        if folder.name and (folder / RESULT).is_file():
            scores = self._trials()[trial.number].intermediate_values
            self._study.tell(trial, scores[max(scores)])
        else:
            pruned = folder.name and (folder / PRUNED).is_file()
            self._study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def best(self) -> int | None:
        """Index of the job with the highest last val top-1; None if none is finished."""
        finished = [trial for trial in self._ended() if trial.state.name == "COMPLETE"]
        return max(finished, key=lambda trial: (trial.value, -trial.number)).user_attrs[_JOB] if finished else None

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


def _report(trial: "optuna.Trial", record: Mapping[str, float]) -> None:
    """Report the score of one epoch of a run, if it has one and it is not reported yet."""
    epochs = int(record["epoch"]) + 1
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if "val_top1" in record and epochs not in known:
        trial.report(record["val_top1"], epochs)
