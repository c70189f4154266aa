"""How well classifiers do on a model's features: the linear one and the k nearest neighbours that are methods, too."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gift_vit.acceleration.accelerate import accelerate
from gift_vit.common.files import alone
from gift_vit.common.tensors import read_made, tensors_digest, write_tensors
from gift_vit.config.keys import best_of
from gift_vit.config.run_config import RunConfig
from gift_vit.invariance.known import Known
from gift_vit.methods.config import KnnConfig, LinearExactConfig, spec_of
from gift_vit.methods.knn import fit_knn
from gift_vit.methods.linear_exact import fit_linear_exact
from gift_vit.runs.features import Features, compute_features
from gift_vit.runs.fitted import score_features

FORMAT = 1
# smaller penalties than these, which method=linear_exact tries too, never win with few images of a class, and take longest
CLASSIFIERS = {"linear": LinearExactConfig(penalty=[3e-3, 0.01, 0.03, 0.1, 0.3]), "knn": KnnConfig()}
_FITS = {"linear": partial(fit_linear_exact, tolerance=1e-6), "knn": fit_knn}  # with 1e-9: ten times as long, the same answers
DRIFT_IMAGES = 1000  # whose features are compared
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probed:
    """What is found of one model.

    Attributes:
        correct: Of each classifier: whether it is right on each of the N test images, (N,).
        chosen: Of each classifier: its setting.
        features: Of M ≤ 1,000 test images at equal distances, (M, d) in float32.
    """

    correct: dict[str, NDArray[np.bool_]]
    chosen: dict[str, dict[str, float]]
    features: Tensor


def probe(cfg: RunConfig, model: nn.Module, facts: Any, known: Known, device: torch.device) -> Probed:
    """Compute it, or read what an earlier command has kept below ``paths.cache_root``.

    Args:
        cfg: Of a run, for how images are loaded and where things are kept.
        model: Without a head, on the device; afterwards it may give out the class token alone.
        facts: What its function depends on beside its weights, as JSON has it.
        known: The images.
        device: Where to compute.

    Raises:
        ConfigError: If an image cannot be read or the cache cannot be written.
        RunError: If a feature is not finite, or the disk is full.
    """
    settings = {name: config.settings() for name, config in CLASSIFIERS.items()}
    key = json.dumps([FORMAT, facts, tensors_digest(model.state_dict()), known.facts, settings, DRIFT_IMAGES])
    file = Path(cfg.paths.cache_root, "forgetting", f"{sha256(key.encode()).hexdigest()[:32]}.safetensors")
    if found := read_made(file, _probed):
        return found
    with alone(file):
        if found := read_made(file, _probed):
            return found
        cfg = replace(cfg, dataset=known.config)
        accelerate(model, cfg.compute, cfg.trainer)
        train, test = (compute_features(cfg, model, known.data, split, device) for split in ("train", "test"))
        found = fit_classifiers(train, test, known.fitted, known.held_out, known.data.num_classes)
        tensors = {f"correct.{name}": torch.from_numpy(right) for name, right in found.correct.items()}
        write_tensors(file, {**tensors, "features": found.features}, {"chosen": json.dumps(found.chosen)})
    return found


def fit_classifiers(
    train: Features, test: Features, fitted: NDArray[np.intp], held_out: NDArray[np.intp], num_classes: int
) -> Probed:
    """Fit every classifier to the training features with the setting that is best on the held-out ones, and score test.

    Args:
        train: (N, d), with labels.
        test: (M, d), with labels.
        fitted: Indices of the training features that settings are fitted to, and
        held_out: of those that choose among them; of equal ones the smallest. The chosen one is then fitted to all.
        num_classes: Of the labels.
    """
    parts = [_of(train, indices) for indices in (fitted, held_out)]
    labels = test.labels.cpu().numpy()
    correct, chosen = {}, {}
    for name, config in CLASSIFIERS.items():
        fit, settings = _FITS[name], config.settings()
        model = _Headed(train.values.shape[1], num_classes).to(train.values.device)
        spec_of(config).apply(model, config)
        scores = []
        for setting in settings:
            fit(model, setting, parts[0].values, parts[0].labels)
            scores.append(score_features(model, parts[1], f"of {name} with {setting}").top1)
        chosen[name] = settings[best_of(settings, scores)]
        fit(model, chosen[name], train.values, train.labels)
        logits = score_features(model, test, f"of {name}", keep_logits=True).logits
        assert logits is not None
        correct[name] = logits.argmax(1) == labels
    spread = np.linspace(0, len(labels) - 1, min(DRIFT_IMAGES, len(labels))).round().astype(int)
    return Probed(correct, chosen, test.values[torch.from_numpy(spread)].cpu())


class _Headed(nn.Module):
    """What a method that is fitted needs of a model: a linear head."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head: nn.Module = nn.Linear(width, num_classes)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head


def _of(features: Features, indices: NDArray[np.intp]) -> Features:
    chosen = torch.from_numpy(indices).to(features.values.device)
    return Features(features.values[chosen], features.labels[chosen], features.seconds)


def _probed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Probed:
    chosen: Mapping[str, Any] = json.loads(metadata["chosen"])
    correct = {name: tensors[f"correct.{name}"].numpy() for name in CLASSIFIERS}
    return Probed(correct, {name: chosen[name] for name in CLASSIFIERS}, tensors["features"])
