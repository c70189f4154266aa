"""Datasets: one file per kind, found by import; add a file and a YAML, change nothing here."""

import pkgutil
from importlib import import_module

from gift_vit.data.base import DatasetConfig, ImageSource, TransformConfig, VisionDataset, build_dataset
from gift_vit.data.cache import CacheSettings, PixelSource, PreparedImages, open_pixels
from gift_vit.data.digits import DigitsConfig
from gift_vit.data.folder import FolderConfig
from gift_vit.data.loaders import EvalLoader, TrainLoader
from gift_vit.data.parquet import ParquetConfig
from gift_vit.data.registry import DATASETS, DatasetSpec, get_dataset, register_dataset
from gift_vit.data.split_lists import SplitListsConfig
from gift_vit.data.transforms import ImageTransform, InputStatistics, build_eval_transform, build_train_transform
from gift_vit.data.vtab1k import Vtab1kConfig

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DATASETS",
    "CacheSettings",
    "DatasetConfig",
    "DatasetSpec",
    "DigitsConfig",
    "EvalLoader",
    "FolderConfig",
    "ImageSource",
    "ImageTransform",
    "InputStatistics",
    "ParquetConfig",
    "PixelSource",
    "PreparedImages",
    "SplitListsConfig",
    "TrainLoader",
    "TransformConfig",
    "VisionDataset",
    "Vtab1kConfig",
    "build_dataset",
    "build_eval_transform",
    "build_train_transform",
    "get_dataset",
    "open_pixels",
    "register_dataset",
]
