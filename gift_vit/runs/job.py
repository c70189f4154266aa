"""What ``python -m gift_vit.train`` does around a run: from a job of Hydra's to :func:`train_run`, and errors in one line."""

import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TypeGuard

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.common import cli, distributed
from gift_vit.common.cores import wait_asleep
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import check_writable
from gift_vit.common.programs import as_typed
from gift_vit.config.compose import (
    baseline_of,
    check_recipe,
    compose_job,
    config_dir_of,
    explain_composition_error,
    hydra_set_up,
    task_words,
)
from gift_vit.config.loader import check_present, load_job
from gift_vit.config.run_config import RunConfig
from gift_vit.config.words import hydra_words, overrides_of
from gift_vit.engine.observer import Observer, StopTraining
from gift_vit.methods.config import Candidates
from gift_vit.runs.run import Run, write_failure

log = logging.getLogger(__name__)

# ``<module>:<function>`` that makes one more observer of a job's run; set for a job by a sweeper's plugin
OBSERVER_VARIABLE = "GIFT_VIT_OBSERVER"
# process id of the sweep that a job belongs to; what the sweep's own process has started ends with it
SWEEP_VARIABLE = "GIFT_VIT_SWEEP"
_one_at_a_time = Lock()  # of the threads of a process
_LAUNCHER_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}


def run_job(cfg: DictConfig, command: str) -> int:
    """Run one job of Hydra's; the exit code. Its error is reported at once and does not stop the other jobs of a sweep."""
    hydra_cfg = HydraConfig.get()
    swept = hydra_cfg.mode == RunMode.MULTIRUN
    parent = os.getppid()
    if os.environ.get(SWEEP_VARIABLE) == str(parent):  # started by the sweep's launcher on this machine
        cli.end_with_parent(parent)

    @cli.told_of_interruption()
    def action() -> None:
        run = told_config(cfg, hydra_cfg)
        with _kept(run) if swept else nullcontext():
            check_ready(run)
            _import_timm()  # from here on torch, which takes seconds: a person's mistakes were told before
            from gift_vit.runs.train import Call, train_run

            with suppress(StopTraining):  # the run's folder says so
                train_run(run, Call(command, task_words(hydra_cfg)), _observers())

    code = cli.run_command(lambda: distributed.together(action))
    if not swept:
        sys.exit(code)  # Hydra keeps what a single job returns to itself
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt("a job, which has told of it")
    return code


@contextmanager
def _kept(run: RunConfig) -> Iterator[None]:
    """Keep in the folder why a run of a sweep could not begin; of a single run nothing is left then."""
    try:
        yield
    except ConfigError as error:
        if distributed.is_main() and Run.open(run.folder).state in ("missing", "failed"):
            write_failure(run.folder, error)
        raise


def told_config(cfg: DictConfig, hydra_cfg: HydraConf) -> RunConfig:
    """The run that a job is told to be, checked; a final run without a recipe and a rate that rises are warned of."""
    check_recipe(task_words(hydra_cfg))
    if hydra_cfg.mode != RunMode.MULTIRUN and (axes := OmegaConf.select(hydra_cfg.sweeper, "params")):
        remedy = "add -m, or `mode: MULTIRUN` below `hydra` in the file that names it"
        raise ConfigError(f"{', '.join(axes)}: an axis of a sweep, and this is one run; {remedy}")
    run = load_job(cfg, hydra_cfg)
    given = any(word.startswith("optim.lr=") for word in task_words(hydra_cfg))
    given = given or run.optim.lr != baseline_of(hydra_cfg).optim.lr  # by an experiment, or a recipe written by hand
    if run.phase == "final" and run.recipe is None and not given and not isinstance(run.method, Candidates):
        log.warning(
            as_typed("no recipe for %s on %s: optim.lr=%g is the default; choose one with python -m experiments.select"),
            *(run.method_name, run.dataset.name, run.optim.lr),
        )
    if run.optim.lr < run.optim.min_lr:
        log.warning("optim.lr=%g lies below optim.min_lr=%g: the rate rises to that", run.optim.lr, run.optim.min_lr)
    return run


def check_ready(run: RunConfig) -> None:
    """Refuse data or weights that are not there, and a folder that cannot be written; a finished run needs none of them."""
    if Run.open(run.folder).state != "done":
        check_present(run)
        check_writable(run.folder)


def train_words(words: Sequence[str]) -> Path:
    """What the command does with the words of one run, for Python: nothing of it is left in this process; the run's folder.

    Raises:
        ConfigError: For a mistake in the words, or a configuration that does not fit data or model.
        RunError: If the training fails.
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{words!r}: expected a list of words, as ['dataset=digits', 'method=gift']")
    if not _one_at_a_time.acquire(blocking=False):
        raise ConfigError("a run is being trained in this process, whose logging and random state it has; use another process")
    try:
        return _train(words)
    finally:
        _one_at_a_time.release()


def _train(words: Sequence[str]) -> Path:
    config_dir, overrides = config_dir_of(words)
    with hydra_set_up(config_dir):
        cfg, hydra_cfg = compose_job(overrides_of(overrides))
        if hydra_cfg.mode == RunMode.MULTIRUN:
            raise ConfigError(f"{' '.join(words)} is a sweep of many runs; start it with python -m gift_vit.train")
        run = told_config(cfg, hydra_cfg)
    check_ready(run)
    _import_timm()
    from torch import cuda
    from torch.random import fork_rng

    from gift_vit.engine.state import product_precision_kept
    from gift_vit.runs.train import Call, train_run

    call = Call(shlex.join(["python", "-m", "gift_vit.train", *words]), list(words))
    with fork_rng(range(cuda.device_count())), product_precision_kept():
        distributed.together(lambda: train_run(run, call) and None)
    return run.folder


def run_hydra(job: Callable[[], object]) -> None:
    """Call a function that Hydra decorates; exit code 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted.

    Until a run or a sweep begins Ctrl-C ends the process at once: Hydra turns an exception into others while it composes.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets composition errors through, to be told in one line
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network what it is used for
    wait_asleep()
    cli.interrupt_on_sigterm()
    cli.quiet_other_processes()
    try:
        with cli.told_of_interruption():
            sys.argv[1:] = hydra_words(sys.argv[1:])
            job()
    except ConfigError as error:
        sys.exit(cli.report(error))
    except (Exception, KeyboardInterrupt) as error:
        if not _is_about_words(error):
            sys.exit(cli.report(error))
        explained = _missing_launcher(error) or explain_composition_error(error, sys.argv[1:])
        explained.__cause__ = error
        sys.exit(cli.report(explained))


def _is_about_words(error: BaseException) -> TypeGuard[Exception]:
    """Whether the words or the YAML are behind an error: a run tells its own, so Hydra or what it reads with has raised it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    reader = frame.f_globals.get("__name__", "").partition(".")[0] in {"hydra", "omegaconf", "yaml"}
    if isinstance(error, BrokenPipeError):  # of printing
        return False
    return isinstance(error, Exception) and (reader or isinstance(error, HydraException | OmegaConfBaseException | ValueError))


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
    typed = next((word for word in sys.argv if word.startswith("hydra/launcher=")), f"hydra/launcher={missing[1]}")
    return ConfigError(f"{typed} is not installed; type: pip install 'gift-vit[{extra}]'")
