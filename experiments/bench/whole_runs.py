"""Whole runs on made-up JPEG files, for ``python -m experiments.bench.end_to_end``."""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from experiments.bench.measure import input_size
from experiments.bench.models import build
from experiments.bench.report import commit_line, machine
from experiments.bench.variants import REFERENCE, Variant
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import expanded
from gift_vit.engine.state import Precision
from gift_vit.results.render import DASH, render_markdown, text_table
from gift_vit.runs.build import resolve_device

if TYPE_CHECKING:
    from experiments.bench.end_to_end import Arguments

log = logging.getLogger(__name__)

COLUMNS = ("Run", "Epochs", "Images/s", "× reference", "Whole time (s)", "Besides training (s)", "Device (MiB)")


@dataclass(frozen=True)
class Run:
    """What was measured of one contender.

    Attributes:
        images_per_s: Median over the epochs from the second on.
        seconds: Of the whole run; of the project's from the command on, of the others without imports and building the model.
        besides_seconds: What of them is not an epoch's training: imports, weights, scoring the test split; of the project's.
        peak_mib: Of the device's memory.
    """

    name: str
    epochs: int
    images_per_s: float
    seconds: float
    besides_seconds: float | None
    peak_mib: float | None
    computed: dict[str, Any] = field(default_factory=dict)


def make_images(root: Path, arguments: "Arguments") -> None:
    """JPEG files in ``images/train/<class>/``, and as many others in ``test``; those of an earlier call are kept.

    Raises:
        ConfigError: If those are others.
    """
    folder = root / "images"  # of nothing else: a folder beside train and test is of no known split
    done, made = folder / "done", f"{arguments.images} images of {arguments.classes} classes, {arguments.side} pixels wide"
    if done.exists():
        if (there := done.read_text()) != made:
            raise ConfigError(f"folder={root} holds {there or 'images of an older version'}, not {made}; give another folder")
        return
    for split, first in (("train", 0), ("test", arguments.images)):
        for number in range(arguments.classes):
            (folder / split / f"{number:03}").mkdir(parents=True, exist_ok=True)
        make = partial(_make_image, folder / split, arguments.classes, arguments.side)
        with ProcessPoolExecutor(max(arguments.workers, 1)) as pool:
            list(pool.map(make, range(first, first + arguments.images), chunksize=16))
    done.write_text(made)


