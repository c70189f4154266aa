"""Whether a finished run is what its record says: checks that each give a sentence, or an error at the first untruth.

Imports torch only where the adapter is scored again.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import read_json_lines, sha256_of
from gift_vit.config.keys import best_of, config_difference
from gift_vit.config.loader import protocol_changes
from gift_vit.engine.observer import best_epoch
from gift_vit.methods.config import Candidates
from gift_vit.runs.result import ANSWERS, PREDICTIONS, Result
from gift_vit.runs.run import ADAPTER, CONFIG, METRICS, RESULT, Run, finished_below

SHARE = 0.01  # of the images may be predicted otherwise by another processor or number format
_LOSS_STEPS = 2.0**-9  # of the largest logit: what rounding to float16 may do to the loss of an image
_TOLERANCES = {"temperature": 1e-2, "ece_scaled": 1e-2}  # found by a search, which ends where its steps are small
_LABELS = {
    **{"phase": ("phase",), "seed": ("seed",), "name": ("run_name",), "benchmark": ("dataset", "benchmark")},
    **{key: (key, "name") for key in ("dataset", "method", "backbone", "protocol")},
    "kind": ("method", "kind"),
}  # of the record, and where the configuration has them
# Kinds whose files hold what is trained and nothing else, if no option adds frozen tensors; and those that add no parameters.
_TRAINED_ALONE = (
    *("linear", "linear_exact", "full", "bitfit", "gift", "gift_hf", "lora", "vpt", "ssf"),
    *("adapter", "adaptformer", "convpass", "fact", "repadapter"),
)
_ADDS_NOTHING = ("linear", "linear_exact", "full", "bitfit", "knn")


class Untruth(RunError):
    """The record says something that is not so."""


class NoPredictions(ConfigError):
    """The run is older than kept predictions, and all else is so."""


class NoAdapter(ConfigError):
    """The run's adapter was not kept, and all else is so."""


def verify_run(run: Run, score: bool = True, device: str = "auto") -> Iterator[str]:
    """What was checked, a sentence each.

    Args:
        run: A finished run.
        score: Score the adapter again where the run's data is there.
        device: Where to score it.

    Raises:
        Untruth: At the first one.
        ConfigError: If the run is not finished, or its files cannot be read; after all other checks, if its adapter is gone, or
            its data is not where it was said to be.
    """
    result = run.record("to verify")
    of_adapter: list[Callable[[Run, Result], str]] = [_check_adapter] if (run.folder / ADAPTER).is_file() else []
    checks = [_check_labels, _check_files, _check_numbers, _check_epochs, *of_adapter]
    if run.is_pushed:
        checks = [_check_labels, _check_pushed, _check_numbers, *of_adapter]
    else:
        checks += [_check_chosen] if isinstance(run.config.method, Candidates) else []
        checks += [_check_predictions] if result.predictions is not None else []
    for check in checks:
        yield check(run, result)
    if (run.folder / ANSWERS).is_dir():
        yield _check_answers(run, result)
    if not of_adapter:
        raise NoAdapter(f"{run.folder}: {ADAPTER} is not there, so what was trained cannot be verified; all else holds")
    if score:
        yield _score_again(run, result, device)
    if result.predictions is None and result.files is None:  # others keep none because they were told so
        raise NoPredictions(f"{run.folder} keeps no predictions, and its scores are not verified; {run.how_to_predict()}")


def verify_runs(root: str, dataset_root: str | None = None, score: bool = True, device: str = "auto") -> Iterator[str]:
    """A line for every finished run below a folder: how many checks hold, or what is not so.

    Raises:
        ConfigError: If there is no finished run.
        RunError: After all runs, if one of them is not what its record says, or cannot be read or scored. A run that is older
            than kept predictions is neither.
    """
    runs = [replace(run, dataset_root=dataset_root) for run in finished_below(root)]
    failed = 0
    for run in runs:
        try:
            lines = list(verify_run(run, score, device))
        except NoPredictions as error:  # noqa: PERF203 - one run is not the next one's matter
            yield f"ok but for its scores: {error}"
        except (RunError, ConfigError) as error:
            failed += 1
            where = "" if str(run.folder) in str(error) else f"{run.folder}: "
            yield f"{'UNTRUE' if isinstance(error, Untruth) else 'UNVERIFIED'}: {where}{error}"
        except Exception as error:  # nobody has foreseen it, and the runs after this one are to be looked at
            failed += 1
            yield f"UNVERIFIED: {run.folder}: {type(error).__name__}: {' '.join(str(error).split())}"
        else:
            yield f"ok: {run.folder}: {len(lines)} checks hold; {lines[-1]}"
    if failed:
        raise RunError(f"{failed} of {len(runs)} runs below {root} are not what their records say, or cannot be verified")


