"""Training vit_mini on its upstream classes, and shipping the weights with a model card."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_model
from timm.layers.config import set_fused_attn
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiments.pretrain_mini import PretrainConfig
from gift_vit.backbones.vit_mini import NUM_UPSTREAM_CLASSES, WEIGHTS_FILE
from gift_vit.common.environment import cpu_name
from gift_vit.common.files import atomic_path, expanded, write_text
from gift_vit.common.tensors import write_tensors
from gift_vit.data.kinds.parquet import read_table

MEAN = STD = 0.5


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Images decoded once into uint8 memory, augmented on access."""

    def __init__(self, files: list[Path], transform: v2.Transform) -> None:
        table = read_table(files)
        self.images = np.stack([np.asarray(table[index][0]) for index in range(len(table))])
        self.labels = table.labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def build_train_transform(cfg: PretrainConfig, plain: bool) -> v2.Transform:
    """RandomResizedCrop and flip, and TrivialAugmentWide until the plain epochs."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(64, scale=(cfg.min_crop_area, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            *([] if plain else [v2.TrivialAugmentWide()]),
            v2.PILToTensor(),
        ]
    )


def build_mixing(cfg: PretrainConfig) -> v2.Transform:
    """Mixup (Zhang et al., arXiv 1710.09412) or CutMix (Yun et al., arXiv 1905.04899) of a batch; its labels become shares."""
    kinds = [(v2.MixUp, cfg.mixup_alpha), (v2.CutMix, cfg.cutmix_alpha)]
    return v2.RandomChoice(
        [kind(alpha=alpha, num_classes=NUM_UPSTREAM_CLASSES) for kind, alpha in kinds if alpha] or [v2.Identity()]
    )


def lr_scale(step: int, steps_per_epoch: int, cfg: PretrainConfig) -> float:
    """Factor of the peak learning rate before update ``step``: linear warm-up, then a cosine to zero."""
    warmup = cfg.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (cfg.epochs * steps_per_epoch - warmup)))


def build_model(cfg: PretrainConfig) -> nn.Module:
    """vit_mini, drawn at random or with the weights of ``cfg.init``."""
    rates: dict[str, Any] = {"patch_drop_rate": cfg.patch_drop_rate, "drop_path_rate": cfg.drop_path_rate}
    model = timm.create_model("vit_mini_patch8_64", num_classes=NUM_UPSTREAM_CLASSES, **rates)
    if cfg.init is not None:
        load_model(model, expanded(cfg.init))
    return model


def build_optimizer(model: nn.Module, cfg: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; vectors, the class token and the position embedding do not decay."""
    groups = param_groups_weight_decay(model, cfg.weight_decay, no_weight_decay_list={"cls_token", "pos_embed"})
    return torch.optim.AdamW(groups, lr=cfg.lr)


def normalise(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).float().div_(255).sub_(MEAN).div_(STD)


@torch.inference_mode()
def top1(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    model.eval()
    correct = total = 0
    for images, labels in loader:
        with torch.autocast(device.type, torch.bfloat16):
            predictions = model(normalise(images, device)).argmax(1)
        correct += int((predictions.cpu() == labels).sum())
        total += len(labels)
    return 100 * correct / total


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        torch.save(state, partial)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} cores of {cpu_name()}"


