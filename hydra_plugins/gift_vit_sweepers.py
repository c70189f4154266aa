"""Hydra's grid sweeper with this project's checks; Hydra finds sweepers in packages of this name only."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from gift_vit.errors import ConfigError, SweepError

if TYPE_CHECKING:
    from gift_vit.sweeps import Job


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
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        self._check(overrides)
        self._record(parser.parse_overrides([*self._parse_config(), *arguments]))
        returns = super().sweep(arguments)
        codes = [job.return_value for batch in returns for job in batch]
        failed = [code for code in codes if code]
        if failed:
            raise SweepError(f"{len(failed)} of {len(codes)} runs failed; the same command starts only those again", failed[0])
        return returns

    def _record(self, overrides: list[Override]) -> None:
        """Write down which runs are about to be made, for ``experiments.status`` and ``experiments.select``."""
        from gift_vit.sweeps import Sweep, write_sweep  # here, since Hydra imports this module at every start

        assert self.config is not None
        jobs = self.split_arguments(overrides, max_batch_size=None)[0]
        command = shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]])
        root = Path(self.config.paths.output_root).expanduser().absolute()
        write_sweep(root, Sweep(command, datetime.now(timezone.utc).isoformat(timespec="seconds"), tuple(map(_job, jobs))))

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


def _job(overrides: list[str]) -> "Job":
    from gift_vit.compose import baseline_of
    from gift_vit.config import load_config
    from gift_vit.sweeps import Job

    own = [word for word in overrides if not word.startswith(("sweep=", "hydra"))]
    cfg = compose("train", overrides=overrides, return_hydra_config=True)
    baseline = baseline_of(cfg.hydra)
    del cfg.hydra
    try:
        return Job(tuple(own), str(load_config(cfg, baseline).folder))
    except ConfigError as error:
        return Job(tuple(own), None, str(error))
