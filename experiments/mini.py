"""The mini benchmark: choose the learning rate on validation data, retrain with three seeds, test once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gift_vit import cli
from gift_vit.errors import ConfigError, RunError
from gift_vit.results import Result, collect_results

USAGE = """
Run the mini benchmark: every method on every dataset, learning rate chosen on val, then finals with three seeds.

    python -m experiments.mini [data_root=<folder>] [output_root=outputs/mini] [jobs=2] [datasets=[digits]] [methods=[gift]]

    data_root     the folder that holds tiny_imagenet/ and cifar10/ (default: data)
    output_root   where the run folders go
    jobs          runs at the same time, one thread each

Finished runs are skipped, interrupted ones resumed: the same command goes on where it stopped.
Afterwards: python -m experiments.tables root=outputs/mini
"""

# learning rates of the search; the smaller one wins a tie
GRID = {
    "linear": (1e-3, 3e-3, 1e-2, 3e-2),
    "gift": (1e-3, 3e-3, 1e-2),
    "full": (1e-4, 3e-4, 1e-3),
}
DATASETS = ("digits", "tiny_mammals", "tiny_insects", "tiny_vehicles", "cifar10_1k")
SEEDS = (0, 1, 2)


@dataclass
class Arguments:
    """Words of the command line."""

    data_root: str = "data"
    output_root: str = "outputs/mini"
    jobs: int = 2
    datasets: list[str] = field(default_factory=lambda: list(DATASETS))
    methods: list[str] = field(default_factory=lambda: list(GRID))


def run_all(arguments: Arguments) -> None:
    """Search, choose, final: dataset by dataset and method by method."""
    unknown = [method for method in arguments.methods if method not in GRID]
    if unknown:
        raise ConfigError(f"no grid for method {unknown[0]!r} (known: {', '.join(GRID)})")
    cells = [(dataset, method) for dataset in arguments.datasets for method in arguments.methods]
    _train_all(arguments, [_words(*cell, "search", lr, seed=0) for cell in cells for lr in GRID[cell[1]]])
    best = _choose(arguments, cells)
    _train_all(arguments, [_words(*cell, "final", lr, seed) for cell, lr in best.items() for seed in SEEDS])


def _words(dataset: str, method: str, phase: str, lr: float, seed: int) -> list[str]:
    return ["experiment=mini", f"dataset={dataset}", f"method={method}", f"phase={phase}", f"optim.lr={lr:g}", f"seed={seed}"]


def _train_all(arguments: Arguments, runs: list[list[str]]) -> None:
    """Run the trainings as processes of one thread each, ``jobs`` at a time; a failed one does not stop the others."""
    places = [f"paths.data_root={arguments.data_root}", f"paths.output_root={arguments.output_root}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} if arguments.jobs > 1 else dict(os.environ)

    def train(words: list[str]) -> int:
        command = [sys.executable, "-m", "gift_vit.train", *words, *places]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{' '.join(words)}: {last_line}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = sum(code != cli.SUCCESS for code in pool.map(train, runs))
    if failed:
        raise RunError(f"{failed} of {len(runs)} runs failed; the same command starts only those again")


def _choose(arguments: Arguments, cells: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The learning rate with the best last-epoch validation top-1 of each dataset and method; of equals the smaller."""
    best: dict[tuple[str, str], float] = {}
    for dataset, method in cells:
        found = collect_results(Path(arguments.output_root), phase="search", dataset=dataset, method=method)
        scores = {_lr(result): result.metrics["val_top1"] or 0.0 for result in found if _lr(result) in GRID[method]}
        best[dataset, method] = min(scores, key=lambda lr: (-scores[lr], lr))
        listed = ", ".join(f"{lr:g}: {scores[lr]:.2f}" for lr in sorted(scores))
        print(f"{dataset} {method}: val top-1 by lr {listed} → {best[dataset, method]:g}", flush=True)
    return best


def _lr(result: Result) -> float:
    optim = result.run.config["optim"]
    assert isinstance(optim, dict)
    return float(optim["lr"])


def main() -> None:
    raise SystemExit(cli.run_command(lambda: run_all(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
