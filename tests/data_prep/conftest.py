"""Tiny TFDS datasets, each written when the first test asks for it."""

from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.data_prep.tiny_tfds import Tiny, TinyDataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> "TinyDataset":
    """Takes a builder's name; its ArrayRecord dataset of random examples, just large enough for the builder's tasks."""
    pytest.importorskip("tensorflow_datasets")
    from tests.data_prep.tiny_tfds import SIZES, Tiny, prepare_random

    data_dir = tmp_path_factory.mktemp("tfds")

    @cache
    def build(name: str) -> "Tiny":
        return Tiny(data_dir, prepare_random(name, SIZES[name], data_dir))

    return build
