"""What the engine is told. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common.checks import Options, at_least, fulfils, one_of, positive, two_fractions
from gift_vit.common.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
SCHEDULES = ("epoch", "step")
DECAYS = ("cosine", "linear")
_part = fulfils(lambda part: 0 <= part < 1, "a part of all updates, from 0 to below 1")
STEP_GRAPH = ("auto", "on", "off")
KEEP_PREDICTIONS = ("test", "all", "off")


@dataclass
class TrainerConfig(Options, section="trainer"):
    """How training runs.

    Attributes:
        epochs: Length of the schedule.
        batch_size: Images per update, over all processes.
        grad_accumulation: Pieces a process computes its share of a batch in; lowers memory, not the batch size.
        eval_every: Score the validation split after every so many epochs, and after the last; 0: after the last only.
        precision: fp32, tf32, bf16 or fp16.
        compile: Run the model through ``torch.compile``.
        step_graph: ``on``: a GPU repeats a recording of the whole step; ``off``; ``auto``: ``on`` where that can be.
        deterministic: Bit-identical repeats on one GPU; slower.
        keep_predictions: ``test``: a final run's, of test; ``all``: of val too where it was not trained on; ``off``: none.
    """

    epochs: Annotated[int, at_least(1)]
    batch_size: Annotated[int, at_least(1)]
    grad_accumulation: Annotated[int, at_least(1)]
    eval_every: Annotated[int, at_least(0)]
    precision: Annotated[str, one_of(PRECISIONS)]
    compile: bool
    step_graph: Annotated[str, one_of(STEP_GRAPH)]
    deterministic: bool
    keep_predictions: Annotated[str, one_of(KEEP_PREDICTIONS)] = "test"


@dataclass
class OptimConfig(Options, section="optim"):
    """AdamW with a schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices; vectors, scalars and modules that say so have none.
        betas: Decay rates of the two moments.
        eps: Added to the denominator.
        warmup_epochs: Epochs of linear warm-up from ``warmup_lr``; the cosine runs over all epochs, so warm-up cuts into it.
        warmup_ratio: The same as a part of all updates, with ``schedule: step``; None: ``warmup_epochs``.
        warmup_lr: Learning rate of the first update.
        min_lr: Learning rate the schedule ends at.
        decay: ``cosine``, or ``linear`` from the end of warm-up on.
        schedule: ``epoch``: one learning rate per epoch, as the authors; ``step``: a new one for every update.
        clip_norm: The most that the norm of all gradients together may be; None: as they are.
    """

    lr: Annotated[float, positive]
    weight_decay: Annotated[float, at_least(0)]
    betas: Annotated[list[float], two_fractions]
    eps: Annotated[float, at_least(0)]
    warmup_epochs: Annotated[int, at_least(0)]
    warmup_lr: Annotated[float, at_least(0)]
    min_lr: Annotated[float, at_least(0)]
    schedule: Annotated[str, one_of(SCHEDULES)]
    decay: Annotated[str, one_of(DECAYS)] = "cosine"
    warmup_ratio: Annotated[float | None, _part] = None
    clip_norm: Annotated[float | None, positive] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_ratio is not None and (self.warmup_epochs or self.schedule != "step"):
            raise ConfigError(
                f"optim.warmup_ratio={self.warmup_ratio} is a part of all updates; give optim.warmup_epochs=0 and "
                "optim.schedule=step with it"
            )
