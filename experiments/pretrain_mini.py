"""The pretraining of vit_mini: ``python -m experiments.pretrain_mini``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least, between, positive, writable_folder
from gift_vit.common.errors import ConfigError


@dataclass
class PretrainConfig(Options):
    """Pretrain vit_mini on 164 classes of Tiny-ImageNet and ship its weights.

        python -m experiments.pretrain_mini data=<folder with train-*.parquet and val.parquet>

    Resumable: the same command continues after an interruption. The schedule is warm-up, constant, linear cool-down, so that
    ``epochs`` may be raised or lowered between two starts as long as the cool-down has not begun. During the constant phase
    half of the patch tokens are dropped (timm's PatchDropout), which more than doubles the speed on a CPU; the cool-down sees
    every token and does without TrivialAugment.
    Writes ``vit_mini.safetensors`` (float16) and ``vit_mini.md`` (the model card, with every value) into the package.

    Attributes:
        data: folder with train-*.parquet and val.parquet
        out: folder of the checkpoint
        epochs: in all
        cooldown_epochs: the last ones
        warmup_epochs: the first ones
        batch_size: images in a step
        lr: AdamW's peak learning rate
        weight_decay: AdamW's
        patch_drop_rate: share of the patch tokens that are dropped until the cool-down
        drop_path_rate: stochastic depth
        label_smoothing: of the cross entropy
        min_crop_area: the least share of an image that RandomResizedCrop keeps
        workers: processes that load images
        seed: of everything that is drawn
        max_steps: stop after so many steps of an epoch, to try the command out
    """

    data: str = "../shared/data/tiny_imagenet/upstream"
    out: Annotated[str, writable_folder] = "outputs/pretrain_mini"
    epochs: Annotated[int, at_least(1)] = 18
    cooldown_epochs: int = 4
    warmup_epochs: float = 1.0
    batch_size: Annotated[int, at_least(1)] = 256
    lr: Annotated[float, positive] = 1e-3
    weight_decay: Annotated[float, at_least(0)] = 0.05
    patch_drop_rate: Annotated[float, between(0, 1)] = 0.5
    drop_path_rate: Annotated[float, between(0, 1)] = 0.0
    label_smoothing: float = 0.1
    min_crop_area: float = 0.4
    workers: Annotated[int, at_least(0)] = 2
    seed: Annotated[int, at_least(0)] = 0
    max_steps: int | None = None


def pretrain(cfg: PretrainConfig) -> None:
    """Train and write the weights."""
    if not Path(cfg.data).is_dir():
        raise ConfigError(f"no folder {cfg.data}; pass data=<folder with train-*.parquet and val.parquet>")
    from experiments.pretraining import train  # torch

    train(cfg)


def main() -> None:
    cli.main(PretrainConfig, pretrain)


if __name__ == "__main__":
    main()