def _claim(run: Run, holds: bool, otherwise: str) -> None:
    if not holds:
        raise Untruth(f"{run.folder}: {otherwise}")


def _check_labels(run: Run, result: Result) -> str:
    for name, path in _LABELS.items():
        value: Any = result.run.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        _claim(run, value == getattr(result.run, name), f"{RESULT} says {name} {getattr(result.run, name)}, its config {value}")
    differences = config_difference(run.values, result.run.config)
    for key, (there, recorded) in differences.items():
        _claim(run, _has_moved(key, there, recorded), f"{key} is {there} in {CONFIG}, {recorded} in {RESULT}")
    changes = protocol_changes(replace(run.config, values=result.run.config))
    for key, (ruled, used) in changes.items():
        told = result.run.protocol_changes.get(key, "no change")
        _claim(run, told == [ruled, used], f"the protocol says {key} {ruled}, the run used {used}; {RESULT} says {told}")
    expected = run.config.train_split
    _claim(run, result.data.train_split == expected, f"trained on {result.data.train_split}, its protocol says {expected}")
    return f"{CONFIG} and {RESULT} name the same run"


def _has_moved(key: str, there: Any, recorded: Any) -> bool:
    """Whether both name pretrained weights, at two places; which weights they are, their fingerprints say."""
    a_folder = key == "backbone.model" and Path(str(there)).is_absolute()
    return bool(there and recorded) and (key == "backbone.weights" or a_folder)


def _check_files(run: Run, result: Result) -> str:
    known, predicted = result.files, (run.folder / PREDICTIONS).is_file()
    otherwise = f"is there, {RESULT} knows none" if predicted else f"is not there, {RESULT} has its scores"
    _claim(run, predicted == (result.predictions is not None), f"{PREDICTIONS} {otherwise}")
    if known is None:
        return f"no hashes to compare: {RESULT} is of a version that kept none"
    needed = {ADAPTER, METRICS} | ({PREDICTIONS} if predicted else set())
    _claim(run, needed <= known.keys(), f"{RESULT} has no hash of {', '.join(sorted(needed - known.keys()))}")
    there = [name for name in known if name != ADAPTER or (run.folder / name).is_file()]  # without it all else is checked first
    for name in there:
        file, expected = run.folder / name, known[name]
        _claim(run, file.is_file(), f"{name} is not there")
        _claim(run, sha256_of(file) == expected, f"{name} has another SHA-256 than {RESULT} says")
    return f"SHA-256 as recorded: {', '.join(there)}"


def _check_pushed(run: Run, result: Result) -> str:
    """Of what is pushed the adapter alone is byte for byte what was trained."""
    same = (result.files or {}).get(ADAPTER) in (None, sha256_of(run.folder / ADAPTER))
    _claim(run, same, f"{ADAPTER} has another SHA-256 than {RESULT} says")
    return f"SHA-256 as recorded: {ADAPTER}; {METRICS} and {PREDICTIONS} are not checked, for they are not pushed"


def _check_numbers(run: Run, result: Result) -> str:
    params, data, metrics = result.params, result.data, result.metrics
    percent = 100 * params.adapter / params.backbone
    _claim(run, math.isclose(params.percent, percent), f"params.percent is {params.percent}, adapter / backbone {percent}")
    for split in ("val", "test"):
        top1, images = metrics[f"{split}_top1"], getattr(data, f"{split}_images")
        if top1 is not None and result.metric is None:
            hits = top1 * (images or 0) / 100
            whole = bool(images) and abs(hits - round(hits)) < 1e-6
            _claim(run, whole, f"{split}_top1 {top1} is no share of {images} {result.thing}s")
    scores = "top-1" if result.thing == "image" else "scores"
    shares = "" if result.metric else f"{scores} are shares of the {result.thing}s, "
    return f"{shares}params.percent is adapter / backbone"


