"""Datasets: one file per kind, found by import; add a file and a YAML, change nothing here."""

import pkgutil
from importlib import import_module

from gift_vit.data.base import DatasetConfig, ImageSource, TransformConfig, VisionDataset, build_dataset
from gift_vit.data.digits import DigitsConfig
from gift_vit.data.folder import FolderConfig
from gift_vit.data.loaders import EvalLoader, TrainLoader, build_eval_loader
from gift_vit.data.parquet import ParquetConfig
from gift_vit.data.registry import DATASETS, DatasetSpec, get_dataset, register_dataset
from gift_vit.data.split_lists import SplitListsConfig
from gift_vit.data.transforms import InputStatistics, build_eval_transform, build_train_transform

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DATASETS",
    "DatasetConfig",
    "DatasetSpec",
    "DigitsConfig",
    "EvalLoader",
    "FolderConfig",
    "ImageSource",
    "InputStatistics",
    "ParquetConfig",
    "SplitListsConfig",
    "TrainLoader",
    "TransformConfig",
    "VisionDataset",
    "build_dataset",
    "build_eval_loader",
    "build_eval_transform",
    "build_train_transform",
    "get_dataset",
    "register_dataset",
]
