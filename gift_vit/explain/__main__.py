"""Show what the clusters of a finished run's adapter respond to: see :class:`gift_vit.explain.config.ShowArguments`."""

import gift_vit.common.starting  # noqa: F401 - first: from here on Ctrl-C is one line
from gift_vit.common import cli
from gift_vit.data.files import image_files
from gift_vit.explain.config import ShowArguments
from gift_vit.explain.setup import open_run


def show(arguments: ShowArguments) -> None:
    """Compute the maps of the chosen images, and write them."""
    run = open_run(arguments.run, arguments.dataset_root, arguments.split, needs_data=arguments.images is None)
    files = None if arguments.images is None else image_files(arguments.images)
    from gift_vit.explain.drawing.output import show_run  # torch comes when no mistake can be found without it

    show_run(run, arguments, files)


def main() -> None:
    """Entry point."""
    cli.main(ShowArguments, show)


if __name__ == "__main__":
    main()
