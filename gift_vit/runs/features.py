"""What a frozen backbone's head sees, computed once: the features of a split, kept between runs.

They are those of the evaluation transform, in float32, before the head (timm's ``forward_head(pre_logits=True)``). With
``dataset.cache`` ``auto`` or ``disk`` they stand in a file below ``paths.cache_root``, whose name says what they depend on: the
images and what prepares them, the backbone with its weights, the kind of device and the versions of the libraries.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import alone
from gift_vit.common.tensors import read_made, tensors_digest, write_tensors
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset, fingerprint
from gift_vit.data.cache import pixels_key
from gift_vit.data.config import TextTaskConfig
from gift_vit.data.transforms import build_eval_transform
from gift_vit.engine.state import Precision
from gift_vit.methods.adapter import adapter_state_dict
from gift_vit.runs.build import eval_loader

log = logging.getLogger(__name__)
_FORMAT = 1


@dataclass(frozen=True)
class Features:
    """Features (N, d) of a split's images, float32, with their labels (N,), on one device.

    ``seconds`` is how long they took to compute, in this run or in the one that kept them.
    """

    values: Tensor
    labels: Tensor
    seconds: float

    def __add__(self, other: "Features") -> "Features":
        """Those of both, one after the other."""
        values, labels = torch.cat([self.values, other.values]), torch.cat([self.labels, other.labels])
        return Features(values, labels, self.seconds + other.seconds)


def open_features(cfg: RunConfig, model: nn.Module, data: VisionDataset, split: str, device: torch.device) -> Features:
    """The features of ``train``, ``val`` or ``test``, from the file that an earlier run has kept, or computed and kept.

    Raises:
        ConfigError: If an image cannot be read, or with ``dataset.cache=disk`` the folder cannot be written.
        RunError: If a feature is NaN or infinite, or with ``dataset.cache=disk`` the disk is full.
    """
    key = _key(cfg, model, data, split, device)
    return kept_features(cfg, data, split, device, key, lambda: compute_features(cfg, model, data, split, device))


def compute_features(cfg: RunConfig, model: nn.Module, data: VisionDataset, split: str, device: torch.device) -> Features:
    """The features of ``train``, ``val`` or ``test`` by a model on that device, with or without a method; nothing is kept.

    Raises:
        ConfigError: If an image cannot be read.
        RunError: If a feature is NaN or infinite.
    """

    def features(images: Tensor) -> Tensor:
        tokens = model.forward_features(images)  # pyright: ignore[reportCallIssue]
        return model.forward_head(tokens, pre_logits=True).float()  # pyright: ignore[reportCallIssue]

    return outputs_of(features, cfg, model, data, split, device)


@torch.no_grad()
def outputs_of(
    part: Callable[[Tensor], Tensor],
    cfg: RunConfig,
    model: nn.Module,
    data: VisionDataset,
    split: str,
    device: torch.device,
    precision: str = "fp32",
) -> Features:
    """What a part of a model makes of a split's images, without augmentation and dropout, where the part leaves it.

    Raises:
        ConfigError: If an image cannot be read.
        RunError: If a value is NaN or infinite.
    """
    started, autocast, training = time.perf_counter(), Precision(precision, device).autocast, model.training
    model.eval()
    found = []
    for images, _ in eval_loader(cfg, model, data, split, device):
        with autocast():
            found.append(part(images))
    model.train(training)
    values = torch.cat(found)
    if not values.isfinite().all():
        raise RunError(f"features of {data.name} {split} are NaN or infinite: the weights of {cfg.backbone.model} do not fit")
    return Features(values, labels_of(data, split, values.device), time.perf_counter() - started)


def labels_of(data: VisionDataset, split: str, device: torch.device) -> Tensor:
    """The labels (N,) of a split's images, on a device."""
    [source] = data.parts(split)
    return torch.as_tensor(source.labels, device=device)


def kept_features(
    cfg: RunConfig, data: VisionDataset, split: str, device: torch.device, key: str, compute: Callable[[], Features]
) -> Features:
    """Features of a split, on a device, from the file of that key, or computed and kept; other runs wait meanwhile.

    Raises:
        ConfigError: As :func:`open_features`.
        RunError: As :func:`open_features`.
    """
    file = Path(cfg.paths.cache_root) / f"features-{data.name}-{key}.safetensors"
    with ExitStack() as stack:
        keep = cfg.dataset.cache in ("auto", "disk")
        try:
            if keep:
                stack.enter_context(alone(file))  # another run may be computing the same
        except (ConfigError, RunError) as error:
            keep = _go_on(cfg, error)
        if keep and (kept := _read(file, labels_of(data, split, device))) is not None:
            log.info("features of %s %s: from %s", data.name, split, file)
            return kept
        features = compute()
        try:
            if keep:
                write_tensors(file, {"features": features.values.cpu()}, {"seconds": str(features.seconds)})
        except (ConfigError, RunError) as error:
            _go_on(cfg, error)
    return features


def _go_on(cfg: RunConfig, error: Exception) -> bool:
    """Without keeping the features, unless a person asked for it."""
    if cfg.dataset.cache == "disk":
        raise error
    log.warning("features are not kept for other runs (dataset.cache=auto): %s", error)
    return False


def _read(file: Path, labels: Tensor) -> Features | None:
    """What a file holds, or None if there is none that can be used."""

    def make(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Features:
        return Features(tensors["features"], labels, float(metadata["seconds"]))

    features = read_made(file, make, labels.device)
    return features if features and len(features.values) == len(labels) else None


def _key(cfg: RunConfig, model: nn.Module, data: VisionDataset, split: str, device: torch.device) -> str:
    [source] = data.parts(split)
    facts: list[object]
    if isinstance(cfg.dataset, TextTaskConfig):
        facts = [_FORMAT, fingerprint({split: source}), *_tokenizer_facts(model.tokenizer)]
        facts += [cfg.dataset.max_length, version("transformers")]
    else:
        transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
        facts = [_FORMAT, pixels_key(data, source, transform), *astuple(transform.stats), cfg.backbone.model]
    facts += [str(getattr(model, "global_pool", None)), device.type]
    own = adapter_state_dict(model)
    return digest_of(facts, {name: tensor for name, tensor in model.state_dict().items() if name not in own})


def _tokenizer_facts(tokenizer: Any) -> tuple[str, ...]:
    """What the tokens of a text depend on, but for the length that they are cut to."""
    whole = getattr(tokenizer, "backend_tokenizer", None)
    if whole is None:  # one in Python: its vocabulary, and the options of its class
        return repr(tokenizer), json.dumps(tokenizer.get_vocab(), sort_keys=True)
    told = json.loads(whole.to_str())
    return repr(tokenizer), json.dumps({key: value for key, value in told.items() if key not in ("truncation", "padding")})


def digest_of(facts: Sequence[object], tensors: Mapping[str, Tensor]) -> str:
    """Names what features depend on: plain values, and weights by name."""
    of = json.dumps([*facts, torch.__version__, timm.__version__, tensors_digest(tensors)])
    return hashlib.sha256(of.encode()).hexdigest()[:32]
