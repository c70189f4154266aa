"""Train one run, or a sweep of runs: ``python -m gift_vit.train dataset=cub method=gift``."""

import logging
import os
import re
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gift_vit import cli, distributed
from gift_vit.compose import baseline_of, explain_composition_error
from gift_vit.errors import ConfigError
from gift_vit.paths import conf_dir
from gift_vit.pruning import PrunedRun

if TYPE_CHECKING:
    from gift_vit.config import RunConfig
    from gift_vit.record import Call

log = logging.getLogger(__name__)

# said here, since a launcher's processes have other arguments: they get this value with the job
COMMAND = shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]])
LAUNCHER_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def job(cfg: DictConfig) -> int:
    """Run one job; the exit code. Its error is reported at once and does not stop the other jobs of a sweep."""
    hydra_cfg = HydraConfig.get()

    def action() -> None:
        from gift_vit.run import execute  # imported late: torch takes seconds, and composition errors need none of it

        run, call = load_job(cfg, hydra_cfg)
        with suppress(PrunedRun):  # the run's folder says so
            execute(run, call)

    code = distributed.run_command(action)
    if hydra_cfg.mode != RunMode.MULTIRUN:
        sys.exit(code)  # Hydra keeps what a single job returns to itself
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt
    return code


def load_job(cfg: DictConfig, hydra_cfg: HydraConf) -> "tuple[RunConfig, Call]":
    """The run that a job is, and how it was started; a final run without a recipe is warned of."""
    from gift_vit.config import load_config
    from gift_vit.record import Call

    call = Call(COMMAND, list(hydra_cfg.overrides.task))
    run = load_config(cfg, baseline_of(hydra_cfg))
    if run.phase == "final" and cfg.recipe is None and not any(word.startswith("optim.lr=") for word in call.overrides):
        log.warning(
            "no recipe for %s on %s: optim.lr=%g is the default; choose one with python -m experiments.select",
            *(run.method_name, run.dataset.name, run.optim.lr),
        )
    return run, call


def main() -> None:
    """Entry point: exit code 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets composition errors through, to be told in one line
    cli.interrupt_on_sigterm()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network what it is used for
    distributed.quiet_others()
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


def _missing_launcher(error: Exception) -> ConfigError | None:
    missing = re.search(r"Could not (?:find|load) 'hydra/launcher/(\w+)'", str(error))
    if missing is None or missing[1] not in LAUNCHER_EXTRAS:
        return None
    extra = LAUNCHER_EXTRAS[missing[1]]
    return ConfigError(f"hydra/launcher={missing[1]} is not installed; type: pip install 'gift-vit[{extra}]'")


if __name__ == "__main__":
    main()