def _make_image(folder: Path, classes: int, side: int, number: int) -> None:
    """Smooth noise, which compresses about as photographs do."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    image = coarse.resize((side, 3 * side // 4), Image.Resampling.BICUBIC)
    image.save(folder / f"{number % classes:03}" / f"{number}.jpg", quality=90)


def run_project(arguments: "Arguments", root: Path) -> Run:
    """The command, twice, in fresh run folders: the first decodes into the cache and is not counted."""
    weights = root / f"{arguments.model}.safetensors"
    if not weights.is_file():
        save_file(timm.create_model(arguments.model.split(".")[0]).state_dict(), weights)
    words = ["dataset=folder", f"dataset.root={root / 'images'}", "method=gift", "protocol=clean", "phase=final", "recipe=none"]
    words += [f"backbone.model={arguments.model}", f"backbone.weights={weights}", f"trainer.device={arguments.device}"]
    words += [f"paths.cache_root={root / 'cache'}", "dataset.cache=disk", "optim.warmup_epochs=0"]
    words += ["optim.lr=1e-3", "method.rank=16", f"trainer.batch_size={arguments.batch_size}"]
    words += [f"trainer.workers={arguments.workers}", *arguments.words]
    if arguments.squash:
        words += [f"dataset.transform.{word}" for word in ("crop_ratio=null", "random_crop=false", "hflip=0")]
    runs = Path(tempfile.mkdtemp(prefix="runs", dir=root))
    _command([*words, "trainer.epochs=2", f"paths.output_root={runs / 'first'}"])
    out = runs / "second"
    seconds = _command([*words, f"trainer.epochs={arguments.epochs}", f"paths.output_root={out}"])
    [file] = out.rglob("result.json")
    result = json.loads(file.read_text())
    epochs = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    cost, facts = result["cost"], result["env"]["acceleration"]
    speed = median(epoch["images_per_s"] for epoch in epochs[1:] or epochs)
    first = epochs[0]["seconds"] - arguments.images / speed  # what the first epoch takes longer: recording, compiling
    imports = seconds - cost["total_seconds"]
    details = facts | {
        "first_epoch_extra_s": first,
        "imports_s": imports,
        "epoch_s": [epoch["seconds"] for epoch in epochs[:9]],
    }
    besides = seconds - cost["train_seconds"]
    return Run("gift_vit", len(epochs), speed, seconds, besides, cost["peak_memory_mib"], details)


def _command(words: list[str]) -> float:
    started = time.perf_counter()
    finished = subprocess.run([sys.executable, "-m", "gift_vit.train", *words], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RunError(f"the project's command failed: {finished.stderr[-2000:]}")
    return time.perf_counter() - started


def run_plainly(arguments: "Arguments", root: Path, method: str, device: torch.device) -> Run:
    """The plainest loop: ImageFolder, DataLoader, AdamW, one loss read at the end of an epoch."""
    architecture = arguments.model.split(".")[0]
    model = build(Variant("", method, accelerated=False, precision="tf32", drop_path=0.1), architecture, device)
    model.reset_classifier(arguments.classes)  # pyright: ignore[reportCallIssue]
    model.to(device).train()
    precision = Precision("tf32", device)
    loader = DataLoader(
        ImageFolder(root / "images/train", _transform(arguments, input_size(architecture)[0])),
        batch_size=arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=arguments.workers > 0,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, speeds = time.perf_counter(), []
    for _ in range(arguments.plain_epochs):
        begun = time.perf_counter()
        loss = torch.zeros((), device=device)
        for images, labels in _on(device, loader):
            with precision.autocast():
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        speeds.append(arguments.images / (time.perf_counter() - begun))
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    seconds = time.perf_counter() - started
    return Run(method, arguments.plain_epochs, median(speeds[1:] or speeds), seconds, None, peak)


def _on(device: torch.device, loader: "DataLoader[Any]") -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _transform(arguments: "Arguments", side: int) -> nn.Module:
    resize = [v2.Resize([side, side])] if arguments.squash else [v2.Resize(256), v2.RandomCrop(side), v2.RandomHorizontalFlip()]
    scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    return v2.Compose([*resize, *scale])


def table(found: list[Run], caption: str, provenance: str) -> str:
    """The runs in Markdown."""
    yard = next((run.images_per_s for run in found if run.name == REFERENCE), None)
    rows = []
    for run in found:
        numbers = [(run.epochs, 0), (run.images_per_s, 0), (run.images_per_s / yard if yard else None, 2)]
        numbers += [(run.seconds, 1), (run.besides_seconds, 1), (run.peak_mib, 0)]
        rows.append([run.name, *(DASH if value is None else f"{value:,.{digits}f}" for value, digits in numbers)])
    return render_markdown(text_table(caption, provenance, COLUMNS, rows))


def bench(arguments: "Arguments") -> None:
    """Make the files, run the contenders, print the table."""
    device, found = resolve_device(arguments.device), []
    facts, described = machine(device)
    with tempfile.TemporaryDirectory() as temporary:
        root = expanded(arguments.folder or temporary)
        log.info("making %d images", arguments.images)
        make_images(root, arguments)
        for name in arguments.contenders:
            log.info("running %s", name)
            run = run_project(arguments, root) if name == "gift" else run_plainly(arguments, root, name, device)
            found.append(run)
            if arguments.out:
                asked = {k: v for k, v in asdict(arguments).items() if k not in {"folder", "out", "contenders"}}
                with expanded(arguments.out).open("a") as file:
                    file.write(json.dumps({**asked, **facts, **asdict(run)}) + "\n")
    setting = f"{arguments.images:,} images of {arguments.side} pixels, {arguments.model}, batch {arguments.batch_size}"
    print(table(found, f"Whole runs on {setting}; on {described}.", commit_line(facts)), end="")
