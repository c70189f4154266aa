"""``python -m data_prep.fgvc <cub|nabirds|flowers|dogs|cars|all>``: prepare FGVC datasets."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from data_prep.commands import DEFAULT_ROOT, data_root, prepare_each
from data_prep.fgvc.facts import FACTS
from data_prep.fgvc.prepare import prepare
from data_prep.fgvc.workspace import Request, describe
from gift_vit.common import cli
from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.common.files import check_writable


@dataclass
class Arguments:
    """Prepare FGVC datasets.

        python -m data_prep.fgvc <cub|nabirds|flowers|dogs|cars|all> [key=value …]

    Downloads what can be downloaded, verifies and unpacks it, writes the split lists and the bounding boxes, and checks every
    image. What is ready is not done again. NABirds and Cars must be fetched by hand; the command says how.

    Attributes:
        dataset: cub, nabirds, flowers, dogs, cars or all
        root: data root (default: the environment variable GIFT_VIT_DATA, else data)
        archives: folder that archives are downloaded to or were put in by hand (default: <root>/downloads)
        splits: paper or official: train and test as the archives list them, val a part of train
        splits_from: folder with copies of the paper's lists, like data/ of the repository github.com/savadikarc/gift
        val_fraction: official: the part of train that becomes val (default: 0.1; Flowers has a val of its own)
        split_seed: official: draws that part
        check_images: decode every image once
        annotations: also boxes.parquet, parts.parquet and segmentations
    """

    dataset: str = MISSING
    root: str = DEFAULT_ROOT
    archives: str | None = None
    splits: str = "paper"
    splits_from: str | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    check_images: bool = True
    annotations: bool = True


def main() -> None:
    """Prepare the datasets that the command line names."""
    cli.main(Arguments, prepare_named, positional="dataset")


def prepare_named(given: Arguments) -> None:
    """Prepare one dataset, or all."""
    known = [*FACTS, "all"]
    if given.dataset not in known:
        raise ConfigError(f"unknown dataset {given.dataset!r}{did_you_mean(given.dataset, known)} (known: {', '.join(known)})")
    request = Request(
        root=data_root(given.root),
        archives=Path(given.archives) if given.archives else None,
        splits=given.splits,
        splits_from=Path(given.splits_from) if given.splits_from else None,
        val_fraction=given.val_fraction,
        split_seed=given.split_seed,
        check_images=given.check_images,
        annotations=given.annotations,
    )
    for folder in filter(None, (request.root, request.archives)):
        check_writable(folder)
    names = list(FACTS) if given.dataset == "all" else [given.dataset]
    prepare_each(names, lambda name: print(describe(prepare(FACTS[name], request), request.root / name)), "datasets")


if __name__ == "__main__":
    main()
