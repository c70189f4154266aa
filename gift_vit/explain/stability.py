"""Measure how alike the cluster maps of several trainings are: see :class:`gift_vit.explain.config.StabilityArguments`."""

import gift_vit.common.starting  # noqa: F401 - first: from here on Ctrl-C is one line
from gift_vit.common import cli
from gift_vit.explain.config import StabilityArguments
from gift_vit.explain.setup import check_comparable, open_run


def compare(arguments: StabilityArguments) -> None:
    """Compare the runs' maps, print the table and write the files."""
    runs = [open_run(folder, arguments.dataset_root) for folder in arguments.runs]
    check_comparable(runs)
    from gift_vit.explain.scoring.stability import compare_runs  # torch comes when no mistake can be found without it

    compare_runs(runs, arguments)


def main() -> None:
    """Entry point."""
    cli.main(StabilityArguments, compare)


if __name__ == "__main__":
    main()
