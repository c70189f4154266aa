"""Everything one run depends on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from gift_vit.acceleration.config import ComputeConfig
from gift_vit.backbones.config import BackboneConfig
from gift_vit.common.checks import Check, Options, at_least, folder_name, fulfils, one_of
from gift_vit.data.config import RESIZES, DatasetConfig, LoadingConfig
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.tracking.config import TrackerConfig

Phase = Literal["search", "final"]
PHASES = get_args(Phase)
TRAIN_SPLITS = ("train", "trainval")
SCORED_ON = ("test", "val")
KEPT_EPOCHS = ("last", "best")


def _each(check: Check) -> Check:
    """A check of every value of a mapping, None aside."""

    def check_all(key: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is not None:
                check(f"{key}.{name}", value)

    return check_all


_seeds = fulfils(lambda seeds: seeds and min(seeds) >= 0, "at least one whole number of 0 or more")


@dataclass
class ProtocolConfig(Options, section="protocol"):
    """The rules a run keeps, beside the values the protocol's YAML sets in ``optim`` and ``trainer``.

    Attributes:
        name: ``gift_paper`` or ``clean``; the YAML's own name.
        final_train: The split the final phase trains on, by benchmark: ``train`` or ``trainval``.
        search_epochs: Epochs after which the search phase stops, by benchmark; the schedule is cut, not rescaled. None: no cut.
        seeds: The seeds of the final phase.
        resize: The resize of the datasets' transform, by benchmark; None: the backbone weights' own.
        scored_on: The split whose score counts in the final phase: ``test``, scored once; ``val``: there is no test number.
        kept_epoch: Whose weights a run ends with: those of the ``last`` epoch, or of the ``best`` on val.
    """

    name: Annotated[str, folder_name]
    final_train: Annotated[dict[str, str], _each(one_of(TRAIN_SPLITS))]
    search_epochs: Annotated[dict[str, int | None], _each(at_least(1))]
    seeds: Annotated[list[int], _seeds]
    resize: Annotated[dict[str, str | None], _each(one_of(RESIZES))]
    scored_on: Annotated[str, one_of(SCORED_ON)] = "test"
    kept_epoch: Annotated[str, one_of(KEPT_EPOCHS)] = "last"


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
        recipe: What its recipe says of the search behind it, as ``data``, the fingerprint of the images; None: it has none.
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
    recipe: Mapping[str, Any] | None
    train_split: str
    stop_epoch: int | None

    @property
    def scored_split(self) -> str:
        """The split whose score counts: val in the search phase, and what the protocol says in the final phase."""
        return self.protocol.scored_on if self.phase == "final" else "val"
