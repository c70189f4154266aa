"""The mini benchmark: choose the learning rate on validation data, retrain with three seeds, test once."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gift_vit import cli
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.errors import ConfigError, RunError
from gift_vit.results import Result, collect_results

USAGE = """
Run the mini benchmark: every method on every dataset, learning rate chosen on val, then finals with three seeds.

    python -m experiments.mini [data_root=<folder>] [output_root=outputs/mini] [jobs=2] [datasets=[digits]] [methods=[gift]]

    data_root     the folder that holds tiny_imagenet/ and cifar10/ (default: data)
    output_root   where the run folders go
    jobs          sweeps at the same time, one thread each

Finished runs are skipped, interrupted ones resumed: the same command goes on where it stopped.
Afterwards: python -m experiments.tables root=outputs/mini
"""

# learning rates of the search; the smaller one wins a tie
GRID = {
    "linear": (1e-2, 3e-2, 1e-1),
    "gift": (3e-3, 1e-2, 3e-2),
    "full": (1e-4, 3e-4, 1e-3),
}
DATASETS = ("digits", "tiny_mammals", "tiny_insects", "tiny_vehicles", "cifar10_1k")


@dataclass
class Arguments:
    """Words of the command line."""

    data_root: str = "data"
    output_root: str = "outputs/mini"
    jobs: int = 2
    datasets: list[str] = field(default_factory=lambda: list(DATASETS))
    methods: list[str] = field(default_factory=lambda: list(GRID))


def run_all(arguments: Arguments) -> None:
    """Search, choose, final for every dataset and method; a failed cell does not stop the others."""
    unknown = [method for method in arguments.methods if method not in GRID]
    if unknown:
        raise ConfigError(f"no grid for method {unknown[0]!r} (known: {', '.join(GRID)})")
    cells = [(dataset, method) for dataset in arguments.datasets for method in arguments.methods]
    seeds = load_config(compose_config(["experiment=mini"])).protocol.seeds
    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = sum(not done for done in pool.map(lambda cell: _run_cell(arguments, cell[0], cell[1], seeds), cells))
    if failed:
        raise RunError(f"{failed} of {len(cells)} cells are incomplete; the same command runs only what is missing")


def _run_cell(arguments: Arguments, dataset: str, method: str, seeds: Sequence[int]) -> bool:
    """All runs of one method on one dataset; whether they are all finished."""
    if not _train(arguments, dataset, method, "search", GRID[method], seeds=(0,)):
        return False
    found = [
        result
        for result in collect_results(Path(arguments.output_root), phase="search", dataset=dataset, method=method, seed=0)
        if _lr(result) in GRID[method]
    ]
    scores = {_lr(result): result.metrics["val_top1"] or 0.0 for result in found}
    if len(found) != len(GRID[method]):
        raise ConfigError(f"{arguments.output_root} holds other search runs of {method} on {dataset}; give another output_root")
    best = min(GRID[method], key=lambda lr: (-scores[lr], lr))
    listed = ", ".join(f"{lr:g}: {scores[lr]:.2f}" for lr in GRID[method])
    edge = " (on the edge of the grid)" if best in (GRID[method][0], GRID[method][-1]) else ""
    print(f"{dataset} {method}: val top-1 by lr {listed}; chosen {best:g}{edge}", flush=True)
    return _train(arguments, dataset, method, "final", (best,), seeds)


def _train(arguments: Arguments, dataset: str, method: str, phase: str, lrs: Sequence[float], seeds: Sequence[int]) -> bool:
    """One sweep over learning rates and seeds, in a process of its own; whether every run of it finished."""
    words = [
        *("-m", "experiment=mini", f"dataset={dataset}", f"method={method}", f"phase={phase}"),
        f"optim.lr={','.join(f'{lr:g}' for lr in lrs)}",
        f"seed={','.join(str(seed) for seed in seeds)}",
        f"paths.data_root={arguments.data_root}",
        f"paths.output_root={arguments.output_root}",
    ]
    # on a CPU plain attention products train faster than the fused kernel at 65 tokens; results agree but for rounding
    environment = os.environ | {"TIMM_FUSED_ATTN": "0"} | ({"OMP_NUM_THREADS": "1"} if arguments.jobs > 1 else {})
    command = [sys.executable, "-m", "gift_vit.train", *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if line.startswith(("finished", "error", "interrupted"))]
    print("\n".join(told or done.stderr.splitlines()[-1:]), flush=True)
    return done.returncode == cli.SUCCESS


def _lr(result: Result) -> float:
    optim = result.run.config["optim"]
    assert isinstance(optim, dict)
    return float(optim["lr"])


def main() -> None:
    raise SystemExit(cli.run_command(lambda: run_all(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
