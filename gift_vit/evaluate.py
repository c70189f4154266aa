"""Score a finished run's model on one split."""

import json
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from gift_vit import cli

USAGE = """
Score a finished run's model.

    python -m gift_vit.evaluate run=<folder> [split=test]

    run            the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or one of gift_vit.import_gift
    split          train, val, trainval or test (default: test; val for a run of the search phase, which has no test score)
    dataset_root   the dataset.root of now, if the data is not where it was during training
    device         auto, cpu, cuda, cuda:1 … (default: auto)

Prints top-1 in percent and the mean cross entropy; writes nothing.
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    split: str | None = None
    dataset_root: str | None = None
    device: str = "auto"


def evaluate_run(arguments: Arguments) -> None:
    """Rebuild the run's data and model, load its adapter and print its scores."""
    from gift_vit.acceleration import accelerate
    from gift_vit.data import build_dataset
    from gift_vit.record import RunParts
    from gift_vit.results import read_result
    from gift_vit.run import (
        IMPORTED,
        RESULT,
        check_fingerprint,
        choose_split,
        is_imported,
        load_finished_model,
        load_run,
        resolve_device,
        score,
    )

    folder = Path(arguments.run)
    cfg = load_run(folder, arguments.dataset_root)
    split = choose_split(cfg, folder, arguments.split)
    device = resolve_device(arguments.device)
    model = load_finished_model(cfg, folder).to(device)
    accelerate(model, cfg.trainer)
    data = build_dataset(cfg.dataset)
    imported = json.loads((folder / IMPORTED).read_text()) if is_imported(folder) else None
    if imported is None:
        check_fingerprint(folder, data, read_result(folder / RESULT))
    result = score(cfg, RunParts(data, model, device), split)
    print(f"{data.name} {split}: top-1 {result.top1:.2f} %, loss {result.loss:.4f}, {result.images} images")
    if imported is not None:
        print("imported from {file}, reported {reported[split]} top-1 {reported[top1]:.2f} %".format(**imported))


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: evaluate_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
