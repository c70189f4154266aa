"""What a run is built from: its data, its model, its loaders, its device."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gift_vit.acceleration.accelerate import accelerate
from gift_vit.backbones.build import build_backbone, input_statistics
from gift_vit.common import distributed
from gift_vit.common.cores import share_quota
from gift_vit.common.errors import ConfigError
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import LabelledSource, VisionDataset, build_dataset
from gift_vit.data.cache import PixelSource, open_pixels
from gift_vit.data.config import CacheSettings, CommonsenseConfig, DatasetConfig, TextsConfig
from gift_vit.data.loaders import Batch, EvalLoader, TrainLoader, Transform
from gift_vit.data.table import PixelTable, TableEvalBatches, TableTrainBatches, open_table
from gift_vit.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from gift_vit.engine.fit import Evaluation, TrainBatches, evaluate
from gift_vit.engine.objective import CLASSES, SEQUENCES, Objective, cross_entropy, squared_error
from gift_vit.engine.state import Precision, set_product_precision
from gift_vit.methods.adapter import apply_method, count_parameters, initialise_method
from gift_vit.methods.config import spec_of
from gift_vit.runs.scores import task_scores

if TYPE_CHECKING:
    from gift_vit.runs.run import Run


log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<index>`` as a device that this machine has, of several processes for this one.

    On a CPU, torch's threads are no more than the cores that this process may use. Whatever was computed in this process
    before, products are in full float32 until a :class:`Precision` says otherwise.
    """
    share_quota()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"trainer.device={name!r} is no device; expected auto, cpu, cuda or cuda:<index>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"trainer.device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use trainer.device=auto"
        )
    set_product_precision("fp32", device)
    return distributed.own_device(device)


def open_data(cfg: RunConfig) -> VisionDataset:
    """The run's dataset, with all splits it needs."""
    data = build_dataset(cfg.dataset)
    if cfg.scored_split == "test":
        try:
            data.parts("test")  # absent: better said now than after training
        except ConfigError as error:
            remedy = "add one, or give the data without any split, and a share of everything becomes test"
            raise ConfigError(f"{error}, on which phase=final is scored: {remedy}") from error
    return data


def build_model(cfg: RunConfig, num_classes: int) -> nn.Module:
    """The run's backbone with its method applied, on the CPU, drawn from the run's seed."""
    return apply_method(build_pretrained(cfg, num_classes), cfg.method)


def build_to_train(cfg: RunConfig, num_classes: int) -> nn.Module:
    """:func:`build_model`, for training.

    Raises:
        ConfigError: If what would be trained is held in half precision: most of an optimiser's steps would round to nothing.
    """
    model = build_model(cfg, num_classes)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"method {cfg.method_name!r} trains {name}, which is held in {cfg.backbone.dtype}, where small steps round to "
                "nothing; give backbone.dtype=float32"
            )
    return model


def build_pretrained(cfg: RunConfig, num_classes: int) -> nn.Module:
    """The run's backbone before its method is applied, on the CPU, with a head drawn from the run's seed."""
    torch.manual_seed(cfg.seed)
    if isinstance(cfg.dataset, CommonsenseConfig):
        from gift_vit.backbones.language import build_language_model  # transformers

        return build_language_model(cfg.backbone)
    return build_backbone(cfg.backbone, num_classes, cfg.compute.drop_path_rate)


def finished_model(run: "Run", device: str = "auto") -> tuple[nn.Module, dict[str, int]]:
    """A finished run's model, computed as in training, and its parameters by role (``adapter``, ``head``, ``backbone``).

    Raises:
        ConfigError: If there is no such device, the run is not finished, or its pretrained weights are others now.
    """
    model = run.model()
    counts = asdict(count_parameters(model))
    accelerate(model.to(resolve_device(device)), run.config.compute, run.config.trainer)
    return model, counts


def train_loader(cfg: RunConfig, model: nn.Module, data: VisionDataset, device: torch.device) -> TrainBatches:
    """The batches the run trains on."""
    reread = cfg.trainer.epochs > 1
    if isinstance(cfg.dataset, TextsConfig):
        tokens, transform = _tokens(cfg.dataset, model, data, cfg.train_split)
        return TrainLoader(tokens, transform, cfg.trainer.batch_size, 0, cfg.seed, device)
    transform = build_train_transform(cfg.dataset.transform, input_statistics(model))
    pixels = _pixels(cfg, data, cfg.train_split, transform, reread)
    table = _table(pixels, device, reread)
    if table is not None:
        return TableTrainBatches(table, transform, cfg.trainer.batch_size, cfg.seed)
    return TrainLoader(pixels, transform, cfg.trainer.batch_size, cfg.loading.workers, cfg.seed, device)


