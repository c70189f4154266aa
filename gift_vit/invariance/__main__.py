"""Measure what fine-tuning kept and forgot: see :class:`gift_vit.invariance.config.InvarianceArguments`."""

import gift_vit.common.starting  # noqa: F401 - first: from here on Ctrl-C is one line
from gift_vit.common import cli
from gift_vit.common.errors import ConfigError
from gift_vit.invariance.config import InvarianceArguments
from gift_vit.invariance.known import known_dataset
from gift_vit.runs.run import RESULT, Run


def measure(arguments: InvarianceArguments) -> None:
    """Measure every run, write its files, and print a line for it."""
    runs = [open_run(folder, arguments) for folder in arguments.folders]
    from gift_vit.invariance.measuring import measure_runs  # torch comes when no mistake can be found without it

    for line in measure_runs(runs, arguments):
        print(line, flush=True)


def open_run(folder: str, arguments: InvarianceArguments) -> Run:
    """A finished run, whose pretrained model is known and whose split may be looked at.

    Raises:
        ConfigError: If it is none.
    """
    run = Run.open(folder, arguments.dataset_root)
    run.check_finished()
    if run.result is None:
        raise ConfigError(
            f"{run.folder} is an imported adapter: it has no {RESULT} that says which weights it was trained on; "
            "give a run that was trained here"
        )
    run.split(arguments.split)
    run.check_present()
    if arguments.forgetting is not None:
        known_dataset(run, arguments)
    return run


def main() -> None:
    """Entry point."""
    cli.main(InvarianceArguments, measure)


if __name__ == "__main__":
    main()
