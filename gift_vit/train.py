"""Train one run, or a sweep of runs: ``python -m gift_vit.train dataset=cub method=gift``."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
import shlex
import sys

import hydra
from omegaconf import DictConfig

from gift_vit.config.compose import conf_dir
from gift_vit.runs.job import run_hydra, run_job

# said here, since a launcher's processes have other arguments: they get this value with the job
COMMAND = shlex.join(["python", "-m", "gift_vit.train", *sys.argv[1:]])


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def job(cfg: DictConfig) -> int:
    """Run one job; its exit code."""
    return run_job(cfg, COMMAND)


def main() -> None:
    """Entry point."""
    run_hydra(job)


if __name__ == "__main__":
    main()
