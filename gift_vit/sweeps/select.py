"""From finished search runs to recipes: the best setting of every dataset and method by val top-1."""

import math
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from omegaconf import OmegaConf

from gift_vit.common import cli
from gift_vit.common.checks import Options, expect, writable_folder
from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.common.files import expanded, write_text
from gift_vit.common.programs import as_typed
from gift_vit.config.compose import conf_dir, config_dir_of, flatten
from gift_vit.config.keys import SPEED, identifying, one_form, own_backbone, score_order, tie_order
from gift_vit.config.loader import read_config
from gift_vit.results.collect import check_backbone, check_data, check_seeds, collect_results, labelled
from gift_vit.runs.result import Result, RunRecord
from gift_vit.runs.run import RUNS_ROOT
from gift_vit.sweeps.plan import Sweep, read_sweeps, unfinished

# what the final runs are told otherwise, or by the recipe
_OF_THE_SEARCH = ("sweep", "grid", "phase", "seed", "recipe", "run_name", "sweeper", "dataset", "method")
ALWAYS = ("optim.lr", "optim.weight_decay")  # named in every recipe, swept or not, of a method that is trained


_RECIPES = "recipe"  # the group that Hydra looks for below --config-dir


def _named_recipe(key: str, value: str) -> None:
    path = Path(value)
    expect(path.name == _RECIPES, key, value, f"a folder named {_RECIPES}, where Hydra looks, as {path / _RECIPES}")


@dataclass
class Arguments(Options):
    """Choose hyper-parameters from finished search runs and write them as recipes, which the final phase then uses.

        python -m experiments.select [root=outputs] [datasets=[cub]] [methods=[gift]] [out=conf/recipe] [replace=true]

    Attributes:
        root: the output folder of the sweeps (default: the environment variable GIFT_VIT_OUTPUT, else outputs)
        datasets: only these; without it every dataset that has search runs
        methods: only these; without it every method that has search runs
        protocol: only runs of this one; needed where a cell holds several
        backbone: only runs of this one; needed where a cell holds several
        out: folder of the recipes (default: recipe/ in the configuration's own folder)
        replace: write over a recipe of other data of the same name, another backbone or another protocol too

    Per dataset and method the setting with the highest val score after the last epoch (mean over seeds, if there are several);
    a tie goes to the smaller learning rate, then to the smaller weight decay, then to the smaller other values. Of knn and
    linear_exact the setting is what a run chose. Warns where the best value lies on the edge of its axis, and where runs are
    missing.
    Prints the command of the final runs with each. out=my_conf/recipe is for the recipes of one project; final runs that are
    given --config-dir my_conf find them.
    """

    root: str = RUNS_ROOT
    datasets: list[str] | None = None
    methods: list[str] | None = None
    protocol: str | None = None
    backbone: str | None = None
    out: Annotated[str | None, _named_recipe, writable_folder] = None
    replace: bool = False


_SHARES = (None, "exact")  # metrics that are on val shares of right answers


@dataclass(frozen=True)
class Setting:
    """One point of a grid: its values by key, the val top-1 of its runs by seed, and what they changed of the protocol.

    ``options`` are what its backbone was told beside the weights, see :func:`~gift_vit.config.keys.own_backbone`.
    ``overrides`` are the words of its first run, ``config_dir`` the folder of a person's own configuration that it was given.
    """

    values: Mapping[str, Any]
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    changes: Mapping[str, Any]
    options: Mapping[str, Any]
    overrides: tuple[str, ...]
    config_dir: Path | None

    @property
    def score(self) -> float:
        """Mean val top-1 in percent."""
        return fmean(self.scores)


@dataclass(frozen=True)
class Edge:
    """An axis on whose end the best value lies; ``values`` are those tried, in order."""

    key: str
    best: float
    values: tuple[float, ...]

    @property
    def side(self) -> str:
        """Which end."""
        return "lowest" if self.best == self.values[0] else "highest"


