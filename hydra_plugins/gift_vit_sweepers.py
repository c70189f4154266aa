"""This project's sweepers: Hydra's grid, with checks, and a grid that is widened and repeated where its choice is open.

Hydra finds sweepers in packages of this name only, and imports them at every start.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from gift_vit.common import distributed
from gift_vit.common.checks import expect
from gift_vit.common.errors import ConfigError, SweepError
from gift_vit.common.files import expanded, made_folder
from gift_vit.common.starting import interruptible
from gift_vit.config.keys import identifying
from gift_vit.runs.job import SWEEP_VARIABLE
from gift_vit.runs.run import Run
from gift_vit.sweeps.adaptive import Tried, further
from gift_vit.sweeps.plan import SWEEPS, Job, Plan, Sweep, plan_start, read_sweeps, write_sweep
from hydra_plugins.gift_vit_launcher import ProcessLauncher

_MANY = 100  # jobs whose planning takes half a minute or more


def _planned(jobs: Sequence[list[str]]) -> Iterator[Plan]:
    for number, job in enumerate(jobs):
        if number % _MANY == 0 and len(jobs) > _MANY:
            print(f"planning {len(jobs):,} runs{f', {number:,} done' * (number > 0)}", file=sys.stderr, flush=True)
        yield plan_start(job)


def expect_whole(name: str, value: Any, lowest: int) -> None:
    """Refuse an option of a sweeper that is no whole number of ``lowest`` or more."""
    fits = isinstance(value, int) and value >= lowest
    expect(fits, f"hydra.sweeper.{name}", value, f"a whole number of {lowest} or more")


def _check_apart(plans: Sequence[Plan]) -> None:
    """Two sets of images with one name would share their folders of runs."""
    roots: dict[Path, object] = {}
    for run in (plan.run for plan in plans if plan.run is not None):
        root = run.values["dataset"].get("root")
        if (other := roots.setdefault(run.folder, root)) != root:
            raise ConfigError(
                f"{other} and {root} would both be {run.dataset.name}, in the same folders; give each a command, and one "
                "dataset.name=<another name>"
            )


def _of_slurm(error: Exception) -> Exception | None:
    """What went wrong with Slurm, in one line; None: something else did."""
    if 'detect "srun"' in str(error):
        return ConfigError("there is no Slurm on this machine: type the command on one of the cluster's, or another launcher")
    if type(error).__module__.partition(".")[0] != "submitit":
        return None
    if isinstance(error.__cause__, subprocess.CalledProcessError):  # sbatch's
        return ConfigError(f"Slurm did not take the jobs: {error}")
    reason = "a job ended without an answer: it was killed or cancelled, or ran out of memory or time"
    return SweepError(f"{reason}; the others go on; once they have ended, type the same command again", 1)


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
        if distributed.launched():  # its processes would each run a whole sweep
            raise ConfigError(
                "torchrun trains one run on several processes, no sweep; give one value to each key, or drop torchrun"
            )
        os.environ[SWEEP_VARIABLE] = str(os.getpid())
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        self._check(parser.parse_overrides(arguments))
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs: list[list[str]] = self.split_arguments(parsed, max_batch_size=None)[0]
        root = expanded(self.config.paths.output_root).absolute()
        command = shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]])
        if not jobs:
            raise ConfigError("the axes of this sweep have no value; give each at least one")
        planned = list(_planned(jobs))
        _check_apart(planned)
        hindrances = [plan.hindrance for plan in planned if plan.hindrance is not None]
        if len(hindrances) == len(jobs):  # nothing begins, and nothing is left
            raise ConfigError(hindrances[0] if len(jobs) == 1 else f"none of {len(jobs)} runs can start: {hindrances[0]}")
        interruptible()
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        sweep = self._with_added(Sweep(command, started_at, tuple(plan.job for plan in planned)), root)
        with made_folder(root / SWEEPS):
            record = write_sweep(root, sweep)
            try:
                codes = self._run(planned, sweep, record)
            except ConfigError:  # of a launcher that takes no job
                if all(plan.run is None or Run.open(plan.run.folder).state == "missing" for plan in planned):
                    record.unlink()
                raise
        failed = [code for code in codes if code]
        if failed:
            raise SweepError(f"{len(failed)} of {len(codes)} runs failed; the same command starts only those again", failed[0])
        return codes

    def _with_added(self, sweep: Sweep, root: Path) -> Sweep:  # noqa: ARG002
        """The sweep, with the jobs that an earlier start of its command has added, below this output root."""
        return sweep

    def _run(self, plans: Sequence[Plan], sweep: Sweep, record: Path) -> list[int]:  # noqa: ARG002
        """Run the jobs of a sweep, whose record's path is given; their exit codes."""
        return self._launch(plans, 0, len(plans))

    def _launch(self, plans: Sequence[Plan], first: int, whole: int) -> list[int]:
        """Run jobs that are those from ``first`` of ``whole`` ones."""
        assert self.launcher is not None
        if isinstance(self.launcher, ProcessLauncher):
            self.launcher.runs, self.launcher.plans = whole, plans
        try:
            ended = self.launcher.launch([list(plan.words) for plan in plans], initial_job_idx=first)
        except Exception as error:
            if (told := _of_slurm(error)) is None:
                raise
            raise told from error
        return [job.return_value for job in ended]

    def _check(self, overrides: Sequence[Override]) -> None:
        for key, axis in cast(Mapping[str, Any], self.params).items():
            if isinstance(axis, Sequence) and not isinstance(axis, str):
                listed = ",".join(str(value) for value in axis)
                raise ConfigError(f"the axis {key} of the sweep is a list, one value; write it as text: {key}: {listed}")
        swept = {override.key_or_group: override for override in overrides if override.is_sweep_override()}
        for key, several in (("sweep", "sweep files"), ("grid", "grids")):
            if key in swept:
                raise ConfigError(f"{swept[key].input_line}: the axes of several {several} would be lost; give one a command")
        if "seeds" in swept:  # the axis of the finals' seeds would be that of the protocol
            given = swept["seeds"].input_line
            raise ConfigError(
                f"{given}: the list of a sweep's seeds is one value; write seeds=[{str(given).partition('=')[2]}]"
            )
        for key in {"method", "dataset"} & swept.keys() if set(self.params or ()) - {"seed"} else ():
            self._check_axes(key, swept[key], [o.input_line for o in overrides if not o.is_sweep_override()])

    def _check_axes(self, key: str, swept: Override, fixed: Sequence[str | None]) -> None:
        """Axes are composed once, before methods and datasets are told apart: all of them must have the same ones."""
        assert self.hydra_context is not None
        assert self.config is not None
        choices: Iterator[str] = swept.sweep_string_iterator()
        for choice in choices:
            composed = self.hydra_context.config_loader.load_configuration(
                config_name=self.config.hydra.job.config_name,
                overrides=[*filter(None, fixed), f"{key}={choice}"],
                run_mode=RunMode.MULTIRUN,
            )
            if OmegaConf.to_container(composed.hydra.sweeper.params, resolve=True) != dict(self.params):
                raise ConfigError(f"{swept.input_line}: these {key}s have grids of their own; sweep one {key} a command")


