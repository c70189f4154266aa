"""What predictions say beyond top-1: scores, calibration, confusions. Numbers in, numbers out; imports no torch.

Percent are 0–100. scikit-learn and SciPy are imported when something is computed: they take a second.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gift_vit.common.errors import ConfigError

log = logging.getLogger(__name__)

BINS = 15
CONFUSIONS = 10
_TOP = 5
_LOG_TEMPERATURES = (-4.0, 4.0)  # natural logarithms: 0.02 to 55

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]

SCORES = {
    "top1": "images whose class is the first choice, percent",
    "top5": "images whose class is among the first five choices, percent; none where there are five classes or fewer",
    "mean_class_accuracy": "accuracy of each class that occurs, averaged over these classes, percent",
    "macro_f1": "F1 of each class that occurs or is predicted, averaged over these classes, percent",
    "nll": "mean negative log-likelihood of the true class, nats",
    "ece": "expected calibration error over 15 bins of equal width, percent",
    "temperature": "what the logits are divided by for ece_scaled: the one with the lowest nll on val",
    "ece_scaled": "ece with that temperature; none where no predictions of val are kept",
}


@dataclass(frozen=True)
class Confusion:
    """How many images of class ``label`` were taken for class ``predicted``."""

    label: int
    predicted: int
    images: int


def task_scores(outputs: Floats, labels: NDArray[np.generic], names: Sequence[str]) -> dict[str, float]:
    """Scores of a task, by the names of :data:`gift_vit.data.config.TASK_METRICS`, in percent.

    F1 is that of class 1 where there are two classes, else the mean over the classes. Where all predictions are the same there
    is no correlation, and it is reported as 0.

    Args:
        outputs: (N, C): logits; where labels are numbers the predicted ones, with C = 1.
        labels: (N,): classes, integers; or numbers, floating.
        names: Which, in this order.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = outputs[:, 0] if np.issubdtype(labels.dtype, np.floating) else outputs.argmax(1)
    average = "binary" if outputs.shape[1] == 2 else "macro"
    known: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy_score(labels, predicted),
        "f1": lambda: f1_score(labels, predicted, average=average, zero_division=0.0),  # pyright: ignore[reportArgumentType]
        "matthews": lambda: matthews_corrcoef(labels, predicted),
        "pearson": lambda: _correlation("pearsonr", predicted, labels),
        "spearman": lambda: _correlation("spearmanr", predicted, labels),
    }
    return {name: 100 * float(known[name]()) for name in names}


def _correlation(name: str, predicted: Floats, labels: NDArray[np.generic]) -> float:
    from scipy import stats

    if np.ptp(predicted) == 0 or np.ptp(labels.astype(np.float64)) == 0:
        log.warning("all predictions or all labels are the same number: there is no correlation, and 0 is reported")
        return 0.0
    return float(getattr(stats, name)(predicted.astype(np.float64), labels.astype(np.float64)).statistic)


def compute_scores(logits: Floats, labels: Labels, val: tuple[Floats, Labels] | None = None) -> dict[str, float | None]:
    """Every score of :data:`SCORES`.

    Of equal classes the first is the predicted one, and the last ones are among the top five, as scikit-learn has it.

    Args:
        logits: (N, C), of the images that are scored.
        labels: (N,), 0 ≤ label < C.
        val: Logits and labels of other images, which the temperature is fitted to; None: it is not fitted.
    """
    from sklearn.metrics import f1_score, recall_score, top_k_accuracy_score

    logits = logits.astype(np.float64)
    predicted, classes = logits.argmax(1), np.arange(logits.shape[1])
    present = np.unique(labels)
    temperature = None if val is None else fit_temperature(*val)
    f1 = f1_score(labels, predicted, average="macro")
    scores = {
        "top1": 100 * float((predicted == labels).mean()),
        "top5": 100 * float(top_k_accuracy_score(labels, logits, k=_TOP, labels=classes)) if len(classes) > _TOP else None,
        "mean_class_accuracy": 100 * float(recall_score(labels, predicted, labels=present, average="macro")),
        "macro_f1": 100 * float(f1),
        "nll": negative_log_likelihood(logits, labels),
        "ece": calibration_error(logits, labels),
        "temperature": temperature,
        "ece_scaled": None if temperature is None else calibration_error(logits / temperature, labels),
    }
    assert scores.keys() == SCORES.keys()
    return scores


def log_probabilities(logits: Floats) -> NDArray[np.float64]:
    """Logarithms of the softmax over the classes, (N, C)."""
    from scipy.special import log_softmax

    return log_softmax(logits.astype(np.float64), axis=1)


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Mean over the images, in nats."""
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def calibration_error(logits: Floats, labels: Labels) -> float:
    """Expected calibration error of the first choice over 15 bins of equal width, percent.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3; bins are closed on the right.
    """
    confidence = np.exp(log_probabilities(logits).max(1))
    correct = logits.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, correct - confidence, minlength=BINS)
    return 100 * float(np.abs(gaps).sum()) / len(labels)


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature with the lowest negative log-likelihood. Source: as :func:`calibration_error`, section 4.2."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits.astype(np.float64) / np.exp(log_temperature), labels)

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def top_confusions(logits: Floats, labels: Labels, count: int = CONFUSIONS) -> list[Confusion]:
    """The pairs of different classes that are mixed up most, in one direction each; equal ones by their classes."""
    wrong = (predicted := logits.argmax(1)) != labels
    pairs, images = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-images, kind="stable")[:count]
    return [Confusion(int(label), int(other), int(n)) for (label, other), n in zip(pairs[order], images[order], strict=True)]


def class_accuracy(logits: Floats, labels: Labels) -> list[float | None]:
    """Accuracy of each of the C classes in percent; None for a class without an image."""
    correct = logits.argmax(1) == labels
    images = np.bincount(labels, minlength=logits.shape[1])
    right = np.bincount(labels, correct, minlength=logits.shape[1])
    return [100 * float(hit) / int(n) if n else None for hit, n in zip(right, images, strict=True)]


def check_scores(names: Sequence[str], further: Collection[str] = ()) -> None:
    """Refuse a name that is none of :data:`SCORES` or of ``further`` ones."""
    known = [*SCORES, *further]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"unknown score {', '.join(unknown)} (known: {', '.join(known)})")
