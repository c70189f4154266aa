"""The pretraining of vit_mini: ``python -m experiments.pretrain_mini``."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least, fraction, positive, writable_folder
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded


@dataclass
class PretrainConfig(Options):
    """Pretrain vit_mini on 164 classes of Tiny-ImageNet and ship its weights.

        python -m experiments.pretrain_mini data=<folder with train-*.parquet and val.parquet>

    Resumable: the same command continues after an interruption. The learning rate rises linearly and falls along a cosine to
    zero. Images are mixed in pairs (Mixup or CutMix, one of the two for each batch), for 65,600 images are too few for a ViT
    that sees each of them a hundred times; patch tokens are dropped (timm's PatchDropout), which also makes it faster. The
    last epochs may be plain: every token, no mixing, no TrivialAugment; in the weights that are shipped two of them cost 0.7
    points on val. The defaults are meant for a GPU and were not run as a whole: the card has the values of what is shipped.
    Writes ``vit_mini_v2.safetensors`` (float16) and ``vit_mini_v2.md`` (the model card, with every value) into the package.

    Attributes:
        data: folder with train-*.parquet and val.parquet
        out: folder of the checkpoint
        init: weights to start from, a .safetensors of vit_mini; none: drawn at random
        epochs: in all
        plain_epochs: the last ones
        warmup_epochs: the first ones
        batch_size: images in a step
        lr: AdamW's peak learning rate
        weight_decay: AdamW's
        patch_drop_rate: share of the patch tokens that are dropped until the plain epochs
        drop_path_rate: stochastic depth
        mixup_alpha: of the Beta distribution that Mixup's weight is drawn from; 0: no Mixup
        cutmix_alpha: of CutMix's; 0: no CutMix
        label_smoothing: of the cross entropy
        min_crop_area: the least share of an image that RandomResizedCrop keeps
        workers: processes that load images
        seed: of everything that is drawn
        max_steps: stop after so many steps of an epoch, to try the command out
    """

    data: str = "../shared/data/tiny_imagenet/upstream"
    out: Annotated[str, writable_folder] = "outputs/pretrain_mini"
    init: str | None = None
    epochs: Annotated[int, at_least(1)] = 150
    plain_epochs: Annotated[int, at_least(0)] = 0
    warmup_epochs: Annotated[float, at_least(0)] = 3.0
    batch_size: Annotated[int, at_least(1)] = 512
    lr: Annotated[float, positive] = 1.5e-3
    weight_decay: Annotated[float, at_least(0)] = 0.1
    patch_drop_rate: Annotated[float, fraction] = 0.25
    drop_path_rate: Annotated[float, fraction] = 0.05
    mixup_alpha: Annotated[float, at_least(0)] = 0.4
    cutmix_alpha: Annotated[float, at_least(0)] = 1.0
    label_smoothing: float = 0.1
    min_crop_area: float = 0.4
    workers: Annotated[int, at_least(0)] = 2
    seed: Annotated[int, at_least(0)] = 0
    max_steps: int | None = None


def pretrain(cfg: PretrainConfig) -> None:
    """Train and write the weights."""
    if not expanded(cfg.data).is_dir():
        raise ConfigError(f"no folder {cfg.data}; pass data=<folder with train-*.parquet and val.parquet>")
    if cfg.init is not None and not expanded(cfg.init).is_file():
        raise ConfigError(f"no file {cfg.init}; pass init=<vit_mini's weights as .safetensors>")
    from experiments.pretraining import train  # torch

    train(cfg)


def main() -> None:
    cli.main(PretrainConfig, pretrain)


if __name__ == "__main__":
    main()