class AdaptiveSweeper(GridSweeper):
    """Every run of a grid, and then what its choice lacks: see :func:`gift_vit.sweeps.adaptive.further`.

    Started again it goes on: what is added follows from the results alone.

    Args:
        max_batch_size: Of no meaning here, as in the grid.
        params: The axes.
        widen: The most values that an axis is widened by where the best lies on its edge.
        seeds: Runs of each setting that the val split cannot tell from the best.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, widen: int, seeds: int) -> None:
        super().__init__(max_batch_size, params)
        expect_whole("widen", widen, 0)
        expect_whole("seeds", seeds, 1)
        self.widen, self.seeds = widen, seeds

    def _check(self, overrides: Sequence[Override]) -> None:
        super()._check(overrides)
        assert self.config is not None
        if self.config.phase != "search":
            raise ConfigError("sweeper=adaptive needs phase=search: it looks at val, and final runs have none")

    def _with_added(self, sweep: Sweep, root: Path) -> Sweep:
        earlier = [job for before in read_sweeps(root) if before.command == sweep.command for job in before.jobs]
        return replace(sweep, jobs=_each_once([*sweep.jobs, *earlier]))

    def _run(self, plans: Sequence[Plan], sweep: Sweep, record: Path) -> list[int]:
        of_grid, plans, codes = len(plans), list(plans), super()._run(plans, sweep, record)
        asked = {plan.words for plan in plans}
        while more := further(_tried(plans, of_grid), asked, self.widen, self.seeds):
            asked.update(more)
            if starts := [plan for words in more if (plan := plan_start(words)).run is not None]:
                plans += starts
                write_sweep(record.parent.parent, replace(sweep, jobs=_each_once([*(plan.job for plan in plans), *sweep.jobs])))
                codes += self._launch(starts, len(codes), len(plans))
        return codes


def _each_once(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The first of those that have one folder; those that were refused have none, and their words tell them apart."""
    found: dict[str | tuple[str, ...], Job] = {}
    for job in jobs:
        found.setdefault(os.path.abspath(job.folder) if job.folder else job.overrides, job)
    return tuple(found.values())


def _tried(plans: Sequence[Plan], of_grid: int) -> list[Tried]:
    """The runs of jobs that have ended, the first ``of_grid`` of them the grid's; one that two jobs ask for once."""
    tried: dict[Path, Tried] = {}
    for index, plan in enumerate(plans):
        if plan.run is not None and plan.run.folder not in tried:
            config, result = identifying(plan.run.values), Run.open(plan.run.folder).result
            tried[plan.run.folder] = Tried(plan.words, config, result, index < of_grid)
    return list(tried.values())
