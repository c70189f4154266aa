"""The mini benchmark's order of work and its choice of learning rates, on sweeps that write fabricated results."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.mini import METHODS, Arguments, Benchmark, run_all
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.errors import ConfigError, RunError
from gift_vit.results.schema import write_result
from tests.results.conftest import make_result


class Sweeps:
    """In place of the training command: every run that a sweep stands for, as a result whose val score peaks at ``best``."""

    def __init__(self, best: Callable[[str, str], float], lost: tuple[str, ...] = ()) -> None:
        self.best, self.lost, self.words, self.runs = best, lost, [], []

    def __call__(self, benchmark: Benchmark, *words: str) -> bool:
        given = dict(word.split("=", 1) for word in words)
        method, phase = given["method"], given["phase"]
        self.words.append(given)
        root = Path(given["paths.output_root"])
        if root.parent.name == "timing":
            return True
        for dataset, lr, seed in itertools.product(*(given[key].split(",") for key in ("dataset", "optim.lr", "seed"))):
            self.runs.append((root.name, phase, dataset, method, float(lr), int(seed)))
            if dataset in self.lost:
                continue
            score = 90.0 - abs(math.log(float(lr) / self.best(method, dataset)))
            result = make_result(method, dataset, int(seed), None if phase == "search" else 80.0, {"optim.lr": float(lr)})
            result.metrics["val_top1"] = score if phase == "search" else None
            object.__setattr__(result.run, "phase", phase)
            write_result(root / phase / dataset / method / f"lr{lr}_seed{seed}" / "result.json", result)
        return not self.lost


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweeps]:
    def run(best: Callable[[str, str], float], lost: tuple[str, ...] = (), **words: object) -> Sweeps:
        sweeps = Sweeps(best, lost)
        monkeypatch.setattr(Benchmark, "_sweep", lambda self, *given: sweeps(self, *given))
        run_all(Arguments(output_root=str(tmp_path / "mini"), jobs=1, **words))  # pyright: ignore[reportArgumentType]
        return sweeps

    return run


def finals(sweeps: Sweeps, folder: str = "methods") -> set[tuple[str, str, float, int]]:
    return {
        (dataset, method, lr, seed) for f, phase, dataset, method, lr, seed in sweeps.runs if (f, phase) == (folder, "final")
    }


def test_finals_use_the_rate_that_is_best_on_val(run: Callable[..., Sweeps]) -> None:
    sweeps = run(
        lambda _, dataset: 0.01 if dataset == "digits" else 0.05,
        datasets=["digits", "cifar10_1k"],
        methods=["gift"],
        ablations=[],
    )
    assert finals(sweeps) == {(d, "gift", lr, s) for d, lr in (("digits", 0.01), ("cifar10_1k", 0.05)) for s in (0, 1, 2)}
    assert max(Counter(sweeps.runs).values()) == 1, "no run twice"


def test_the_grid_grows_towards_the_best_rate_and_stops(run: Callable[..., Sweeps], capsys: pytest.CaptureFixture[str]) -> None:
    best = {"digits": 0.25, "tiny_mammals": 1e-9}
    sweeps = run(lambda _, dataset: best[dataset], datasets=list(best), methods=["lora"], ablations=[])
    searched = {d: sorted(lr for _, phase, dataset, _, lr, _ in sweeps.runs if (phase, dataset) == ("search", d)) for d in best}
    assert searched == {"digits": [0.002, 0.01, 0.05, 0.25, 1.2], "tiny_mammals": [8e-05, 0.0004, 0.002, 0.01, 0.05]}
    told = capsys.readouterr().out
    assert "1.2: 88.43; chosen 0.25\n" in told
    assert "chosen 8e-05 (on the edge)\n" in told
    again = run(lambda _, dataset: best[dataset], datasets=list(best), methods=["lora"], ablations=[])
    assert {lr for _, phase, _, _, lr, _ in again.runs if phase == "search"} == {0.002, 0.01, 0.05}, "and grows no further"


def test_a_tie_goes_to_the_smaller_rate(run: Callable[..., Sweeps]) -> None:
    sweeps = run(lambda *_: math.sqrt(0.01 * 0.05), datasets=["digits"], methods=["gift"], ablations=[], seeds=[0])
    assert finals(sweeps) == {("digits", "gift", 0.01, 0)}


def test_every_cell_gets_its_first_seed_before_any_gets_its_second(run: Callable[..., Sweeps]) -> None:
    sweeps = run(lambda *_: 0.01, datasets=["digits"], methods=["linear", "gift"])
    order = [
        (given["paths.output_root"].rpartition("/")[2], given["seed"]) for given in sweeps.words if given["phase"] == "final"
    ]
    first = [("methods", "0"), ("methods", "0"), ("rank", "0"), ("targets", "0"), ("targets", "0")]
    assert order == first + [(folder, "1,2") for folder, _ in first]


def test_the_ablations_cover_what_they_should_with_one_rate(run: Callable[..., Sweeps]) -> None:
    sweeps = run(lambda *_: 0.05, datasets=["digits"], methods=["lora"], seeds=[0])
    assert finals(sweeps, "rank") == finals(sweeps, "targets") == {("digits", "gift", 0.01, 0)}
    rank, targets, shared = (g for g in sweeps.words if re.search("mini/(rank|targets)$", g["paths.output_root"]))
    assert {*map(int, rank["method.rank"].split(","))} == {1, 2, 4, 8, 16, 32, 64}
    listed = targets["method.target_modules"]
    for name in (
        "[attn.proj]",
        "[attn.q]",
        "[attn.k]",
        "[attn.v]",
        "[attn.qkv]",
        "[mlp.fc1]",
        "[mlp.fc2]",
        "[attn.qkv,attn.proj,mlp.fc1,mlp.fc2]",
    ):
        assert name in listed
    assert (shared["method.share"], shared["method.target_modules"]) == ("true", "[attn.qkv,attn.proj,mlp.fc1]")
    for given in (rank, targets, shared):
        words = [f"{key}={value}" for key, value in given.items() if key != "paths.output_root" and "," not in value]
        load_config(compose_config(words))


def test_step_times_are_taken_at_the_end_and_in_turns(run: Callable[..., Sweeps]) -> None:
    sweeps = run(lambda *_: 0.01, datasets=["digits"], methods=["linear", "gift"], seeds=[0])
    timing = [given for given in sweeps.words if "/timing/" in given["paths.output_root"]]
    assert sweeps.words[-len(timing) :] == timing
    assert [given["method"] for given in timing] == ["linear,gift", "gift", "gift", "gift"]
    folders = [Path(given["paths.output_root"]).name for given in timing]
    assert folders == ["methods", "rank", "targets", "targets"], "GIFT's ablations are not in the methods' table"
    for given in timing:
        assert next(iter(given)) == "seed", "Hydra's outermost loop"
        words = [f"{key}={value}" for key, value in given.items() if key != "paths.output_root" and "," not in value]
        assert load_config(compose_config(words)).trainer.epochs == 1


def test_a_dataset_that_fails_does_not_stop_the_others(run: Callable[..., Sweeps], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="some runs are missing; the same command runs only these"):
        run(lambda *_: 0.01, lost=("digits",), datasets=["digits", "cifar10_1k"], methods=["gift"], ablations=[])
    assert {path.parts[-4] for path in (tmp_path / "mini/methods/final").rglob("result.json")} == {"cifar10_1k"}


def test_mistakes_are_told_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="unknown ablation 'ranks' \\(known: rank, targets\\)"):
        Arguments(ablations=["ranks"])


def test_the_methods_of_the_paper_and_all_schemas_take_part() -> None:
    kinds = [load_config(compose_config(["experiment=mini", f"method={method}"])).values["method"] for method in METHODS]
    schemas = {"linear", "gelu", "sigmoid", "transformer", "paca_transformer", "paca_attn", "mlp", "mlp_mixer"}
    assert {values["schema"] for values in kinds if values["kind"] == "gift"} == schemas
    assert {values["kind"] for values in kinds} == {"linear", "full", "bitfit", "vpt", "adaptformer", "ssf", "lora", "gift"}
