"""Training and evaluation. Knows nothing of methods, datasets or trackers."""

from gift_vit.engine.evaluate import Evaluation, evaluate
from gift_vit.engine.fit import FitResult, Observer, TrainBatches, TrainerConfig, fit
from gift_vit.engine.optim import OptimConfig, Schedule, build_optimizer
from gift_vit.engine.precision import PRECISIONS, Precision

__all__ = [
    "PRECISIONS",
    "Evaluation",
    "FitResult",
    "Observer",
    "OptimConfig",
    "Precision",
    "Schedule",
    "TrainBatches",
    "TrainerConfig",
    "build_optimizer",
    "evaluate",
    "fit",
]