@dataclass(frozen=True)
class Choice:
    """The chosen setting of one dataset and method.

    Attributes:
        settings: All that were tried, the best first.
        edges: Where the best one lies on the end of an axis.
        near: How many of the first settings the val split cannot tell from the best: they are behind it by less than one
            standard error of its score, √(p (1 − p) / n) for a share p of n images; of other scores it is not known, and
            taken for 0.
        score_name: What the score is, in a sentence.
        data: Fingerprint of the data that all were trained on.
        own_data: The words that name a person's own data, which has no configuration of its name.
        warnings: What a person should know before relying on the choice.
    """

    dataset: str
    method: str
    backbone: str
    protocol: str
    settings: tuple[Setting, ...]
    edges: tuple[Edge, ...]
    near: int
    warnings: tuple[str, ...]
    score_name: str
    data: str
    own_data: tuple[str, ...]


def choose(runs: Sequence[Result], sweeps: Sequence[Sweep] = ()) -> Choice:
    """The best setting among the search runs of one dataset and one method.

    Raises:
        ConfigError: If a run has no val score, the runs differ in what a choice must share, or two runs of one setting claim a
            seed.
    """
    first = runs[0].run
    _check_comparable(runs)
    configs = {id(run): identifying(run.run.config) for run in runs}
    _check_same_sources(runs, configs)
    swept = _varying(list(configs.values()))
    fitted = list(_fitted(runs[0]))
    keys = list(dict.fromkeys([*(fitted or ALWAYS), *swept, *_given(runs, configs[id(runs[0])])]))
    tried = {key: [value for config in configs.values() for value in config[key]] for key in fitted}
    for run in runs:  # of the values that a fitted method was given, the one that its run chose
        configs[id(run)].update({key: [value] for key, value in _fitted(run).items()})
    by_setting: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for run in runs:
        by_setting[tuple(_text(configs[id(run)][key]) for key in keys)].append(run)
    settings = []
    for same in by_setting.values():
        values = {key: configs[id(same[0])][key] for key in keys}
        check_seeds(same, f"one setting of {first.method} on {first.dataset}")
        changes = {key: used for key, (_, used) in same[0].run.protocol_changes.items()}
        scores = {run.run.seed: _val_top1(run) for run in sorted(same, key=lambda run: run.run.seed)}
        told = tuple(same[0].run.overrides), config_dir_of(shlex.split(same[0].run.command))[0]
        options = own_backbone(same[0].run.config)
        settings.append(Setting(values, tuple(scores), tuple(scores.values()), changes, options, *told))
    settings.sort(key=lambda setting: (score_order(setting.score), tie_order(setting.values)))
    edges, near = tuple(_edges(settings, swept)), _near(settings, runs[0])
    warnings = [f"the best {edge.key}, {edge.best}, is the {edge.side} of its axis: widen the grid" for edge in edges]
    warnings += [*_ends(settings[0], tried), *_gaps(settings, swept)]
    warnings += [
        f"runs of different {key} are compared, which the protocol sets: move those that do not belong away"
        for key in swept
        if key.startswith("trainer.") and any(key in run.run.protocol_changes for run in runs)
    ]
    if len({len(setting.scores) for setting in settings[:near]}) > 1:
        warnings.append("settings within one standard error of the best have different numbers of seeds")
    labels = first.dataset, first.method, first.backbone, first.protocol
    if missing := unfinished(sweeps, *labels):
        warnings.append(f"{missing} runs that were asked for are not finished; see python -m experiments.status")
    data = runs[0].data.fingerprint, _own_data(first)
    return Choice(*labels, tuple(settings), edges, near, tuple(warnings), runs[0].score_name, *data)


def _own_data(run: RunRecord) -> tuple[str, ...]:
    """Of data that is named after its kind and folder, as ``folder_birds``; other names are those of files."""
    dataset: Any = run.config.get("dataset", {})
    kind, root = dataset.get("kind"), dataset.get("root")
    is_own = run.benchmark == "own" and root and run.dataset.startswith(f"{kind}_")
    return (f"dataset={kind}", f"dataset.root={root}") if is_own else ()


