"""Train one run, or a sweep of runs: ``python -m gift_vit.train dataset=cub method=gift``."""

import logging
import os
import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gift_vit import cli
from gift_vit.compose import baseline_of, explain_composition_error
from gift_vit.errors import ConfigError
from gift_vit.paths import conf_dir

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def job(cfg: DictConfig) -> int:
    """Run one job; the exit code. Its error is reported at once and does not stop the other jobs of a sweep."""
    hydra_cfg = HydraConfig.get()

    def action() -> None:
        from gift_vit.config import load_config  # imported late: torch takes seconds, and composition errors need none of it
        from gift_vit.record import Call
        from gift_vit.run import execute

        call = Call(shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]]), list(hydra_cfg.overrides.task))
        run = load_config(cfg, baseline_of(hydra_cfg))
        if run.phase == "final" and cfg.recipe is None and not any(word.startswith("optim.lr=") for word in call.overrides):
            log.warning(
                "no recipe for %s on %s: optim.lr=%g is the default; choose one with python -m experiments.select",
                *(run.method_name, run.dataset.name, run.optim.lr),
            )
        execute(run, call)

    code = cli.run_command(action)
    if hydra_cfg.mode != RunMode.MULTIRUN:
        sys.exit(code)  # Hydra keeps what a single job returns to itself
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt
    return code


def main() -> None:
    """Entry point: exit code 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets composition errors through, to be told in one line
    cli.interrupt_on_sigterm()
    try:
        job()
    except ConfigError as error:
        sys.exit(cli.report(error))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        explained = explain_composition_error(error, sys.argv[1:])
        explained.__cause__ = error
        sys.exit(cli.report(explained))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(cli.report(error))


if __name__ == "__main__":
    main()
