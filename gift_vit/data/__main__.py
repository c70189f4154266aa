"""Say what a folder, a CSV or a Parquet file of one's own holds: see :class:`Arguments`."""

import shlex
from dataclasses import dataclass, field

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.cores import cores
from gift_vit.common.files import expanded
from gift_vit.config import compose_config, load_config
from gift_vit.config.words import overrides_of
from gift_vit.data.base import build_dataset
from gift_vit.data.layout import kind_of
from gift_vit.data.report import check_decodable, describe


@dataclass
class Arguments:
    """Say what a run would read of your own images: splits, classes, what is left out, what stands in two splits.

        python -m gift_vit.data root=<folder, CSV or Parquet>

    Attributes:
        root: a folder of class folders (train/<class>/*.jpg, or <class>/*.jpg), of Parquet or CSV files, or one such file
        dataset: dataset.<key>=<value>, any option of the data as training takes it, such as dataset.columns.label=art
        check_duplicates: look for pictures that stand in more than one split; reads the files of equal size
        decode: decode every picture, on all cores, to find damaged ones; false looks at their headers alone

    Prints what every run says at its start, and the command that trains; writes nothing.
    """

    root: str = MISSING
    dataset: list[str] = field(default_factory=list)
    check_duplicates: bool = True
    decode: bool = True


def report(arguments: Arguments) -> None:
    """Read the data, and print the report.

    Raises:
        ConfigError: If it or a picture cannot be read, or an option is wrong.
    """
    kind = kind_of(expanded(arguments.root))
    words = [f"dataset={kind}", f"dataset.root={arguments.root}", *arguments.dataset]
    cfg = load_config(compose_config(overrides_of(words))).dataset
    data = build_dataset(cfg)
    described = describe(data, arguments.check_duplicates and cfg.check_duplicates)
    print("\n".join(described.lines()))
    for warning in described.warnings:
        print(f"warning: {warning}")
    if arguments.decode:
        for source in data.splits.values():
            check_decodable(source, cores())
    print(f"to train on it: python -m gift_vit.train {' '.join(map(shlex.quote, words))}")


def main() -> None:
    """Entry point."""
    cli.main(Arguments, report, positional="root", section="dataset")


if __name__ == "__main__":
    main()