def train(cfg: PretrainConfig) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        set_fused_attn(False)  # the fused CPU kernel's backward is half as fast as plain products at 65 tokens
    out = expanded(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    model = build_model(cfg).to(device)
    optimizer = build_optimizer(model, cfg)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=cfg.label_smoothing)

    data = expanded(cfg.data)
    train_set = DecodedImages(sorted(data.glob("train-*.parquet")), build_train_transform(cfg, plain=False))
    val_set = DecodedImages([data / "val.parquet"], v2.PILToTensor())
    mix = build_mixing(cfg)
    steps_per_epoch = len(train_set) // cfg.batch_size
    val_loader = DataLoader(val_set, batch_size=512)

    checkpoint, first_epoch, history = out / "last.ckpt", 0, []
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, history = state["epoch"], state["history"]
        print(f"resuming after epoch {first_epoch}", flush=True)

    for epoch in range(first_epoch, cfg.epochs):
        started = time.perf_counter()
        torch.manual_seed(cfg.seed * 10_000 + epoch)
        loader = DataLoader(train_set, cfg.batch_size, shuffle=True, drop_last=True, num_workers=cfg.workers)
        model.train()
        if epoch >= cfg.epochs - cfg.plain_epochs:
            model.patch_drop, mix = nn.Identity(), v2.Identity()
            train_set.transform = build_train_transform(cfg, plain=True)
        losses = []
        for index, (images, labels) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * lr_scale(epoch * steps_per_epoch + index, steps_per_epoch, cfg)
            mixed, targets = mix(normalise(images, device), labels.to(device))
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(mixed)
            loss = loss_fn(logits.float(), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if index % 50 == 0:
                rate = (index + 1) * cfg.batch_size / (time.perf_counter() - started)
                print(f"epoch {epoch} step {index} loss {torch.stack(losses[-50:]).mean():.4f} {rate:.0f} images/s", flush=True)
            if cfg.max_steps and index + 1 >= cfg.max_steps:
                return
        record = {
            "epoch": epoch,
            "train_loss": float(torch.stack(losses).mean()),
            "val_top1": top1(model, val_loader, device),
            "seconds": time.perf_counter() - started,
        }
        history.append(record)
        print(json.dumps(record), flush=True)
        save_checkpoint(
            checkpoint,
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "history": history},
        )
    export(model, cfg, history, hardware(device), top1_of_export(model, val_loader, device))


def top1_of_export(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    """Validation top-1 of the float16 weights as they are shipped."""
    model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return top1(model, loader, device)


def export(model: nn.Module, cfg: PretrainConfig, history: list[dict[str, Any]], device_name: str, val_top1: float) -> None:
    write_tensors(WEIGHTS_FILE, {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}, {})
    hours = sum(record["seconds"] for record in history) / 3600
    values = asdict(cfg) | {"init": cfg.init and Path(cfg.init).name}
    recipe = "\n".join(f"| {key} | {value} |" for key, value in values.items() if key not in {"data", "out", "max_steps"})
    curve = "\n".join(f"| {r['epoch']} | {r['train_loss']:.3f} | {r['val_top1']:.2f} |" for r in history)
    write_text(
        WEIGHTS_FILE.with_suffix(".md"),
        f"""# vit_mini

A small ViT for demonstrations and tests: 64×64 pixels, patch 8, width 192, depth 6, 3 heads, class token, 2.75 M parameters.
It shows that the pipeline works on real images without a network or a GPU; it is no backbone for published numbers.

- **Data**: 164 classes of Tiny-ImageNet-200, 400 training images each (65,600), 8,200 validation images, 64×64 pixels.
  The 36 classes of the `tiny_*` tasks are not among them.
- **Validation top-1** of the shipped float16 weights: **{val_top1:.2f} %** on the 164 classes (last epoch, not chosen).
- **Input**: RGB scaled to [0, 1], mean 0.5, std 0.5 per channel.
- **Training time**: {hours:.2f} hours on {device_name}, torch {torch.__version__.split("+")[0]}, bf16 autocast.
- **Made by**: `python -m experiments.pretrain_mini` with the values below. Augmentation: RandomResizedCrop(64, area
  {cfg.min_crop_area}–1), horizontal flip, and until the plain epochs TrivialAugmentWide, and Mixup or CutMix. Cross entropy
  with label smoothing, gradient norm clipped at 1. Patch tokens are dropped at the rate below until the plain epochs.

| value | |
|---|---|
{recipe}

| epoch | training loss | val top-1 % |
|---|---|---|
{curve}
""",
    )
    print(f"{WEIGHTS_FILE} ({WEIGHTS_FILE.stat().st_size / 1e6:.1f} MB), val top-1 {val_top1:.2f} %")
