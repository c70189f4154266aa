"""What a finished run kept of its pretrained model's invariances: matrices, measures, files, and a line for a person."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import LockedError, alone, check_writable, expanded, sha256_of, write_json
from gift_vit.common.hub import ADAPTER
from gift_vit.data.transforms import build_eval_transform
from gift_vit.explain.samples import spread_samples
from gift_vit.invariance.config import LEAST_IMAGES, InvarianceArguments
from gift_vit.invariance.figure import draw_matrices
from gift_vit.invariance.forgetting import forgetting_line, measure_forgetting
from gift_vit.invariance.inversion import Descent, noise_like
from gift_vit.invariance.kept import KeptInversion, count_steps
from gift_vit.invariance.known import Known, draw_known, known_dataset
from gift_vit.invariance.measures import GramPair, layer_measures, measure_intervals, number
from gift_vit.invariance.pair import headless, open_pair
from gift_vit.invariance.progress import steps_shown
from gift_vit.invariance.representations import Layers, open_layers
from gift_vit.invariance.sharing import gram_pair
from gift_vit.invariance.similarity import gram_cka
from gift_vit.results.kept import FOLDER, FORGETTING, RECORD
from gift_vit.runs.build import build_pretrained, resolve_device
from gift_vit.runs.run import Run

FORMATS = {RECORD: 2, FORGETTING: 1}
CONVERGED = 0.1  # the largest median error of a layer whose images count as represented alike
_OPTIONS = ("images", "layers", "split", "tokens", "steps", "optimizer", "step_size", "seed")
ESTIMATORS = {"biased": False, "unbiased": True}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """What is compared: two models without heads, and images.

    Attributes:
        images: (n, 3, H, W) in 0..1, on the CPU.
        names: Of the n images.
        pretrained: The run's backbone as it was before.
        tuned: The run's model.
        random: A model of the same architecture with random weights.
    """

    images: Tensor
    names: list[str]
    pretrained: KeptInversion
    tuned: KeptInversion
    random: Layers


def measure_runs(runs: Sequence[Run], arguments: InvarianceArguments) -> Iterator[str]:
    """Measure runs and write their files; a line for each.

    Raises:
        ConfigError: If one of them cannot be measured, or its files not be written; before anything is.
        RunError: If a model's representations are not finite, or the disk is full.
    """
    known = _known(runs, arguments)
    parts = {run.folder: _parts(run, arguments, known.get(run.folder)) for run in runs}
    left = [run for run in runs if not all(part.summary for part in parts[run.folder])]
    for run in left:
        check_writable(parts[run.folder][0].file.parent)
    for run in left if len(runs) > 1 else ():
        _ = compare(run, arguments) if arguments.images else open_pair(run, resolve_device(arguments.device))
    todo = list(runs)
    for wait in (False, True):
        for run in list(todo):
            number = f"run {runs.index(run) + 1} of {len(runs)}: " if len(runs) > 1 else ""
            lock = Path(run.config.paths.cache_root, "measuring", sha256(os.fsencode(run.folder.absolute())).hexdigest()[:32])
            own = alone(lock, wait) if run in left else nullcontext()
            with suppress(LockedError), own:  # another command may be at this run: it comes after the others
                line = "; ".join(part.summary or part.make(part, number) for part in parts[run.folder])
                todo.remove(run)
                yield f"{run.folder}: {line}"


@dataclass(frozen=True)
class _Part:
    """What is measured of a run and written into one record.

    Attributes:
        file: The record.
        made_of: The adapter and the options behind the record, as JSON has it.
        make: Measures it, given the part and what progress says of the run; returns what a person reads.
    """

    file: Path
    made_of: dict[str, Any]
    make: Callable[["_Part", str], str]

    @property
    def summary(self) -> str:
        """What a person reads, from the record of the same adapter and options; empty if there is none."""
        try:
            record = json.loads(self.file.read_text(encoding="utf-8"))
            return str(record["summary"]) if record["made_of"] == self.made_of else ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""


def _parts(run: Run, arguments: InvarianceArguments, known: Known | None) -> list[_Part]:
    folder = expanded(arguments.out or run.folder / FOLDER)
    adapter = sha256_of(run.folder / ADAPTER)
    parts = []
    if arguments.images:
        options = {name: getattr(arguments, name) for name in _OPTIONS}
        made_of = {"format": FORMATS[RECORD], "adapter_sha256": adapter, **options}
        parts.append(_Part(folder / RECORD, made_of, partial(_measure_invariances, run, arguments)))
    if known is not None:
        made_of = {"format": FORMATS[FORGETTING], "adapter_sha256": adapter, "on": json.loads(json.dumps(known.facts))}
        parts.append(_Part(folder / FORGETTING, made_of, partial(_measure_forgetting, run, arguments, known)))
    return parts


def _measure_invariances(run: Run, arguments: InvarianceArguments, part: _Part, told: str) -> str:
    found = measure_run(compare(run, arguments), arguments, told)
    seen = arguments.split in {"train", "trainval"} or (arguments.split == "val" and run.config.train_split == "trainval")
    origin = {**_origin(run, part), "split": arguments.split, "seen_in_training": seen}
    draw_matrices(found["layers"], found["unbiased"], [part.file.with_suffix(f".{kind}") for kind in ("png", "pdf")])
    line = _line(found)
    write_json(part.file, _plain({**origin, **found, "summary": line, "made_of": part.made_of}))  # last: with it all is done
    return line


def _measure_forgetting(run: Run, arguments: InvarianceArguments, known: Known, part: _Part, told: str) -> str:
    del told
    device = resolve_device(arguments.device)
    found = measure_forgetting(run, open_pair(run, device), known, device)
    line = forgetting_line(found)
    write_json(part.file, _plain({**_origin(run, part), **found, "summary": line, "made_of": part.made_of}))
    return line


def _known(runs: Sequence[Run], arguments: InvarianceArguments) -> dict[Path, Known]:
    """The images that forgetting is measured on, for each run; they are drawn once for all that look in the same place."""
    if arguments.forgetting is None:
        return {}
    configs = {run.folder: known_dataset(run, arguments) for run in runs}
    drawn: list[Known] = []
    for config in configs.values():
        if all(known.config != config for known in drawn):
            drawn.append(draw_known(config, arguments.per_class, arguments.seed))
    return {folder: next(known for known in drawn if known.config == config) for folder, config in configs.items()}


def compare(run: Run, arguments: InvarianceArguments) -> Compared:
    """The models and images of a finished run, on the device to use; nothing is inverted yet.

    Raises:
        ConfigError: If its data or weights are others now, there is no such split or layer, the split has too few images, or
            the run's method cannot be separated from its backbone.
    """
    device, cfg = resolve_device(arguments.device), run.config
    pair = open_pair(run, device)
    images, names = _read_images(run, pair.tuned, arguments)
    descent = Descent(arguments.steps, arguments.step_size, arguments.seed, arguments.optimizer)
    folder = Path(cfg.paths.cache_root, "inversions")

    def opened(model: nn.Module) -> Layers:
        try:
            return open_layers(model, arguments.blocks, arguments.tokens)
        except ConfigError as error:
            raise ConfigError(f"{run.folder}: {error}") from error

    def kept(model: nn.Module, facts: Any) -> KeptInversion:
        return KeptInversion(opened(model), facts, images, descent, folder, arguments.batch_size)

    untrained = replace(cfg.backbone, pretrained=False, weights=None)
    random = build_pretrained(replace(cfg, backbone=untrained, seed=cfg.seed + 1), run.num_classes)
    pretrained, tuned = kept(pair.pretrained, pair.facts), kept(pair.tuned, pair.tuned_facts)
    return Compared(images, names, pretrained, tuned, opened(headless(random, device)))


def measure_run(compared: Compared, arguments: InvarianceArguments, told: str = "") -> dict[str, Any]:
    """All matrices and measures; ``told`` is what progress says of the run."""
    both = [compared.pretrained, compared.tuned]
    with steps_shown(f"{told}inverting", count_steps(both)) as stepped:
        of_pretrained, of_tuned = (inversion.found(stepped) for inversion in both)
    pretrained, tuned, images = compared.pretrained.layers, compared.tuned.layers, compared.images
    descent = compared.pretrained.descent
    pairs = {
        "tuned_given_pretrained": gram_pair(tuned, images, of_pretrained.images),
        "pretrained_given_tuned": gram_pair(pretrained, images, of_tuned.images),
        "within_pretrained": gram_pair(pretrained, images, of_pretrained.images),
        "within_tuned": gram_pair(tuned, images, of_tuned.images),
        "random_given_pretrained": gram_pair(compared.random, images, of_pretrained.images),
    }
    noise = gram_pair(tuned, images, noise_like(images, arguments.seed)[None])
    errors = {"pretrained": of_pretrained.errors, "tuned": of_tuned.errors}
    names = pretrained.names
    return {
        "layers": names,
        "tokens": pretrained.tokens,
        "descent": descent.resolved(images.shape[-1]),
        "images": compared.names,
        "errors": {model: _describe_errors(names, values) for model, values in errors.items()},
        **{name: _matrices(pairs, noise, pretrained, unbiased) for name, unbiased in ESTIMATORS.items()},
    }


def _matrices(pairs: dict[str, GramPair], noise: GramPair, layers: Layers, unbiased: bool) -> dict[str, Any]:
    """Matrices by layer of the pretrained model (rows) and of the tuned one (columns), floors, and measures in both views."""
    forward, backward = pairs["tuned_given_pretrained"], pairs["pretrained_given_tuned"]
    views = {"pretrained": (forward, pairs["within_pretrained"]), "tuned": (backward, pairs["within_tuned"])}
    return {
        "stir": {name: pair.stir(unbiased) for name, pair in pairs.items()},
        "cka": gram_cka(backward.original[:, None], forward.original[None], unbiased),
        "floors": {
            "independent_images": forward.permuted(unbiased),
            "independent_images_of_tuned": backward.permuted(unbiased),
            "noise": noise.stir(unbiased)[0],
        },
        "measures": {
            f"invariances_of_{model}": {
                "by_layer": layer_measures(given.stir(unbiased), own.stir(unbiased), given.permuted(unbiased), layers.blocks),
                "means": measure_intervals(given, own, unbiased, blocks=layers.blocks, depth=layers.depth),
                "pooled": given.stir(unbiased)[-1, -1],
            }
            for model, (given, own) in views.items()
        },
    }


def _read_images(run: Run, model: nn.Module, arguments: InvarianceArguments) -> tuple[Tensor, list[str]]:
    data = run.data()
    transform = build_eval_transform(run.config.dataset.transform, input_statistics(model))
    samples = list(spread_samples(data, arguments.split, arguments.images))
    if len(samples) < LEAST_IMAGES:
        raise ConfigError(
            f"split={arguments.split}: {data.name} has {len(samples)} images there, and the unbiased estimator of CKA needs "
            f"{LEAST_IMAGES} or more; give another split"
        )
    if len(samples) < arguments.images:
        log.warning("%s has %d images in %s, and all are taken", data.name, len(samples), arguments.split)
    pixels = torch.stack([transform.finish(transform.prepare(sample.image, sample.name)) for sample in samples])
    return pixels.float() / 255, [sample.name for sample in samples]


def _origin(run: Run, part: _Part) -> dict[str, Any]:
    result = run.record()
    return {
        "format": part.made_of["format"],
        "run": run.config.run_name,
        "method": result.run.method,
        "dataset": result.run.dataset,
        "backbone": {"name": result.run.backbone, "weights_sha256": result.backbone["weights_sha256"]},
    }


def _describe_errors(names: Sequence[str], errors: Tensor) -> dict[str, dict[str, Any]]:
    """How far the descents came, relative: mean, median and 90th percentile of the images, by layer."""
    described = {}
    for name, own in zip(names, errors.double(), strict=True):
        median = float(own.quantile(0.5))
        described[name] = {
            "mean": float(own.mean()),
            "median": median,
            "p90": float(own.quantile(0.9)),
            "converged": median <= CONVERGED,
            "by_image": own,
        }
    return described


def _line(found: dict[str, Any]) -> str:
    """What a person reads of a run."""
    own = found["unbiased"]
    kept = own["measures"]["invariances_of_pretrained"]
    told = [f"{name} {_interval(kept['means']['all'][name])}" for name in ("retained", "forgotten", "compression")]
    floors = [own["floors"]["independent_images"], own["stir"]["random_given_pretrained"]]
    blocks = [number(float(floor.diagonal()[:-1].nanmean())) for floor in floors]
    pooled = [number(float(value)) for value in (kept["pooled"], *(floor[-1, -1] for floor in floors))]
    line = "{} (independent images {}, random weights {})".format(", ".join(told), *blocks)
    line += "; of the pooled vector {} (independent images {}, random weights {})".format(*pooled)
    for model, errors in found["errors"].items():
        far = [name for name, error in errors.items() if not error["converged"]]
        line += f"; not converged: layers {', '.join(far)} of the {model} model" if far else ""
    return line


def _interval(values: dict[str, float]) -> str:
    shown = {name: number(value) for name, value in values.items()}
    return shown["mean"] if math.isnan(values["low"]) else "{mean} [{low}, {high}]".format(**shown)


def _plain(value: Any) -> Any:
    """JSON's types; null for what is not defined."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