def eval_loader(
    cfg: RunConfig, model: nn.Module, data: VisionDataset, split: str, device: torch.device, reread: bool = False
) -> Iterable[Batch]:
    """A split's examples in order; ``reread`` says that they are gone through more than once."""
    if isinstance(cfg.dataset, TextsConfig):
        return EvalLoader(*_tokens(cfg.dataset, model, data, split), cfg.loading.eval_batch_size, 0, device)
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
    pixels = _pixels(cfg, data, split, transform, reread)
    table = _table(pixels, device, reread)
    if table is not None:
        return TableEvalBatches(table, transform, cfg.loading.eval_batch_size)
    return EvalLoader(pixels, transform, cfg.loading.eval_batch_size, cfg.loading.workers, device)


def initialise(cfg: RunConfig, model: nn.Module, data: VisionDataset, device: torch.device) -> None:
    """Do what the run's method does with training images before it is trained; every process sees the same ones."""
    if spec_of(cfg.method).initialise is None or isinstance(cfg.dataset, TextsConfig):
        return

    def batches() -> Iterator[Tensor]:
        transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
        pixels = _pixels(cfg, data, cfg.train_split, transform, reread=cfg.trainer.epochs > 1)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(cfg.seed)).tolist()
        loader = EvalLoader(pixels, transform, cfg.loading.eval_batch_size, cfg.loading.workers, device, order)
        yield from (images for images, _ in loader)

    initialise_method(model.eval(), batches())


def objective_of(dataset: DatasetConfig) -> Objective:
    """What models are trained for on a dataset, and scored by."""
    if isinstance(dataset, CommonsenseConfig):
        return SEQUENCES
    loss = squared_error if dataset.is_regression else cross_entropy
    return CLASSES if dataset.scores == ("accuracy",) else Objective(loss, scores=partial(task_scores, names=dataset.scores))


def score(
    cfg: RunConfig,
    model: nn.Module,
    data: VisionDataset,
    split: str,
    device: torch.device,
    keep_logits: bool = False,
    folder: Path | None = None,
) -> Evaluation:
    """Score and loss of a model on one split, and with ``keep_logits`` its logits; a RunError if a logit is not finite.

    A language model is scored on test by what it answers, which is kept in ``folder``, the run's.
    """
    loader, precision = eval_loader(cfg, model, data, split, device), Precision(cfg.trainer.precision, device)
    objective = objective_of(cfg.dataset).keeping(keep_logits)
    told = evaluate(model, loader, device, precision, where=f"on {split}", objective=objective)
    if split != "test" or not isinstance(cfg.dataset, CommonsenseConfig):
        return told
    from gift_vit.runs.decoding import score_answers, with_answers  # transformers

    return with_answers(score_answers(cfg, model, data, device, folder), told)


def _tokens(dataset: TextsConfig, model: Any, data: VisionDataset, split: str) -> tuple[LabelledSource[Any], Transform]:
    """A split's texts as the model takes them, and what stacks them; they lie in memory, and need no workers."""
    from gift_vit.data.prompts import Prompts, PromptTokenizer  # a run on images has no use for them
    from gift_vit.data.tokens import Tokens, TokenTransform

    length = dataset.length_for(model.max_tokens)
    if length < dataset.max_length:
        log.info("dataset.max_length=%d: the model takes %d tokens", dataset.max_length, length)
    if isinstance(dataset, CommonsenseConfig):
        prompts: Any = Prompts(data.split(split), PromptTokenizer(model.tokenizer, length), split)  # with sequences for labels
        return prompts, TokenTransform(model.tokenizer.pad_token_id, in_front=True)
    tokens = Tokens(data.split(split), model.tokenizer, length, split, model.end_token_id)
    return tokens, TokenTransform(model.tokenizer.pad_token_id, in_front=model.pads_in_front)


def _pixels(cfg: RunConfig, data: VisionDataset, split: str, transform: ImageTransform, reread: bool) -> PixelSource:
    cache = CacheSettings(cfg.dataset.cache, Path(cfg.paths.cache_root), cfg.loading.workers)
    with distributed.main_first():  # it decodes the images into the cache
        return open_pixels(data, split, transform, cache, reread)


def _table(pixels: PixelSource, device: torch.device, reread: bool) -> PixelTable | None:
    """The pixels on a GPU, where they are read more than once and it has the room."""
    if device.type != "cuda" or not reread:
        return None
    return open_table(pixels, device)
