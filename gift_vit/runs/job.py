"""What ``python -m gift_vit.train`` does around a run: from a job of Hydra's to :func:`train_run`, and errors in one line."""

import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gift_vit.common import cli, distributed
from gift_vit.common.errors import ConfigError
from gift_vit.config.compose import baseline_of, explain_composition_error, with_paths_quoted
from gift_vit.config.loader import check_present, load_config
from gift_vit.config.run_config import RunConfig
from gift_vit.engine.observer import Observer, StopTraining
from gift_vit.runs.run import Run

log = logging.getLogger(__name__)

# ``<module>:<function>`` that makes one more observer of a job's run; set for a job by a sweeper's plugin
OBSERVER_VARIABLE = "GIFT_VIT_OBSERVER"
_LAUNCHER_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}


def run_job(cfg: DictConfig, command: str) -> int:
    """Run one job of Hydra's; the exit code. Its error is reported at once and does not stop the other jobs of a sweep."""
    hydra_cfg = HydraConfig.get()

    def action() -> None:
        overrides = list(hydra_cfg.overrides.task)
        run = checked_config(cfg, hydra_cfg)
        _import_timm()  # from here on torch, which takes seconds: a person's mistakes were told before
        from gift_vit.runs.train import Call, train_run

        with suppress(StopTraining):  # the run's folder says so
            train_run(run, Call(command, overrides), _observers())

    code = cli.run_command(lambda: distributed.together(action))
    if hydra_cfg.mode != RunMode.MULTIRUN:
        sys.exit(code)  # Hydra keeps what a single job returns to itself
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt
    return code


def checked_config(cfg: DictConfig, hydra_cfg: HydraConf) -> RunConfig:
    """The run that a job is, with all that can be seen without torch checked; a final run without a recipe is warned of."""
    run = load_config(cfg, lambda: baseline_of(hydra_cfg))
    given = any(word.startswith("optim.lr=") for word in hydra_cfg.overrides.task)
    if run.phase == "final" and cfg.recipe is None and not given:
        log.warning(
            "no recipe for %s on %s: optim.lr=%g is the default; choose one with python -m experiments.select",
            *(run.method_name, run.dataset.name, run.optim.lr),
        )
    if Run.open(run.folder).state != "done":  # a finished run does not need its data
        check_present(run)
    return run


def run_hydra(job: Callable[[], object]) -> None:
    """Call a function that Hydra decorates; exit code 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets composition errors through, to be told in one line
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network what it is used for
    cli.interrupt_on_sigterm()
    cli.quiet_other_processes()
    sys.argv[1:] = with_paths_quoted(sys.argv[1:])
    try:
        job()
    except ConfigError as error:
        sys.exit(cli.report(error))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        explained = _missing_launcher(error) or explain_composition_error(error, sys.argv[1:])
        explained.__cause__ = error
        sys.exit(cli.report(explained))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(cli.report(error))


def _import_timm() -> None:
    """Import timm before anything else does: its summary module tries to import wandb too, which takes a second.

    Only ``timm.utils.update_summary`` misses it, which nothing here calls.
    """
    if not {"timm", "wandb"} & sys.modules.keys():
        sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType] (its import fails then, as timm is prepared for)
        try:
            import_module("timm")
        finally:
            del sys.modules["wandb"]


def _observers() -> list[Observer]:
    place = os.environ.get(OBSERVER_VARIABLE)
    if not place:
        return []
    module, _, function = place.partition(":")
    return [getattr(import_module(module), function)()]


def _missing_launcher(error: Exception) -> ConfigError | None:
    missing = re.search(r"Could not (?:find|load) 'hydra/launcher/(\w+)'", str(error))
    if missing is None or missing[1] not in _LAUNCHER_EXTRAS:
        return None
    extra = _LAUNCHER_EXTRAS[missing[1]]
    return ConfigError(f"hydra/launcher={missing[1]} is not installed; type: pip install 'gift-vit[{extra}]'")