def final_command(choice: Choice, folder: Path | None = None) -> str:
    """The command of the final runs: what the search was told, but for what it searched over.

    Args:
        choice: The choice.
        folder: Where its recipe lies; None: in ``conf/recipe``.

    Raises:
        ConfigError: If Hydra would not find the recipe in that folder beside the configuration of the search.
    """
    best = choice.settings[0]
    typed = {word.partition("=")[0]: word for word in (*choice.own_data, *best.overrides)}
    chosen = [typed.get(key, f"{key}={getattr(choice, key)}") for key in ("dataset", "method")]
    kept = [word for key, word in typed.items() if key not in (*_OF_THE_SEARCH, *best.values) and "hydra" not in key]
    parent = best.config_dir if folder is None else folder.parent
    if best.config_dir is not None and parent is not None and not _may_be(best.config_dir, parent):
        seen_from = "" if best.config_dir.is_dir() else ", as seen from where the search was started"
        raise ConfigError(
            f"the search of {choice.method} on {choice.dataset} had --config-dir {best.config_dir}, and Hydra takes one: "
            f"give out={best.config_dir / _RECIPES}{seen_from}"
        )
    place = [] if parent is None else ["--config-dir", str(parent)]
    return shlex.join(["python", "-m", "gift_vit.train", *place, "sweep=final", *chosen, *kept])


