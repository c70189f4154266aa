"""The demo: linear probing against GIFT on scikit-learn's digits with vit_mini, offline, on a CPU."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from gift_vit import cli
from gift_vit.backbones import input_statistics
from gift_vit.compose import compose_config
from gift_vit.config import RunConfig, load_config
from gift_vit.data import build_dataset, build_eval_transform
from gift_vit.errors import ConfigError
from gift_vit.explain.layers import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.explain.select import telling_clusters
from gift_vit.explain.sheets import Pictures, Style, draw_layer_sheet
from gift_vit.record import Call
from gift_vit.results import Result
from gift_vit.run import execute, load_finished_model

USAGE = """
Fine-tune vit_mini on scikit-learn's digits with linear probing and with GIFT, test both once, and show what GIFT looks at.

    python -m experiments.demo [output_root=outputs/demo] [images=6] [epochs=<as configured>]

Finished runs are not trained again: delete output_root to start over.
"""

# the learning rates that the mini benchmark chose on the validation split
LEARNING_RATES = {"linear": 0.1, "gift": 0.03}


@dataclass
class Arguments:
    """Words of the command line."""

    output_root: str = "outputs/demo"
    images: int = 6
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.images <= 10:
            raise ConfigError(f"images={self.images}: expected 1 to 10, one for each digit")


def run_demo(arguments: Arguments) -> None:
    """Train, print the table, draw the picture."""
    configs = {method: _config(method, arguments) for method in LEARNING_RATES}
    results = {
        method: execute(cfg, Call(f"python -m experiments.demo output_root={arguments.output_root}", []))
        for method, cfg in configs.items()
    }
    picture = Path(arguments.output_root, "cluster_maps.png")
    draw_cluster_maps(configs["gift"], picture, arguments.images)
    console = Console()
    console.print(results_table(results))
    console.print("Run folders:", *(f"  {os.path.relpath(cfg.folder)}" for cfg in configs.values()), sep="\n", soft_wrap=True)
    console.print(f"Cluster maps of GIFT: {picture}", soft_wrap=True)


def _config(method: str, arguments: Arguments) -> RunConfig:
    words = ["experiment=demo", f"method={method}", "phase=final", "run_name=demo"]
    words += [f"paths.output_root={arguments.output_root}", f"optim.lr={LEARNING_RATES[method]}"]
    words += [] if arguments.epochs is None else [f"trainer.epochs={arguments.epochs}", "optim.warmup_epochs=0"]
    return load_config(compose_config(words))


def results_table(results: dict[str, Result]) -> Table:
    """One row per method."""
    table = Table(title="vit_mini on digits: 1,000 training images, 797 test images")
    for header in ("method", "trainable parameters", "of these adapter", "adapter bytes", "test top-1 %", "seconds"):
        table.add_column(header, justify="left" if header == "method" else "right")
    for method, result in results.items():
        table.add_row(
            method,
            f"{result.params.adapter + result.params.head:,}",
            f"{result.params.adapter:,}",
            f"{result.cost.adapter_bytes:,}",
            f"{result.metrics['test_top1']:.2f}",
            f"{result.cost.train_seconds:.1f}",
        )
    return table


def draw_cluster_maps(cfg: RunConfig, path: Path, count: int) -> None:
    """Draw test images with predictions and the cluster maps of the last adapted block."""
    data = build_dataset(cfg.dataset)
    model = load_finished_model(cfg, cfg.folder).eval()
    stats = input_statistics(model)
    transform = build_eval_transform(cfg.dataset.transform, stats)
    test = data.split("test")
    picks = [next(i for i, label in enumerate(test.labels) if label == digit) for digit in range(count)]
    images = torch.stack([transform(test[i][0]) for i in picks])
    maps = explain(model, images, MapChoice(blocks=[-1]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (stats.mean, stats.std))
    rgb = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    names = data.class_names or [str(index) for index in range(data.num_classes)]
    answers = [names[index] for index in maps.logits.argmax(1).tolist()]
    clusters = telling_clusters(maps.post[:, 0])
    draw_layer_sheet(
        Pictures(rgb, [names[test.labels[i]] for i in picks], answers),
        maps.thresholded()[:, 0, clusters],
        clusters,
        Style(title="What GIFT looks at: digits, vit_mini, attn.proj of the last block"),
        [path],
    )


def main() -> None:
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: run_demo(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
