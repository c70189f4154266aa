"""Looking whether a dataset is what it should be, through the very reader that training uses."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from data_prep.fgvc.workspace import Workspace
from data_prep.progress import transfer
from gift_vit.common.cores import cores
from gift_vit.common.errors import ConfigError
from gift_vit.config import load_config
from gift_vit.config.compose import compose_config
from gift_vit.data.base import FileSource, VisionDataset, build_dataset
from gift_vit.data.config import SplitListsConfig
from gift_vit.data.report import problem_of

logger = logging.getLogger(__name__)

_NAMED = 10


@dataclass(frozen=True)
class Found:
    """What the lists of one kind name, all of it there.

    Attributes:
        dataset: As training reads it.
        counts: Images per split.
        sizes: Bytes of each image, by path relative to the image root, in the order train, val, test.
    """

    dataset: VisionDataset
    counts: dict[str, int]
    sizes: dict[str, int]


def check_lists(work: Workspace, kind: str) -> Found:
    """Check that the lists have the known numbers of classes and images, are disjoint, and name images that are there.

    Raises:
        ConfigError: If not; with the count, the first path, and what to do.
    """
    dataset = build_dataset(_reader_config(work, kind))
    sizes = _sizes(work, dataset)
    counts = {split: len(source) for split, source in dataset.splits.items()}
    expected = work.facts.paper if kind == "paper" else work.facts.official
    known = counts if "val" in expected else {"train": counts["train"] + counts["val"], "test": counts["test"]}
    problem = None
    if dataset.num_classes != work.facts.classes:
        problem = f"name {dataset.num_classes} classes; expected {work.facts.classes}"
    elif len(sizes) != sum(counts.values()):
        problem = f"share {sum(counts.values()) - len(sizes)} images among their splits"
    elif known != expected:
        problem = f"name {said(known)} images; expected {said(expected)}"
    if problem is not None:
        raise ConfigError(f"the lists in {work.splits_dir(kind)} {problem}; {work.without_lists(kind)}")
    return Found(dataset, counts, sizes)


def said(counts: Mapping[str, int]) -> str:
    """``train 5,394, val 600, test 5,794``."""
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def check_images(work: Workspace, found: Found) -> None:
    """Decode every image once, on all cores.

    Raises:
        ConfigError: If some cannot be decoded; names the first, and the first ten are logged.
    """
    sizes = list(found.sizes.values())
    items = [(source, index) for source in found.dataset.splits.values() for index in range(len(source))]
    logger.info("decoding %d images of %s", len(items), work.facts.title)
    problems: list[str] = []
    done = 0
    pool = ThreadPoolExecutor(cores())  # threads: Pillow lets go of the interpreter while it decodes
    try:
        with transfer(f"decoding {work.facts.title}", sum(sizes)) as show:
            for size, problem in zip(sizes, pool.map(lambda item: problem_of(*item), items), strict=True):
                done += size
                show(done)
                if problem is not None:
                    problems.append(problem)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the images that are still queued
    if problems:
        for problem in problems[:_NAMED]:
            logger.info("%s", problem)
        more = f" (and {len(problems) - 1} more of {len(items)} images)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}; or {work.start_afresh}")


def _reader_config(work: Workspace, kind: str) -> SplitListsConfig:
    """The dataset's own YAML, pointed at this folder and these lists, and with any number of classes."""
    cfg = load_config(compose_config([f"dataset={work.facts.name}"])).dataset
    assert isinstance(cfg, SplitListsConfig)
    prepare = f"the unpacked images are incomplete; {work.start_afresh}"
    return replace(cfg, root=str(work.folder), splits_dir=f"splits/{kind}", num_classes=None, prepare=prepare)


def _sizes(work: Workspace, dataset: VisionDataset) -> dict[str, int]:
    """Bytes of each listed image, as the reader found them; all are there."""
    sizes: dict[str, int] = {}
    for source in dataset.splits.values():
        assert isinstance(source, FileSource)
        sizes.update(zip(source.paths, source.sizes.tolist(), strict=True))
    empty = [path for path, size in sizes.items() if size == 0]
    if empty:
        count = f"{len(empty)} of {len(sizes)} listed images are empty"
        raise ConfigError(f"image {work.image_root / empty[0]} is empty ({count}); {work.start_afresh}")
    return sizes