def recipe_text(choice: Choice, folder: Path | None = None) -> str:
    """The recipe's YAML: the chosen values, and in its header the numbers behind them and :func:`final_command`."""
    keys = list(choice.settings[0].values)
    rows = [[*keys, f"val {choice.score_name} %", "seeds"]]
    rows += [[*(str(s.values[key]) for key in keys), f"{s.score:.2f}", ",".join(map(str, s.seeds))] for s in choice.settings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["#   " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    best = choice.settings[0]
    chosen_with = {key: getattr(choice, key) for key in ("dataset", "method", "backbone", "protocol")}
    node = OmegaConf.create({"recipe": {**chosen_with, "data": choice.data}})
    node.recipe.update(changes=dict(best.changes), options=dict(best.options))
    for key, value in best.values.items():
        OmegaConf.update(node, key, value)
    lines = [
        "# @package _global_",
        f"# Chosen by python -m experiments.select for {choice.method} on {choice.dataset}: the first of",
        *table,
        *([f"# The first {choice.near} lie within one standard error of the best on val."] if choice.near > 1 else []),
        *(f"# Note: {warning}" for warning in choice.warnings),
        f"# {final_command(choice, folder)}",
    ]
    return as_typed("\n".join(lines)) + "\n" + OmegaConf.to_yaml(node)


def select(cfg: Arguments) -> None:
    """Choose, tell, and write a recipe for every dataset and method that has search runs."""
    searches = [run for run in collect_results(cfg.root) if run.run.phase == "search"]
    found = labelled(searches, protocol=cfg.protocol, backbone=cfg.backbone)
    wanted = [run for run in found if _asked(cfg.datasets, run.run.dataset) and _asked(cfg.methods, run.run.method)]
    for key, names, there in (
        ("datasets", cfg.datasets, {run.run.dataset for run in wanted}),
        ("methods", cfg.methods, {run.run.method for run in wanted}),
    ):
        absent = [name for name in names or () if name not in there]
        if wanted and absent:
            known = ", ".join(sorted(there))
            raise ConfigError(
                f"{key}: no finished search run of {absent[0]}{did_you_mean(absent[0], there)} (there are: {known})"
            )
    if not wanted:
        raise ConfigError(
            f"no finished search run among {len(found)} below {cfg.root}; "
            "run python -m gift_vit.train sweep=<dataset> method=<method> first"
        )
    sweeps = read_sweeps(expanded(cfg.root))
    wanted.sort(key=lambda run: (run.run.dataset, run.run.method))
    cells = [list(cell) for _, cell in groupby(wanted, key=lambda run: (run.run.dataset, run.run.method))]
    folder, own = expanded(cfg.out) if cfg.out else None, conf_dir() / _RECIPES
    out = folder or own
    choices = [choose(cell, sweeps) for cell in cells]
    paths = [out / f"{choice.dataset}_{choice.method}.yaml" for choice in choices]
    texts = [recipe_text(choice, folder) for choice in choices]
    for choice, path in zip(choices, paths, strict=True):
        if (first := own / path.name).is_file() and first.resolve() != path.resolve():
            raise ConfigError(f"{first} has that name too, and is not to be had beside {path}; move it away, or leave out= out")
        if not cfg.replace:
            _check_same_choice(choice, path)
    for choice, path, text in zip(choices, paths, texts, strict=True):  # all or none
        write_text(path, text)
        best = choice.settings[0]
        listed = " ".join(f"{key}={value}" for key, value in best.values.items())
        count = len(choice.settings)
        how = f"best of {count} settings" if count > 1 else "the only setting"
        print(f"{path}: {listed} (val {choice.score_name} {best.score:.2f} %, {how})")
        print(as_typed(f"  then: {final_command(choice, folder)}"))
        for warning in choice.warnings:
            print(as_typed(f"warning: {choice.method} on {choice.dataset}: {warning}"), file=sys.stderr)


def _check_same_choice(choice: Choice, path: Path) -> None:
    """Refuse to write over a recipe of something else: it goes by dataset and method, and two projects may share the names."""
    there = read_config(path).get("recipe") if path.is_file() else None
    if there is None:
        return
    if not isinstance(there, Mapping):
        raise ConfigError(f"{path} says recipe: {there}, which select does not write; move the file away, or give replace=true")
    for key, what in (("data", "other data of this name"), ("backbone", "another backbone"), ("protocol", "another protocol")):
        if there.get(key, getattr(choice, key)) != getattr(choice, key):
            remedy = f"move it to a {_RECIPES}/ of its own, for --config-dir"
            raise ConfigError(f"{path} was chosen on {what}; {remedy}, or write over it with replace=true")


def _may_be(typed: Path, folder: Path) -> bool:
    """Whether a path that was typed is this folder: a relative one that is not there from here may be all that end so."""
    if typed.is_absolute() or typed.is_dir():
        return typed.resolve() == folder.resolve()
    named = Path(os.path.normpath(typed)).parts
    return folder.resolve().parts[-len(named) :] == named


def _check_comparable(runs: Sequence[Result]) -> None:
    """Scores may be compared where nothing but the configuration differs."""
    first = runs[0]
    for run in runs:
        for what, option in (("protocol", "protocol=<name>"), ("backbone", "backbone=<name>")):
            if getattr(run.run, what) != getattr(first.run, what):
                raise ConfigError(f"{first.source} and {run.source} have different {what}s; choose one with {option}")
        if (speed := _speed(run)) != _speed(first):
            raise ConfigError(
                f"{first.source} and {run.source} were computed with trainer.speed={_speed(first)} and {speed}, as a CPU and a "
                "GPU do; move those of one kind away and run them again as the others were"
            )
        if run.data.fingerprint != first.data.fingerprint:
            raise ConfigError(
                f"{first.source} and {run.source} were trained on different data; delete the runs of other data and start the "
                "sweep again"
            )
        if run.metrics["val_top1"] is None:
            raise ConfigError(f"{run.source} is a search run without val_top1; delete it and start the run again")


def _check_same_sources(runs: Sequence[Result], configs: Mapping[int, Mapping[str, Any]]) -> None:
    """Of one configuration of data and backbone, pictures and pretrained weights are the same, wherever they lie."""
    alike: dict[str, list[Result]] = defaultdict(list)
    for run in runs:
        own = {key: one_form(value) for key, value in configs[id(run)].items() if key.startswith(("backbone.", "dataset."))}
        alike[repr(sorted(own.items()))].append(run)
    for same in alike.values():
        check_backbone(same, "a choice")
        check_data(same, "a choice")


def _fitted(run: Result) -> dict[str, float]:
    """What a method chose by itself of the values that it was given, by key; the epoch that a run kept is none of them."""
    return {f"method.{key}": value for key, value in (run.run.chosen or {}).items() if key != "epoch"}


def _speed(run: Result) -> str:
    """``exact`` or ``auto``, as it is recorded: only a GPU has other speeds; versions without them were exact."""
    return "auto" if dict(flatten(run.run.config)).get(SPEED) == "auto" else "exact"


def _varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values differ among the runs, but for the seed."""
    keys = sorted({key for config in configs for key in config} - {"seed"})
    varying = [key for key in keys if len({_text(config.get(key)) for config in configs}) > 1]
    absent = [key for key in varying if any(key not in config for config in configs)]
    if absent:
        raise ConfigError(f"some search runs have {absent[0]} and some have not; move those of another version away")
    return varying


def _given(runs: Sequence[Result], config: Mapping[str, Any]) -> list[str]:
    """What the runs were told of method and optimiser, though they were all told the same."""
    words = [word.partition("=")[0].lstrip("+") for run in runs for word in run.run.overrides]
    return [key for key in dict.fromkeys(words) if key.startswith(("method.", "optim.")) and key in config]


def _edges(settings: Sequence[Setting], swept: Sequence[str]) -> Iterator[Edge]:
    """Axes on which the best value is the lowest or highest tried, and no value between scores the same.

    Of equal ones the smallest is chosen, so that an axis without effect would always be open. Below zero nothing can be tried.
    """
    for key in swept:
        values = sorted({setting.values[key] for setting in settings if _is_number(setting.values[key])})
        best = settings[0].values[key]
        if not _is_number(best):
            continue
        others = [name for name in settings[0].values if name != key]
        line = [setting for setting in settings if all(setting.values[name] == settings[0].values[name] for name in others)]
        equal = [setting.values[key] for setting in line if score_order(setting.score) == score_order(settings[0].score)]
        between = any(value in equal for value in values[1:-1])
        if len(values) > 1 and best in (values[0], values[-1]) and best != 0 and not between:
            yield Edge(key, best, tuple(values))


def _ends(best: Setting, tried: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Of a fitted method: options whose chosen value is the lowest or highest of those that its run tried."""
    for key, values in tried.items():
        [value] = best.values[key]
        one_neighbour = isinstance(value, int) and value == 1  # there are no fewer
        if len(values) > 1 and value in (min(values), max(values)) and not one_neighbour:
            yield f"the best {key}, {value:g}, is the {'lowest' if value == min(values) else 'highest'} tried: give more values"


def _near(settings: Sequence[Setting], run: Result) -> int:
    share, examples = settings[0].score / 100, run.data.val_images
    margin = 100 * math.sqrt(share * (1 - share) / examples) if examples and run.metric in _SHARES else 0.0
    return sum(settings[0].score - setting.score <= margin for setting in settings)


def _gaps(settings: Sequence[Setting], swept: Sequence[str]) -> list[str]:
    """Combinations of the values tried that were not tried themselves."""
    values = {key: {_text(setting.values[key]) for setting in settings} for key in swept}
    tried = {tuple(_text(setting.values[key]) for key in swept) for setting in settings}
    whole = prod(len(axis) for axis in values.values())
    warnings = []
    if len(tried) < whole:
        absent = next(point for point in product(*map(sorted, values.values())) if point not in tried)
        listed = " ".join(f"{key}={value}" for key, value in zip(swept, absent, strict=True))
        warnings.append(f"{whole - len(tried)} of the grid's {whole} settings have no finished run, as {listed}")
    return warnings


def _text(value: Any) -> str:
    return repr(one_form(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _val_top1(run: Result) -> float:
    top1 = run.metrics["val_top1"]
    assert top1 is not None, "checked by _check_comparable"
    return float(top1)


def _asked(names: Sequence[str] | None, name: str) -> bool:
    return names is None or name in names


def main() -> None:
    """Entry point of ``python -m experiments.select``."""
    cli.main(Arguments, select)
