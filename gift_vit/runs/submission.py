"""What a benchmark's server is sent: predictions for the examples whose labels it alone has, as ``predictions.tsv``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gift_vit.common import distributed
from gift_vit.common.files import write_text
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset
from gift_vit.engine.fit import evaluate
from gift_vit.engine.objective import CLASSES
from gift_vit.engine.state import Precision
from gift_vit.runs.build import eval_loader
from gift_vit.runs.result import SUBMISSION

_HIDDEN = "the benchmark's test split"


def keep_submission(cfg: RunConfig, model: nn.Module, data: VisionDataset, device: torch.device) -> None:
    """Write a final run's predictions for the unlabelled examples of its data, where it has any; all processes take part."""
    if data.unlabelled is None or cfg.phase != "final":
        return
    hidden = replace(data, splits={_HIDDEN: data.unlabelled}, unlabelled=None)
    loader, precision = eval_loader(cfg, model, hidden, _HIDDEN, device), Precision(cfg.trainer.precision, device)
    evaluated = evaluate(model, loader, device, precision, where=f"on {_HIDDEN}", objective=CLASSES.keeping())
    assert evaluated.logits is not None
    if distributed.is_main():
        dataset: Any = cfg.dataset
        named = dataset.classes if dataset.answers == "names" else None
        write_text(Path(cfg.folder, SUBMISSION), submission_text(evaluated.logits, named))


def submission_text(outputs: NDArray[np.floating], names: list[str] | None) -> str:
    """The lines of GLUE's server: index and prediction; a number with three decimals where there is one output.

    Args:
        outputs: (N, C), in the order of the examples.
        names: Of the classes, where the server wants them; None: it wants their numbers.
    """
    if outputs.shape[1] == 1:
        answers = [f"{value:.3f}" for value in outputs[:, 0]]
    else:
        answers = [names[index] if names else str(index) for index in outputs.argmax(1)]
    return "".join(f"{index}\t{answer}\n" for index, answer in [("index", "prediction"), *enumerate(answers)])
