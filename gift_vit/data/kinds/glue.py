"""The tasks of GLUE (Wang et al., arXiv 1804.07461), from the Parquet files that ``python -m data_prep.glue`` writes.

Test has no labels: the benchmark's server has them. So dev is the test split, and val is drawn from train; or, by the rules of
those who choose the best epoch on dev, dev is val.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.data.base import ImageSource, Origin, SubsetSource, VisionDataset, fingerprint, register_dataset
from gift_vit.data.config import GlueConfig
from gift_vit.data.splitting import stratified_split
from gift_vit.data.texts import TextSource

VAL_PART, VAL_LEAST, VAL_MOST = 0.1, 100, 2000
HIGHEST = 5.0  # of the numbers of STS-B, which are scores from 0


@register_dataset("glue", GlueConfig)
def build_glue(cfg: GlueConfig) -> VisionDataset:
    """Read a task.

    Raises:
        ConfigError: If a file lacks a column, or a label is none of the task's.
    """
    root, files = expanded(cfg.root), {"train": "train.parquet", cfg.dev: "dev.parquet"}
    splits: dict[str, ImageSource] = {split: _source(root / file, cfg) for split, file in files.items()}
    origins = {split: Origin((file,)) for split, file in files.items()}
    if cfg.train_size is not None and cfg.train_size < len(splits["train"]):
        whole = len(splits["train"])
        _, splits["train"] = _divided(splits["train"], cfg.train_size, cfg)
        origins["train"] = Origin(origins["train"].files, drawn=f"{cfg.train_size:,} of {whole:,}, seed {cfg.split_seed}")
    if cfg.dev == "test":
        train, test = splits["train"], splits.pop("test")
        size = min(max(int(VAL_PART * len(train)), VAL_LEAST), VAL_MOST)
        splits["train"], splits["val"] = _divided(train, size, cfg)
        splits["test"] = test
        how = "drawn" if cfg.is_regression else "stratified"
        said = f"split off train: {size:,} of {len(train):,}, {how}, seed {cfg.split_seed}"
        origins["val"] = Origin(origins["train"].files, drawn=said)
    hidden = root / "test.parquet"
    return VisionDataset(
        cfg.name,
        cfg.num_classes or len(cfg.classes) or 1,
        cfg.classes or None,
        splits,
        fingerprint(splits),
        decoder="none",
        class_order="GLUE's own numbers",
        thing=cfg.thing,
        origins=origins,
        unlabelled=_source(hidden, cfg, labelled=False) if hidden.is_file() else None,
    )


def _source(file: Path, cfg: GlueConfig, labelled: bool = True) -> Any:  # it stands where images do
    names = [name for name in (cfg.columns.text, cfg.columns.pair, cfg.columns.label) if name]
    try:
        table = pq.read_table(file, columns=names)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).partition(" in schema")[0]
        raise ConfigError(f"cannot read {', '.join(names)} of {file}: {reason}{cfg.how_to_prepare()}") from error
    *texts, stated = (table[name].to_pylist() for name in names)
    places = [f"{file} row {number}" for number in range(1, len(table) + 1)]
    rows = list(zip(*texts, strict=True))
    labels = np.asarray(stated, np.float32 if cfg.is_regression else np.int64)
    if not labelled:
        return TextSource(rows, np.zeros(len(rows), np.int64), places)
    highest = HIGHEST if cfg.is_regression else len(cfg.classes) - 1
    wrong = np.flatnonzero(~((labels >= 0) & (labels <= highest)))
    if len(wrong):
        index = int(wrong[0])
        expected = f"0 to {highest:g}" if cfg.is_regression else ", ".join(f"{n} ({c})" for n, c in enumerate(cfg.classes))
        raise ConfigError(
            f"{places[index]}: label {labels[index]:g} is none of {cfg.name}, expected {expected}; "
            f"delete {file.parent} and prepare it again{cfg.how_to_prepare()}"
        )
    return TextSource(rows, labels, places)


def _divided(source: ImageSource, size: int, cfg: GlueConfig) -> tuple[SubsetSource, SubsetSource]:
    """The rest, and ``size`` texts; of each class in proportion."""
    strata = np.zeros(len(source), np.int64) if cfg.is_regression else source.labels
    try:
        rest, drawn = stratified_split(strata, size, cfg.split_seed)
    except ValueError as error:
        raise ConfigError(f"dataset {cfg.name}: cannot draw {size} of {len(source)} texts of train: {error}") from error
    return SubsetSource(source, rest), SubsetSource(source, drawn)
