"""What an image is called in its split, on every machine: the id that predictions are kept under."""

from typing import Any

from gift_vit.data.base import SubsetSource, VisionDataset


def image_ids(data: VisionDataset, split: str) -> list[str]:
    """The ids of a split's images in its order.

    An id is what the split itself uses: the path relative to the dataset's root, a VTAB-1k example's id, the path that a
    Parquet file records; where there is none, or they repeat, the position in what is read.

    Raises:
        ConfigError: If the split is absent.
    """
    return [name for part in data.parts(split) for name in _ids(part)]


def _ids(source: Any) -> list[str]:
    if isinstance(source, SubsetSource):
        ids = _ids(source.source)
        return [ids[index] for index in source.indices.tolist()]
    named = getattr(source, "ids", getattr(source, "paths", None))
    if named is None:
        return [str(index) for index in range(len(source))]
    names = named.to_pylist() if hasattr(named, "to_pylist") else named
    given = [name for name in names if name is not None]
    repeat = len(set(given)) < len(given)
    return [str(index) if repeat or name is None else str(name) for index, name in enumerate(names)]
