"""This project's sweepers: Hydra's grid with checks, and Optuna's successive halving over the same grid.

Hydra finds sweepers in packages of this name only, and imports them at every start: torch and Optuna are imported late.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from gift_vit import distributed
from gift_vit.errors import ConfigError, SweepError
from gift_vit.pruning import Halving
from gift_vit.sweeps import Sweep, plan_job, write_sweep
from hydra_plugins.gift_vit_launcher import ProcessLauncher


class GridSweeper(BasicSweeper):
    """Every combination of the axes of ``sweep=<file>`` and of those on the command line, which replace the file's.

    Refuses what Hydra's own sweeper would run with other values than asked for, before any run starts.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; each returns its exit code.

        Raises:
            ConfigError: For axes that do not mean what they seem to.
            SweepError: After the last job, if any failed.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        distributed.refuse_sweep()
        self._check_parallel_runs()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        self._check(parser.parse_overrides(arguments))
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs: list[list[str]] = self.split_arguments(parsed, max_batch_size=None)[0]
        root = Path(self.config.paths.output_root).expanduser().absolute()
        command = shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]])
        sweep = Sweep(command, datetime.now(timezone.utc).isoformat(timespec="seconds"), tuple(map(plan_job, jobs)))
        codes = self._run(jobs, sweep, write_sweep(root, sweep))
        failed = [code for code in codes if code]
        if failed:
            raise SweepError(f"{len(failed)} of {len(codes)} runs failed; the same command starts only those again", failed[0])
        return codes

    def _run(self, jobs: Sequence[list[str]], sweep: Sweep, record: Path) -> list[int]:  # noqa: ARG002
        """Run jobs, given by their words and as ``sweep`` and its record's path tell them; their exit codes."""
        return self._launch(jobs, 0)

    def _launch(self, jobs: Sequence[list[str]], first: int) -> list[int]:
        assert self.launcher is not None
        return [job.return_value for job in self.launcher.launch(jobs, initial_job_idx=first)]

    def _check_parallel_runs(self) -> None:
        if self._parallel_runs > 1 and not isinstance(self.launcher, ProcessLauncher):
            raise ConfigError("trainer.parallel_runs needs the launcher that puts runs together: use hydra/launcher=processes")

    @property
    def _parallel_runs(self) -> int:
        from gift_vit.config import parallel_runs

        assert self.config is not None
        return parallel_runs(self.config)

    def _check(self, overrides: Sequence[Override]) -> None:
        for key, axis in cast(Mapping[str, Any], self.params).items():
            if isinstance(axis, Sequence) and not isinstance(axis, str):
                listed = ",".join(str(value) for value in axis)
                raise ConfigError(f"the axis {key} of the sweep is a list, one value; write it as text: {key}: {listed}")
        swept = {override.key_or_group: override for override in overrides if override.is_sweep_override()}
        if "sweep" in swept:
            raise ConfigError(f"{swept['sweep'].input_line}: the axes of several sweep files would be lost; give one a command")
        if self.params and "method" in swept:
            self._check_methods(swept["method"], [o.input_line for o in overrides if not o.is_sweep_override()])

    def _check_methods(self, methods: Override, fixed: Sequence[str | None]) -> None:
        """Axes are composed once, before the methods are told apart: all of them must have the same ones."""
        assert self.hydra_context is not None
        assert self.config is not None
        choices: Iterator[str] = methods.sweep_string_iterator()
        for method in choices:
            composed = self.hydra_context.config_loader.load_configuration(
                config_name=self.config.hydra.job.config_name,
                overrides=[*filter(None, fixed), f"method={method}"],
                run_mode=RunMode.MULTIRUN,
            )
            if OmegaConf.to_container(composed.hydra.sweeper.params, resolve=True) != dict(self.params):
                raise ConfigError(f"{methods.input_line}: these methods have grids of their own; sweep one method a command")


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
        self.at_a_time, self.reduction_factor, self.min_epochs, self.seed = max_batch_size, reduction_factor, min_epochs, seed

    def _run(self, jobs: Sequence[list[str]], sweep: Sweep, record: Path) -> list[int]:
        epochs = self._epochs()
        first_rung = self.min_epochs or max(1, epochs // self.reduction_factor**2)
        halving = Halving(record.with_suffix(".journal"), first_rung, self.reduction_factor)
        codes: list[int] = []
        left = halving.left(sweep, self.seed)
        for start in range(0, len(left), self.at_a_time):
            batch = left[start : start + self.at_a_time]
            trials = [halving.start(sweep, index) for index in batch]
            codes += self._launch([[*jobs[i], halving.word(t)] for i, t in zip(batch, trials, strict=True)], len(codes))
            for trial in trials:
                halving.finish(sweep, trial)
        print(halving.summary(sweep, epochs), file=sys.stderr)
        if (best := halving.best()) is not None:
            print(_against_recipe(jobs[best], list(self.params)), file=sys.stderr)
        return codes

    def _check_parallel_runs(self) -> None:
        if self._parallel_runs > 1:
            raise ConfigError("trainer.parallel_runs and sweeper=asha exclude each other: asha stops runs one by one; drop one")

    def _epochs(self) -> int:
        """Epochs of a whole run."""
        assert self.config is not None
        trainer, protocol = self.config.trainer, self.config.protocol
        if self.config.phase != "search" or trainer.eval_every != 1:
            raise ConfigError("sweeper=asha needs phase=search and trainer.eval_every=1: it looks at val after every epoch")
        cut: int | None = protocol.search_epochs[self.config.dataset.benchmark]
        return min(trainer.epochs, cut or trainer.epochs)


def _against_recipe(best: list[str], keys: Sequence[str]) -> str:
    """The best job's values, and whether a recipe that is there, chosen from a whole grid, says the same."""
    mine = compose("train", overrides=best)
    theirs = compose("train", overrides=[f"{group}={mine[group].name}" for group in ("dataset", "method")])
    chosen, recipe = ({key: OmegaConf.select(cfg, key) for key in keys} for cfg in (mine, theirs))
    listed = " ".join(f"{key}={value}" for key, value in chosen.items())
    if theirs.recipe is None:
        return f"best: {listed}; there is no recipe to compare with"
    if chosen == recipe:
        return f"best: {listed}; the same as the recipe's"
    return f"best: {listed}; the recipe says {' '.join(f'{key}={value}' for key, value in recipe.items())}"
