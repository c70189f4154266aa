"""Models of one architecture that differ in a few tensors, computed in one pass."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from gift_vit.acceleration import accelerate
from gift_vit.backbones import input_statistics
from gift_vit.engine import TrainerConfig
from gift_vit.errors import ConfigError
from gift_vit.parallel.folding import FoldedOperations

_REFUSED = (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)
_SAMPLES = 3


class MaskedDropPath(nn.Module):
    """timm's drop path with its random numbers handed in: a forward pass under vmap may draw none.

    Attributes:
        mask: What timm multiplies the branch with, (B, 1, …); empty: nothing is dropped.
    """

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A branch (B, …)."""
        return x * self.mask.to(x.dtype) if self.training and self.mask.numel() else x


@dataclass(frozen=True)
class _Drop:
    """A drop path module by name, and what it draws: B values of as many dimensions as its input."""

    name: str
    drop_path: DropPath
    dimensions: int

    def mask(self, size: int, generator: torch.Generator) -> Tensor:
        """What timm's module draws for a batch of ``size`` images, from ``generator`` and on its device."""
        keep_prob = 1 - self.drop_path.drop_prob
        mask = torch.empty(size, *[1] * (self.dimensions - 1), device=generator.device)
        mask.bernoulli_(keep_prob, generator=generator)
        return mask.div_(keep_prob) if keep_prob > 0 and self.drop_path.scale_by_keep else mask


@dataclass(frozen=True)
class StepInputs:
    """Images (B, 3, H, W) and, in training, the drop path masks that :meth:`ModelStack.draw_masks` gives for them."""

    images: Tensor
    masks: dict[str, Tensor] = field(default_factory=dict)


