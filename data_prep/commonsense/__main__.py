"""``python -m data_prep.commonsense``: prepare Commonsense170k."""

from dataclasses import dataclass
from typing import Annotated

from data_prep.commands import DEFAULT_ROOT, existing_folder, root_to_prepare
from data_prep.commonsense.facts import SOURCE
from gift_vit.common import cli
from gift_vit.common.checks import Options, matches
from gift_vit.common.files import expanded

_address = matches("https?://.*", "an address that begins with https://; a folder is given by folder=")


@dataclass
class Arguments(Options):
    """Prepare Commonsense170k: 170,420 training questions, and eight test sets of 22,419.

        python -m data_prep.commonsense [root=…] [folder=…]

    Attributes:
        root: where data is kept: it is written to <root>/commonsense (default: the environment variable GIFT_VIT_DATA, else
            data)
        folder: holds the files already, or some of them: commonsense_170k.json and <set>/test.json, or a checkout of
            LLM-Adapters; without it they are downloaded
        source: the address of a checkout to download them from (default: github.com/AGI-Edgerunners/LLM-Adapters, one commit)

    Questions are counted, and every answer must be among its question's options. What is ready is not done again.
    """

    root: str = DEFAULT_ROOT
    folder: Annotated[str | None, existing_folder] = None
    source: Annotated[str, _address] = SOURCE


def main() -> None:
    """The command."""
    cli.interrupt_on_sigterm()
    cli.main(Arguments, prepare_given)


def prepare_given(given: Arguments) -> None:
    """Check what was typed, prepare, and say what there is."""
    root, folder = root_to_prepare(given.root), expanded(given.folder) if given.folder else None
    from data_prep.commonsense.prepare import prepare  # NumPy and pyarrow

    print(prepare(root, given.source, folder))


if __name__ == "__main__":
    main()
