"""A device that is no CPU, on a machine that has none: torch's fake tensors say that they lie there, and compute nothing.

Where one of them meets a tensor that was left on the CPU, or is asked for a value, torch raises. The device is called ``lazy``:
of those that are no CPU it alone has a backward pass without a driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

ELSEWHERE = torch.device("lazy", 0)


@contextmanager
def elsewhere(*models: nn.Module) -> Iterator[None]:
    """Within it tensors are fake, and the parameters and buffers of these models lie there, as ``model.to`` would have it."""
    mode, sent = FakeTensorMode(), dict[int, Tensor]()

    def send(tensor: Tensor) -> Tensor:
        if id(tensor) not in sent:
            fake = mode.from_tensor(tensor.detach())
            with mode:
                there = fake.to(ELSEWHERE)
                is_parameter = isinstance(tensor, nn.Parameter)
                sent[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_parameter else there
        return sent[id(tensor)]

    for module in (module for model in models for module in model.modules()):
        tensors: list[dict[str, Any]] = [module._parameters, module._buffers]
        for own in tensors:
            own.update({name: send(tensor) for name, tensor in own.items() if tensor is not None})
    # autocast knows no such device
    with mode, patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        yield