def _check_epochs(run: Run, result: Result) -> str:
    records, count = run.curve(), result.metrics["epochs"]
    _claim(run, [record["epoch"] for record in records] == list(range(len(records))), f"{METRICS} misses an epoch")
    _claim(run, len(records) == count, f"{METRICS} has {len(records)} epochs, {RESULT} {count}")
    fitted = isinstance(run.config.method, Candidates)
    expected = 1 if fitted else run.config.stop_epoch or run.config.trainer.epochs
    _claim(run, count == expected, f"{RESULT} has {count} epochs, its config {expected}")
    scored = [record["val_top1"] for record in records if "val_top1" in record]
    val = scored[-1] if scored else None
    if run.config.protocol.kept_epoch == "best" and (best := best_epoch(records)) is not None:
        val, chosen, told = max(scored), {"epoch": best}, result.run.chosen
        _claim(run, told == chosen, f"{RESULT} says {told} was chosen, the best of {METRICS} is {chosen}")
    found = {"train_loss": records[-1].get("train_loss"), "val_top1": val}
    for name, value in found.items():
        _claim(run, value == result.metrics[name], f"{name} ends with {value} in {METRICS}, {result.metrics[name]} in {RESULT}")
    return f"{METRICS}: {count} epochs, which end with the recorded loss and val {result.score_name}"


def _check_chosen(run: Run, result: Result) -> str:
    """A fitted method's setting is the best on val of those of the configuration."""
    assert isinstance(run.config.method, Candidates)
    settings, chosen = run.config.method.settings(), result.run.chosen
    source = "val" if len(settings) > 1 else "config"
    _claim(run, chosen in settings, f"{RESULT} says {chosen} was chosen, which is none of the config's settings")
    _claim(run, result.run.chosen_on == source, f"{RESULT} says {chosen} was chosen on {result.run.chosen_on}, not on {source}")
    if len(settings) == 1:
        return f"{chosen} is the config's only setting"
    scored = [record for record in run.metrics() if "epoch" not in record]
    told = [{key: record.get(key) for key in settings[0]} for record in scored]
    whole = told == settings and all("val_top1" in record for record in scored)
    _claim(run, whole, f"{METRICS} has not one line for each of the config's {len(settings)} settings")
    top1 = [record["val_top1"] for record in scored]
    best = settings[best_of(settings, top1)]
    _claim(run, chosen == best, f"{RESULT} says {chosen} was chosen, the best of {METRICS} is {best}")
    val = result.metrics["val_top1"]
    _claim(run, val in (None, max(top1)), f"val_top1 is {val} in {RESULT}, {max(top1)} of the chosen setting in {METRICS}")
    return f"{chosen} is the best of {len(settings)} settings on val"


