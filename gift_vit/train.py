"""Train one run, or a sweep of runs: ``python -m gift_vit.train dataset=cub method=gift``."""

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
from gift_vit.paths import conf_dir

_exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def job(cfg: DictConfig) -> None:
    """Run one job. Its error is reported at once and does not stop the other jobs of a sweep."""
    hydra_cfg = HydraConfig.get()

    def action() -> None:
        from gift_vit.compose import baseline_of
        from gift_vit.config import load_config  # imported late: torch takes seconds, and composition errors need none of it
        from gift_vit.record import Call
        from gift_vit.run import execute

        call = Call(shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]]), list(hydra_cfg.overrides.task))
        execute(load_config(cfg, baseline_of(hydra_cfg)), call)

    code = cli.run_command(action)
    if code == cli.INTERRUPTED and hydra_cfg.mode == RunMode.MULTIRUN:
        raise KeyboardInterrupt
    _exit_codes.append(code)


def main() -> None:
    """Entry point: exit code 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets composition errors through, to be told in one line
    cli.interrupt_on_sigterm()
    try:
        job()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        from gift_vit.compose import explain_composition_error

        explained = explain_composition_error(error, sys.argv[1:])
        explained.__cause__ = error
        sys.exit(cli.report(explained))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(cli.report(error))
    failed = [code for code in _exit_codes if code != cli.SUCCESS]
    if failed and len(_exit_codes) > 1:
        print(f"{len(failed)} of {len(_exit_codes)} runs failed; the same command starts only those again", file=sys.stderr)
    sys.exit(failed[0] if failed else cli.SUCCESS)


if __name__ == "__main__":
    main()
