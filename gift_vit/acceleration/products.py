"""Products with frozen weights through oneDNN, on processors where the library behind ``F.linear`` is slow.

In fp32 torch's matrix products on x86 are MKL's. On AMD's processors MKL does not use all that the processor has; oneDNN, which
computes torch's convolutions, does, to the same accuracy. A linear layer is a convolution with a 1 × 1 kernel, and tokens in
their usual order are an image in the ``channels_last`` format: nothing is copied.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_MIN_TOKENS = 256  # with fewer, bringing the weight into oneDNN's order costs more than the product gains


class OnednnProducts(TorchFunctionMode):
    """Computes linear layers of frozen fp32 weights as 1 × 1 convolutions; others, and those of few tokens, as torch does.

    The same up to rounding, for autograd too. Like ``F.linear`` it keeps the weight alone for the backward
    pass, where torch's convolution would keep its input.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or the convolution in its place."""
        del types
        if func is F.linear and not kwargs and _is_possible(*args):
            return _linear(*args)
        return func(*args, **kwargs or {})


def _is_possible(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and not (torch.is_grad_enabled() and weight.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= _MIN_TOKENS * x.shape[-1]
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # contiguous tokens, seen as one image of a single column, lie in memory as channels_last has it
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    image = _FrozenConvolution.apply(image, weight[:, :, None, None], bias)
    return image.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # not save_for_backward: where a checkpoint computes again what was saved, it would compute this product for its weight
        ctx.weight = weight
        return F.conv2d(image, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, None, Tensor | None]:
        (gradient,) = grad_outputs
        of_image, _, of_bias = ctx.needs_input_grad
        return (
            F.conv_transpose2d(gradient, ctx.weight) if of_image else None,
            None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )
