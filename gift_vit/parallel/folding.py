"""The operations of a ViT that ``torch.vmap`` would compute in pieces, computed for all runs at once.

``vmap`` splits a linear layer into a product and a sum and a layer norm into several passes, and on CPUs it makes one call of
scaled dot-product attention per run. Weights that are the same for all runs, as frozen ones are, let the first two work on any
leading dimensions, and to attention the runs are a larger batch: the kernels are then those of a run on its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


class FoldedOperations(TorchFunctionMode):
    """Under ``torch.vmap``, computes linear layers, layer norms and attention for all runs in one call each."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or its folded form."""
        del types
        kwargs = kwargs or {}
        if func not in _RULES:
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        return _Folded.apply(func, spec, *leaves)


class _Folded(torch.autograd.Function):
    """A function with a rule of its own under vmap; called without, it is frozen and needs no backward pass."""

    @staticmethod
    def forward(func: Callable[..., Tensor], spec: TreeSpec, *leaves: Any) -> Tensor:
        return _call(func, spec, *leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """Apply the function's rule to its arguments, the runs being the first dimension of those that have one for each."""
        func, spec, *leaves = args
        mapped = [dim is not None for dim in in_dims[2:]]
        leaves = [leaf if dim is None else leaf.movedim(dim, 0) for leaf, dim in zip(leaves, in_dims[2:], strict=True)]
        return _RULES[func](partial(_call, func, spec), leaves, mapped, info.batch_size), 0


def _call(func: Callable[..., Tensor], spec: TreeSpec, *leaves: Any) -> Tensor:
    args, kwargs = tree_unflatten(leaves, spec)
    return func(*args, **kwargs)


def _in_pieces(call: Callable[..., Tensor], leaves: Sequence[Any], mapped: Sequence[bool]) -> Tensor:
    return torch.vmap(call, in_dims=tuple(0 if own else None for own in mapped))(*leaves)


def _layer_norm(call: Callable[..., Tensor], leaves: Sequence[Any], mapped: Sequence[bool], runs: int) -> Tensor:
    del runs
    return call(*leaves) if mapped[0] and not any(mapped[1:]) else _in_pieces(call, leaves, mapped)


def _linear(call: Callable[..., Tensor], leaves: Sequence[Any], mapped: Sequence[bool], runs: int) -> Tensor:
    if mapped[0] and not any(mapped[1:]):
        return call(*leaves)
    x, weight, *rest = leaves
    bias: Tensor | None = rest[0] if rest else None
    x = x if mapped[0] else x.expand(runs, *x.shape)
    if not mapped[1]:
        assert bias is not None
        y = F.linear(x, weight)
        return y + bias.to(y.dtype).view(runs, *[1] * (y.ndim - 2), -1)
    tokens = x.flatten(1, -2)
    # baddbmm: under autocast in the low precision as a linear layer is, which a sum after the product would not be
    y = torch.bmm(tokens, weight.mT) if bias is None else torch.baddbmm(_rows(bias, runs), tokens, weight.mT)
    return y.unflatten(1, x.shape[1:-1])


def _rows(bias: Tensor, runs: int) -> Tensor:
    return bias.expand(runs, bias.shape[-1]).unsqueeze(1)


def _attention(call: Callable[..., Tensor], leaves: Sequence[Any], mapped: Sequence[bool], runs: int) -> Tensor:
    query_key_value, rest = leaves[:3], leaves[3:]
    if any(isinstance(leaf, Tensor) for leaf in rest):  # a mask
        return _in_pieces(call, leaves, mapped)
    folded = [(t if own else t.expand(runs, *t.shape)).flatten(0, 1) for t, own in zip(query_key_value, mapped, strict=False)]
    return call(*folded, *rest).unflatten(0, (runs, -1))


_RULES = {F.linear: _linear, F.layer_norm: _layer_norm, F.scaled_dot_product_attention: _attention}
