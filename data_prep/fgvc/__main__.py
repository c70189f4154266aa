"""``python -m data_prep.fgvc <cub|nabirds|flowers|dogs|cars|all>``: prepare FGVC datasets."""

from data_prep.commands import prepare_each, root_to_prepare
from data_prep.fgvc.facts import FACTS
from data_prep.fgvc.prepare import prepare
from data_prep.fgvc.workspace import Arguments, describe
from gift_vit.common import cli


def main() -> None:
    """Prepare the datasets that the command line names."""
    cli.interrupt_on_sigterm()
    cli.main(Arguments, prepare_named, positional="dataset")


def prepare_named(given: Arguments) -> None:
    """Prepare one dataset, or all."""
    root = root_to_prepare(given.root)
    names = list(FACTS) if given.dataset == "all" else [given.dataset]
    prepare_each(names, lambda name: print(describe(prepare(FACTS[name], given), root / name)), "datasets")


if __name__ == "__main__":
    main()
