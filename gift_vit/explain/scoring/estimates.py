"""A mean over images, and how sure it is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from torch import Tensor

from gift_vit.results.render import decimal_text


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its bootstrap interval of 95 %, which a single image does not have."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        mean, *ends = (decimal_text(value, 3) for value in (self.mean, self.low, self.high) if value is not None)
        return f"{mean} [{', '.join(ends)}]" if ends else mean


def estimate_mean(values: Tensor) -> Estimate:
    """The mean of one value per image, and the percentile bootstrap interval over images; equal inputs give equal intervals."""
    numbers = values.double().cpu().numpy()
    if len(numbers) < 2:
        return Estimate(float(numbers.mean()), None, None)
    how: dict[str, Any] = {"n_resamples": 2000, "confidence_level": 0.95, "method": "percentile", "batch": 100}
    interval = bootstrap((numbers,), np.mean, **how, rng=np.random.default_rng(0)).confidence_interval
    return Estimate(float(numbers.mean()), float(interval.low), float(interval.high))
