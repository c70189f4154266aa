"""Everything one run depends on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gift_vit.acceleration.config import ComputeConfig
from gift_vit.backbones.config import BackboneConfig
from gift_vit.data.config import DatasetConfig, LoadingConfig
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.tracking.config import TrackerConfig

Phase = Literal["search", "final"]
PHASES = get_args(Phase)
TRAIN_SPLITS = ("train", "trainval")


@dataclass
class ProtocolConfig:
    """The rules a run keeps, beside the values the protocol's YAML sets in ``optim`` and ``trainer``.

    Attributes:
        name: ``gift_paper`` or ``clean``; the YAML's own name.
        final_train: The split the final phase trains on, by benchmark: ``train`` or ``trainval``.
        search_epochs: Epochs after which the search phase stops, by benchmark; the schedule is cut, not rescaled. None: no cut.
        seeds: The seeds of the final phase.
        resize: The resize of the datasets' transform, by benchmark; None: the backbone weights' own.
    """

    name: str
    final_train: dict[str, str]
    search_epochs: dict[str, int | None]
    seeds: list[int]
    resize: dict[str, str | None]


@dataclass
class PathsConfig:
    """Where runs are written, data is read, decoded images are cached; relative paths start in the working directory."""

    output_root: str
    data_root: str
    cache_root: str


@dataclass
class RunConfig:
    """Everything one run depends on.

    The section ``trainer`` of the YAML is three of these: what the training loop, the loaders and the acceleration read.

    Attributes:
        method: The method's config, of the class of its kind.
        method_name: The method's label: the name of its YAML.
        folder: The run's folder.
        values: The resolved config as plain containers: what ``config.yaml`` holds.
        train_split: The split this run trains on.
        stop_epoch: Epochs after which training stops; None: the whole schedule.
    """

    dataset: DatasetConfig
    method: Any
    method_name: str
    backbone: BackboneConfig
    optim: OptimConfig
    trainer: TrainerConfig
    loading: LoadingConfig
    compute: ComputeConfig
    protocol: ProtocolConfig
    tracker: TrackerConfig
    paths: PathsConfig
    seed: int
    phase: Phase
    run_name: str
    folder: Path
    values: dict[str, Any]
    train_split: str
    stop_epoch: int | None
