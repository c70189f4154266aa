"""Score a finished run's model on one split."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from gift_vit import cli

USAGE = """
Score a finished run's model.

    python -m gift_vit.evaluate run=<folder> [split=test]

    run         the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>
    split       train, val, trainval or test (default: test)
    data_root   where the data lies now, if not where it was during training
    device      auto, cpu, cuda, cuda:1 … (default: auto)

Prints top-1 in percent and the mean cross entropy; writes nothing.
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    split: str = "test"
    data_root: str | None = None
    device: str = "auto"


def evaluate_run(arguments: Arguments) -> None:
    """Rebuild the run's data and model, load its adapter and print its scores."""
    from gift_vit.data import build_dataset
    from gift_vit.record import RunParts
    from gift_vit.run import load_finished_model, load_run, resolve_device, score

    folder = Path(arguments.run)
    cfg = load_run(folder, data_root=arguments.data_root)
    data = build_dataset(cfg.dataset)
    device = resolve_device(arguments.device)
    model = load_finished_model(cfg, folder).to(device)
    result = score(cfg, RunParts(data, model, device), arguments.split)
    print(f"{data.name} {arguments.split}: top-1 {result.top1:.2f} %, loss {result.loss:.4f}, {result.images} images")


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: evaluate_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
