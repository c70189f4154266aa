"""Score a finished run's cluster maps against annotations: see :class:`gift_vit.explain.config.ScoreArguments`."""

import gift_vit.common.starting  # noqa: F401 - first: from here on Ctrl-C is one line
from gift_vit.common import cli
from gift_vit.explain.config import ScoreArguments
from gift_vit.explain.setup import open_run


def score(arguments: ScoreArguments) -> None:
    """Score both splits, write and print the report."""
    run = open_run(arguments.run, arguments.dataset_root)
    from gift_vit.explain.scoring.agreement import score_run  # torch comes when no mistake can be found without it

    score_run(run, arguments)


def main() -> None:
    """Entry point."""
    cli.main(ScoreArguments, score)


if __name__ == "__main__":
    main()
