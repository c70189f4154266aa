"""Measure whether a run's maps show what its model uses: see :class:`gift_vit.explain.config.FaithfulnessArguments`."""

import gift_vit.common.starting  # noqa: F401 - first: from here on Ctrl-C is one line
from gift_vit.common import cli
from gift_vit.explain.config import FaithfulnessArguments
from gift_vit.explain.setup import open_run


def measure(arguments: FaithfulnessArguments) -> None:
    """Choose a candidate on val, write and print its curves on test."""
    run = open_run(arguments.run, arguments.dataset_root)
    from gift_vit.explain.scoring.faithfulness import measure_run  # torch comes when no mistake can be found without it

    measure_run(run, arguments)


def main() -> None:
    """Entry point."""
    cli.main(FaithfulnessArguments, measure)


if __name__ == "__main__":
    main()
