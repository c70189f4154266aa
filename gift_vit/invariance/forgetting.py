"""How much of what the pretrained model knew a fine-tuned one has forgotten.

Classifiers are fitted to the features, which are what a head reads, of images that the pretrained model was trained for: once
to those of the pretrained model and once to those of the fine-tuned one. Forgetting is the accuracy that is lost.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.invariance.known import Known
from gift_vit.invariance.measures import halves, interval_of_halves, number
from gift_vit.invariance.pair import Pair
from gift_vit.invariance.probes import CLASSIFIERS, Probed, probe
from gift_vit.invariance.similarity import gram, gram_cka
from gift_vit.results.paired import bootstrap_images, pair_successes
from gift_vit.results.render import decimal_text
from gift_vit.runs.run import Run

DRAWS = 200  # halves of the images, for the interval of the drift


def measure_forgetting(run: Run, pair: Pair, known: Known, device: torch.device) -> dict[str, Any]:
    """Accuracy before and after, what is lost, and the drift of the features, each with an interval of 95 % over images.

    Raises:
        ConfigError: If an image cannot be read, or the cache cannot be written.
        RunError: If a feature is not finite, or the disk is full.
    """
    before = probe(run.config, pair.pretrained, pair.facts, known, device)
    after = before if pair.unchanged else probe(run.config, pair.tuned, pair.tuned_facts, known, device)
    return {
        "on": known.facts,
        "unchanged": pair.unchanged,
        **{name: compare_successes(name, before, after) for name in CLASSIFIERS},
        "drift": measure_drift(before.features, after.features),
    }


def compare_successes(name: str, before: Probed, after: Probed) -> dict[str, Any]:
    """One classifier on the same images before and after.

    Returns:
        ``before`` and ``after``: top-1 in percent. ``forgetting``: the first less the second, in points, with the percentile
        bootstrap's interval over the images, which are the same for both. ``only_before``, ``only_after``: on how many images
        one of the two alone is right. ``p_value``: exact McNemar test.
    """
    first, second = before.correct[name], after.correct[name]
    paired = pair_successes("", 0, first, second)
    return {
        "before": _percent(first),
        "after": _percent(second),
        "forgetting": dict(zip(("mean", "low", "high"), bootstrap_images([100.0 * paired.difference]), strict=True)),
        "only_before": paired.gained,
        "only_after": paired.lost,
        "p_value": paired.p_value,
        "setting_before": before.chosen[name],
        "setting_after": after.chosen[name],
    }


def measure_drift(before: Tensor, after: Tensor) -> dict[str, float]:
    """1 − CKA of the features (n, d) before and after, by the unbiased estimator, with an interval of 95 %."""
    if torch.equal(before, after):
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    first, second = gram(before), gram(after)

    def drift(rows: Tensor) -> Tensor:
        return 1 - gram_cka(*(matrix[rows[:, None], rows] for matrix in (first, second)), unbiased=True)

    drawn = list(map(drift, halves(len(before), DRAWS)))
    return interval_of_halves(1 - gram_cka(first, second, unbiased=True), torch.stack(drawn) if drawn else None)


def forgetting_line(found: Mapping[str, Any]) -> str:
    """What a person reads of it."""
    facts = found["on"]
    where = f"of the {facts['classes']} classes of {facts['dataset']}"
    if found["unchanged"]:
        return f"forgotten {where}: nothing, the backbone is as it was (linear {found['linear']['before']:.2f} %)"
    told = [f"{title} {_lost(found[name])}" for name, title in (("linear", "linear"), ("knn", "k-NN"))]
    return f"forgotten {where}: {'; '.join(told)}; drift {number(found['drift']['mean'])}"


def _lost(compared: Mapping[str, Any]) -> str:
    """As ``40.00 → 38.50 %, 1.50 points [0.80, 2.20]``."""
    points = "{mean} points [{low}, {high}]".format(**{k: decimal_text(v) for k, v in compared["forgetting"].items()})
    return f"{compared['before']:.2f} → {compared['after']:.2f} %, {points}"


def _percent(correct: NDArray[np.bool_]) -> float:
    return 100 * float(correct.mean())
