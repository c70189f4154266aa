"""The mini benchmark: choose learning rates on validation data, retrain with three seeds, test once; and ablations of GIFT."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gift_vit import cli
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.errors import ConfigError, RunError
from gift_vit.results import Result, collect_results

USAGE = """
Run the mini benchmark: every method on every dataset, the learning rate of each cell chosen on val, then finals with three
seeds; and two ablations of GIFT, over its rank and over what it adapts, with one learning rate for all.

    python -m experiments.mini [data_root=<folder>] [output_root=outputs/mini] [jobs=2] [datasets=[digits]] [methods=[gift]]
                               [ablations=[rank]] [seeds=[0]]

    data_root     the folder that holds tiny_imagenet/ and cifar10/ (default: data)
    output_root   where the run folders go: methods/, rank/, targets/, and the same three in timing/
    jobs          sweeps at the same time, one thread each
    ablations     rank, targets (default: both; ablations=[]: none)
    seeds         of the finals (default: those of the protocol); all cells get the first one before any gets the second

At the end, one process at a time, short runs of everything in turns: step times and memory to compare. Leave the machine
alone meanwhile.
Finished runs are skipped, interrupted ones resumed: the same command goes on where it stopped.
Afterwards: make mini-tables
"""

DATASETS = ("digits", "tiny_mammals", "tiny_insects", "tiny_vehicles", "cifar10_1k")
METHODS = (
    *("linear", "full", "bitfit", "vpt_shallow", "vpt_deep", "adaptformer", "ssf", "lora", "gift"),
    *("gift_gelu", "gift_sigmoid", "gift_mlp", "gift_mlp_mixer", "gift_transformer", "gift_paca_attn", "gift_v1"),
)

# learning rates of the search, evenly spaced in their logarithm; the smaller one wins a tie
GRID = {"linear": (1e-2, 5e-2, 2.5e-1), "full": (3e-4, 1e-3, 3e-3)}
PEFT_GRID = (2e-3, 1e-2, 5e-2)
WIDENED = 2  # times that a grid grows by one step where the best rate lies on its edge

ABLATION_LR = PEFT_GRID[1]  # GIFT's own choice on digits, a step higher, makes larger ranks and other targets diverge
ABLATIONS = {
    "rank": [(f"method.rank={','.join(str(rank) for rank in (1, 2, 4, 8, 16, 32, 64))}",)],
    "targets": [
        (
            "method.target_modules=[attn.proj],[attn.q],[attn.k],[attn.v],[attn.qkv],[mlp.fc1],[mlp.fc2],"
            "[attn.qkv,attn.proj,mlp.fc1,mlp.fc2],[attn.qkv,attn.proj,mlp.fc1]",
        ),
        # one pair for the layers that agree in their input width
        ("method.target_modules=[attn.qkv,attn.proj,mlp.fc1]", "method.share=true"),
    ],
}

T = TypeVar("T")


@dataclass
class Arguments:
    """Words of the command line."""

    data_root: str = "data"
    output_root: str = "outputs/mini"
    jobs: int = 2
    datasets: list[str] = field(default_factory=lambda: list(DATASETS))
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    ablations: list[str] = field(default_factory=lambda: list(ABLATIONS))
    seeds: list[int] = field(default_factory=lambda: list(load_config(compose_config(["experiment=mini"])).protocol.seeds))

    def __post_init__(self) -> None:
        """Refuse an ablation that is not known."""
        if unknown := [name for name in self.ablations if name not in ABLATIONS]:
            raise ConfigError(f"unknown ablation {unknown[0]!r} (known: {', '.join(ABLATIONS)})")


def run_all(arguments: Arguments) -> None:
    """Search, choose, final; a failed cell does not stop the others."""
    benchmark = Benchmark(arguments)
    with ThreadPoolExecutor(arguments.jobs) as pool:

        def each(task: Callable[[T], bool], items: Iterable[T]) -> bool:
            return all(list(pool.map(task, items)))

        ablated = [(name, words) for name in arguments.ablations for words in ABLATIONS[name]]
        done = each(benchmark.search, arguments.methods)
        for seeds in (arguments.seeds[:1], arguments.seeds[1:]):
            done &= each(lambda method, seeds=seeds: benchmark.final(method, seeds), arguments.methods)
            done &= each(lambda item, seeds=seeds: benchmark.ablate(*item, seeds), ablated)
    done &= benchmark.time_steps(ablated)
    if not done:
        raise RunError("some runs are missing; the same command runs only these")


class Benchmark:
    """The sweeps of the benchmark, and the learning rates they chose."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.chosen: dict[str, dict[str, float]] = {}  # method to dataset to learning rate

    def search(self, method: str) -> bool:
        """Choose a learning rate per dataset; whether every search run is finished."""
        grid = GRID.get(method, PEFT_GRID)
        done = self._train(method, "search", dict.fromkeys(self.arguments.datasets, grid), seeds=(0,))
        for _ in range(WIDENED):
            scores = self._scores(method, grid)
            beyond = {dataset: _beyond(found) for dataset, found in scores.items() if len(found) < len(grid) + WIDENED}
            done &= self._train(method, "search", {name: (lr,) for name, lr in beyond.items() if lr is not None}, seeds=(0,))
        self.chosen[method] = {}
        for dataset, scores in self._scores(method, grid).items():
            lr = _best(scores)
            self.chosen[method][dataset] = lr
            listed = ", ".join(f"{lr:g}: {scores[lr]:.2f}" for lr in sorted(scores))
            edge = " (on the edge)" if _beyond(scores) is not None else ""
            print(f"{dataset} {method}: val top-1 by lr {listed}; chosen {lr:g}{edge}", flush=True)
        return done

    def final(self, method: str, seeds: Sequence[int]) -> bool:
        """Retrain with the chosen learning rates and test; whether every run is finished."""
        return self._train(method, "final", {dataset: (lr,) for dataset, lr in self.chosen[method].items()}, seeds)

    def ablate(self, folder: str, words: Sequence[str], seeds: Sequence[int]) -> bool:
        """Train GIFT with other words and test; whether every run is finished."""
        lrs = dict.fromkeys(self.arguments.datasets, (ABLATION_LR,))
        return self._train("gift", "final", lrs, seeds, folder, words)

    def time_steps(self, ablated: Sequence[tuple[str, Sequence[str]]]) -> bool:
        """Short runs on one dataset, seed by seed, so that a disturbed machine disturbs all alike; whether all finished."""
        short = ("phase=search", f"dataset={self.arguments.datasets[0]}", "trainer.epochs=1", "optim.warmup_epochs=0")
        methods = ("methods", (f"method={','.join(self.arguments.methods)}",))
        done = True
        for folder, words in (methods, *((name, ("method=gift", *words)) for name, words in ablated)):
            root = Path(self.arguments.output_root, "timing", folder)
            root.mkdir(parents=True, exist_ok=True)
            done &= self._sweep("seed=0,1,2", "experiment=mini", *short, *words, f"paths.output_root={root}")
        return done

    def _scores(self, method: str, grid: Sequence[float]) -> dict[str, dict[float, float]]:
        """Val top-1 by learning rate, of every dataset whose first grid is complete."""
        root = Path(self.arguments.output_root, "methods")
        scores: dict[str, dict[float, float]] = defaultdict(dict)
        for result in collect_results(root, phase="search", method=method, seed=0):
            if result.run.dataset in self.arguments.datasets:
                scores[result.run.dataset][_lr(result)] = result.metrics["val_top1"] or 0.0
        return {dataset: found for dataset, found in scores.items() if set(grid) <= set(found)}

    def _train(
        self,
        method: str,
        phase: str,
        lrs: Mapping[str, tuple[float, ...]],
        seeds: Sequence[int],
        folder: str = "methods",
        words: Sequence[str] = (),
    ) -> bool:
        """Sweeps over datasets, learning rates and seeds, one for the datasets that share rates; whether every run finished."""
        groups: dict[tuple[float, ...], list[str]] = defaultdict(list)
        for dataset, rates in lrs.items():
            groups[rates].append(dataset)
        root = Path(self.arguments.output_root, folder)
        root.mkdir(parents=True, exist_ok=True)
        done = True
        for rates, datasets in groups.items() if seeds else ():
            done &= self._sweep(
                *("experiment=mini", f"method={method}", f"phase={phase}", f"dataset={','.join(datasets)}", *words),
                f"optim.lr={','.join(f'{lr:g}' for lr in rates)}",
                f"seed={','.join(str(seed) for seed in seeds)}",
                f"paths.output_root={root}",
            )
        return done

    def _sweep(self, *words: str) -> bool:
        """One sweep, in a process of its own; whether every run of it finished."""
        # on a CPU plain attention products train faster than the fused kernel at 65 tokens; results agree but for rounding
        threads = {"OMP_NUM_THREADS": "1"} if self.arguments.jobs > 1 else {}
        command = [sys.executable, "-m", "gift_vit.train", "-m", *words, f"paths.data_root={self.arguments.data_root}"]
        environment = os.environ | {"TIMM_FUSED_ATTN": "0"} | threads
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        told = [line for line in done.stderr.splitlines() if line.startswith(("finished", "error", "interrupted"))]
        print("\n".join(told or done.stderr.splitlines()[-1:]), flush=True)
        return done.returncode == cli.SUCCESS


def _best(scores: Mapping[float, float]) -> float:
    return min(scores, key=lambda lr: (-scores[lr], lr))


def _beyond(scores: Mapping[float, float]) -> float | None:
    """The next learning rate outwards where the best one is the lowest or the highest; otherwise None."""
    lrs, best = sorted(scores), _best(scores)
    if best == lrs[0]:
        return _rounded(lrs[0] ** 2 / lrs[1])
    if best == lrs[-1]:
        return _rounded(lrs[-1] ** 2 / lrs[-2])
    return None


def _rounded(lr: float) -> float:
    return float(f"{lr:.2g}")


def _lr(result: Result) -> float:
    optim = result.run.config["optim"]
    assert isinstance(optim, dict)
    return float(optim["lr"])


def main() -> None:
    raise SystemExit(cli.run_command(lambda: run_all(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