def _check_adapter(run: Run, result: Result) -> str:
    file = run.folder / ADAPTER
    size = file.stat().st_size
    _claim(run, size == result.cost.adapter_bytes, f"{ADAPTER} has {size} bytes, {RESULT} says {result.cost.adapter_bytes}")
    try:
        with safe_open(file, framework="np") as adapter:
            sizes = {name: math.prod(adapter.get_slice(name).get_shape()) for name in adapter.keys()}  # noqa: SIM118
            facts = {key: json.loads(value) for key, value in (adapter.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise Untruth(f"{run.folder}: {ADAPTER} cannot be read: {error}") from error
    _claim(run, facts.get("dataset") == result.data.name, f"{ADAPTER} is of dataset {facts.get('dataset')}")
    method = facts.get("method", {})
    kind = method.get("kind")
    _claim(run, kind == result.run.kind, f"{ADAPTER} is of method {kind}, {RESULT} says {result.run.kind}")
    _check_options(run, method)
    _check_counts(run, result, method, sizes)
    for key, value in facts.get("backbone", {}).items():
        recorded = result.backbone.get(key)
        _claim(run, value == recorded, f"{key} of the backbone is {value} in {ADAPTER}, {recorded} in {RESULT}")
    return f"{ADAPTER}: {sum(sizes.values()):,} parameters of {kind} on the recorded backbone, as they are counted"


def _check_options(run: Run, method: dict[str, Any]) -> None:
    """The options that the adapter's file and the configuration both have; one of them may be older than an option."""
    options = json.loads(json.dumps(asdict(run.config.method)))
    if options.get("weights"):
        options["weights"] = Path(options["weights"]).name  # the file has no more of it
    for key, value in options.items():
        same = key not in method or method[key] == value
        _claim(run, same, f"method.{key} is {method.get(key)} in {ADAPTER}, {value} in {CONFIG}")


def _check_counts(run: Run, result: Result, method: dict[str, Any], sizes: dict[str, int]) -> None:
    """The record's parameters are those in the adapter's file, by role, and the whole model's as many more as are added."""
    params, found, kind = result.params, sum(sizes.values()), result.run.kind
    frozen = any(method.get(key) for key in ("phi_bias", "psi_bias", "freeze_a")) or method.get("init") == "pissa"
    alone, trained = kind in _TRAINED_ALONE and not frozen, params.adapter + params.head
    holds = found == trained if alone else found >= trained
    _claim(run, holds, f"{ADAPTER} holds {found} parameters, {RESULT} says {trained}")
    head = sum(size for name, size in sizes.items() if name.startswith("head"))  # as timm's ViTs call it
    if head and result.thing == "image" and kind not in ("full", "knn"):
        _claim(run, head == params.head, f"{ADAPTER} has a head of {head} parameters, {RESULT} says {params.head}")
    plain = params.backbone + params.head
    most = plain if kind in _ADDS_NOTHING else params.backbone + found
    least = most if alone and not method.get("train_norms") else plain  # norms are the backbone's own
    otherwise = f"params.total is {params.total}, by backbone and {ADAPTER} it is "
    _claim(run, least <= params.total <= most, otherwise + (str(most) if least == most else f"{least} to {most}"))


def _check_predictions(run: Run, result: Result) -> str:
    from gift_vit.runs.predictions import describe, read_predictions
    from gift_vit.runs.scores import task_scores

    recorded = result.predictions
    assert recorded is not None
    try:
        kept = read_predictions(run.folder / PREDICTIONS)
    except ConfigError as error:
        raise Untruth(f"{run.folder}: {error}") from error
    own = run.split()
    _claim(run, next(iter(kept)) == own == recorded.split, f"{PREDICTIONS} is of {', '.join(kept)}, the run is scored on {own}")
    for split, predictions in kept.items():
        top1, loss = (result.metrics.get(f"{split}_{key}") for key in ("top1", "loss"))
        expected = getattr(result.data, f"{split}_images"), result.data.num_classes
        shape = predictions.logits.shape
        _claim(run, shape == expected, f"{PREDICTIONS} has ({result.thing}s, classes) {shape} of {split}, {RESULT} {expected}")
        metric = result.metric or "accuracy"
        found = task_scores(predictions.logits, predictions.labels, [metric])[metric]
        same = top1 is not None and math.isclose(found, top1)
        _claim(run, same, f"{split} {result.score_name} is {found} by {PREDICTIONS}, {top1} by {RESULT}")
        if loss is not None:
            _check_loss(run, predictions, loss)
    again = describe(list(kept.values()))
    counted = f"{RESULT} says {recorded.images} {result.thing}s are kept, there are {again.images}"
    _claim(run, again.images == recorded.images, counted)
    _claim(run, again.scores.keys() == recorded.scores.keys(), f"{RESULT} has other scores than {', '.join(again.scores)}")
    for name, value in again.scores.items():
        same = _close(value, recorded.scores[name], _TOLERANCES.get(name, 1e-6))
        _claim(run, same, f"{name} is {value} by {PREDICTIONS}, {recorded.scores[name]} by {RESULT}")
    _claim(run, again.confusions == recorded.confusions, f"the confusions of {RESULT} are not those of {PREDICTIONS}")
    return f"{PREDICTIONS}: {len(kept[own].images):,} {result.thing}s of {own} give every recorded score"


def _check_answers(run: Run, result: Result) -> str:
    """What was said to the questions of each test set gives the recorded scores."""
    from gift_vit.data.questions import set_scores

    right = {file.stem: _right_answers(run, file) for file in sorted((run.folder / ANSWERS).glob("*.jsonl"))}
    scores = set_scores(right)
    recorded = {**(result.extra_metrics or {}), "exact": result.metrics["test_top1"]}
    _claim(run, scores.keys() == recorded.keys(), f"{RESULT} has other scores than {ANSWERS}: {', '.join(sorted(scores))}")
    for name, score in scores.items():
        _claim(run, _close(score, recorded[name], 1e-6), f"{name} is {score} by {ANSWERS}, {recorded[name]} by {RESULT}")
    return f"{ANSWERS}: those to {len(right)} test sets give every recorded score"


def _right_answers(run: Run, file: Path) -> list[dict[str, bool]]:
    from gift_vit.data.questions import right_by

    try:
        return [right_by(row["text"], row["answer"], file.stem) for row in read_json_lines(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Untruth(f"{run.folder}: {ANSWERS}/{file.name} cannot be read ({error!r})") from error


def _check_loss(run: Run, predictions: Any, recorded: float) -> None:
    from gift_vit.runs.scores import negative_log_likelihood

    found = negative_log_likelihood(predictions.logits, predictions.labels)
    rounding = _LOSS_STEPS * float(np.abs(predictions.logits.astype(np.float64)).max(1).mean()) + 1e-4
    name = f"the loss on {predictions.split}"
    _claim(run, abs(found - recorded) <= rounding, f"{name} is {found} by {PREDICTIONS}, {recorded} by {RESULT}")


def _close(found: float | None, recorded: float | None, tolerance: float) -> bool:
    if found is None or recorded is None:
        return found is recorded
    return math.isclose(found, recorded, rel_tol=tolerance, abs_tol=tolerance)


def _score_again(run: Run, result: Result, device: str) -> str:
    """Score the adapter on the data, where it is there, and compare image by image."""
    try:
        run.config.dataset.check_present()
    except ConfigError:
        if run.dataset_root is not None:
            raise
        return "not scored again: its data is not there (dataset_root=<folder> says where it is)"
    from gift_vit.data.ids import image_ids
    from gift_vit.runs.build import finished_model  # torch
    from gift_vit.runs.finished import score_model

    try:
        data = run.data()
    except ConfigError as error:
        raise Untruth(str(error)) from error
    split = run.split()
    model, counts = finished_model(run, device)
    recorded = {key: value for key, value in asdict(result.params).items() if key in counts}
    _claim(run, counts == recorded, f"the model has the parameters {counts}, {RESULT} says {recorded}")
    scores = score_model(run, model, data, split, keep_logits=True)
    allowed = math.ceil(SHARE * scores.images)
    if result.predictions is None or run.is_pushed:
        top1 = result.metrics[f"{split}_top1"]
        difference = math.inf if top1 is None else abs(scores.top1 - top1)
        name = f"{split} {result.score_name}"
        holds = difference * scores.images / 100 <= allowed + 0.5  # rounded, as many images
        _claim(run, holds, f"{name} is {scores.top1} scored again, {top1} in {RESULT}")
        if result.metric is not None:
            return f"scored again: {name} {scores.top1:.2f} %, {difference:.2f} from the recorded one"
        off = round(difference * scores.images / 100)
        return f"scored again: {name} {scores.top1:.2f} %, {off} {result.thing}s from the recorded one"
    assert scores.logits is not None
    kept = run.predictions()
    same = kept.images == image_ids(data, split) and kept.labels.tolist() == data.split(split).labels.tolist()
    _claim(run, same, f"{PREDICTIONS} has other {result.thing}s or labels of {split} than {data.name}")
    differing = int((scores.logits.argmax(1) != kept.predicted).sum())
    things = f"{result.thing}s are predicted otherwise"
    _claim(run, differing <= allowed, f"{differing} of {scores.images} {things} when it is scored again")
    return f"scored again: {differing} of {scores.images:,} {things}"