class ModelStack:
    """Several models with the same method applied, which differ in what they train; each remains a model of its own.

    Frozen tensors that are equal, as those of one backbone are, share the first model's storage from now on. Those that differ,
    for a method drew them from the run's seed, say, are stacked with the trained ones.

    Args:
        models: On their device.
        trainer: How to compute them; ``memory`` must be ``fast``.

    Attributes:
        acceleration: As :func:`gift_vit.acceleration.accelerate` says.

    Raises:
        ConfigError: If the models cannot be computed in one pass with the results they give alone.
    """

    def __init__(self, models: Sequence[nn.Module], trainer: TrainerConfig) -> None:
        self.models = tuple(models)
        self._skeleton = deepcopy(models[0])
        self._own_names = _share_frozen([*models, self._skeleton])
        self._drops = _replace_drop_paths(self._skeleton)
        self.acceleration = accelerate(self._skeleton, trainer)
        self._shares_inputs = True
        self._check()

    def draw_masks(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The drop path masks of a training step of ``size`` images: the numbers that a model alone would draw."""
        return {f"{drop.name}.mask": drop.mask(size, generator) for drop in self._drops}

    def train_forward(self, indices: Sequence[int], inputs: Sequence[StepInputs]) -> Tensor:
        """Logits (K, B, classes) of the models of these indices in training, each on its own images with its own masks.

        Models that are given one and the same object are computed together up to where they begin to differ.
        """
        if self._shares_inputs and all(own is inputs[0] for own in inputs):
            return self._forward(self._stacked(indices), inputs[0], dim=None)
        masks = {name: torch.stack([own.masks[name] for own in inputs]) for name in inputs[0].masks}
        return self._forward(self._stacked(indices), StepInputs(torch.stack([own.images for own in inputs]), masks), dim=0)

    def eval_forward(self, indices: Sequence[int], images: Tensor) -> Tensor:
        """Logits (K, B, classes) of the models of these indices in evaluation, for the same images (B, 3, H, W)."""
        if self._shares_inputs:
            return self._forward(self._stacked(indices), StepInputs(images), dim=None, training=False)
        images = images.expand(len(indices), *images.shape)
        return self._forward(self._stacked(indices), StepInputs(images), dim=0, training=False)

    def _stacked(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {name: torch.stack([_tensor(self.models[index], name) for index in indices]) for name in self._own_names}

    def _forward(self, own: dict[str, Tensor], inputs: StepInputs, dim: int | None, training: bool = True) -> Tensor:
        self._skeleton.train(training)

        def forward(own: dict[str, Tensor], masks: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self._skeleton, own | masks, (images,))

        with FoldedOperations():
            return torch.vmap(forward, in_dims=(0, dim, dim))(own, inputs.masks, inputs.images)

    @torch.no_grad()
    def _check(self) -> None:
        """Compare with the models alone, trained tensors moved from their start, where many an adapter does nothing."""
        _check_dropout(self._skeleton)
        generator = torch.Generator().manual_seed(0)
        side, like = input_statistics(self.models[0]).input_size, _tensor(self.models[0], self._own_names[0])
        images = torch.randn(_SAMPLES, 3, side, side, generator=generator).to(like)
        moved = [_moved(model, generator) for model in self.models]
        own = self._stacked(range(len(self.models)))
        own |= {name: torch.stack([tensors[name] for tensors in moved]) for name in moved[0]}
        random = torch.Generator(like.device).manual_seed(0)
        inputs = StepInputs(images, self.draw_masks(_SAMPLES, random))
        try:
            together = self._try(own, inputs)
        except _REFUSED as error:
            raise ConfigError(_refusal(str(error).strip().splitlines()[0])) from error
        for model, tensors, logits in zip(self.models, moved, together, strict=True):
            alone, state = _alone(model, tensors, images)
            tolerance = torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
            if not torch.equal(state, random.get_state()) or not bool((alone - logits).abs().max() <= tolerance):
                raise ConfigError(_refusal("it gives other results there"))

    def _try(self, own: dict[str, Tensor], inputs: StepInputs) -> Tensor:
        """A forward pass on shared inputs, or where a method writes into what the models still share, on one's own."""
        with suppress(*_REFUSED):
            return self._forward(own, inputs, dim=None)
        self._shares_inputs = False
        runs = len(self.models)
        masks = {name: mask.expand(runs, *mask.shape) for name, mask in inputs.masks.items()}
        return self._forward(own, StepInputs(inputs.images.expand(runs, *inputs.images.shape), masks), dim=0)


def _moved(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: parameter + 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _share_frozen(models: Sequence[nn.Module]) -> list[str]:
    """Let equal frozen tensors share the first model's storage; the names of all others."""
    own = []
    for name, first in _named_tensors(models[0]).items():
        others = [_tensor(model, name) for model in models[1:]]
        if first.requires_grad or not all(torch.equal(first, other) for other in others):
            own.append(name)
        else:
            for other in others:
                other.data = first.data
    return own


def _replace_drop_paths(skeleton: nn.Module) -> list[_Drop]:
    """Replace the drop path modules of a model; what they are, in the order in which a forward pass calls them."""
    dropping = {name: m for name, m in skeleton.named_modules() if isinstance(m, DropPath) and m.drop_prob}
    drops: list[_Drop] = []

    def note(name: str, module: Any, args: tuple[Tensor, ...]) -> None:
        drops.append(_Drop(name, module, args[0].ndim))

    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in dropping.items()]
    some, side = next(skeleton.parameters()), input_statistics(skeleton).input_size
    with torch.no_grad():
        skeleton.eval()(torch.zeros(1, 3, side, side).to(some))
    for hook in hooks:
        hook.remove()
    for name in dropping:
        skeleton.set_submodule(name, MaskedDropPath().to(some.device))
    return drops


def _check_dropout(model: nn.Module) -> None:
    dropout = [name for name, module in model.named_modules() if isinstance(module, _DropoutNd) and module.p > 0]
    if dropout:
        raise ConfigError(_refusal(f"{dropout[0]} draws random numbers (dropout)"))


def _alone(model: nn.Module, tensors: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """What a model computes in training for a fixed seed, and the state in which the generator is left."""
    cuda = images.device.type == "cuda"
    with torch.random.fork_rng(devices=[images.device] if cuda else []):
        torch.manual_seed(0)
        logits = functional_call(model.train(), tensors, (images,))
        return logits, torch.cuda.get_rng_state(images.device) if cuda else torch.get_rng_state()


def _refusal(reason: str) -> str:
    return f"this model with its method cannot be trained beside others: {reason}; set trainer.parallel_runs=1"


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _tensor(model: nn.Module, name: str) -> Tensor:
    parent, _, last = name.rpartition(".")
    tensor: Any = getattr(model.get_submodule(parent), last)
    return tensor
