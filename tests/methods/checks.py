"""What the tests of methods share: training, adapters away from their start, comparing tensors, and errors of one line."""

import re
from typing import Any, TypeVar

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods import apply_method
from tests.tolerance import TOLERANCE

Model = TypeVar("Model", bound=nn.Module)


def refused(message: str) -> Any:
    """Expects an error of one line that begins so."""
    return pytest.raises(ConfigError, match=rf"\A{re.escape(message)}.*\Z")


def assert_close(actual: Tensor, expected: Tensor | NDArray[Any], computed_in: torch.dtype | None = None) -> None:
    """Equal within the tolerance of ``actual``'s dtype, or of another that it was computed in."""
    tolerance = TOLERANCE[computed_in or actual.dtype]
    expected = torch.as_tensor(expected).to(actual.dtype)
    torch.testing.assert_close(actual, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])


def assert_same_modules(model: nn.Module, other: nn.Module) -> None:
    """Equal names and classes of the modules, in one order."""
    modules, expected = ([(name, type(module)) for name, module in one.named_modules()] for one in (model, other))
    assert modules == expected


def train(model: nn.Module, images: Tensor) -> set[str]:
    """Two AdamW steps, after which the model is in eval mode; the names of the parameters that saw a non-zero gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    reached: set[str] = set()
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    model.eval()
    return reached


def randomise(module: nn.Module, std: float = 0.4, seed: int = 5) -> None:
    """Give every parameter a value away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def drawn(model: Model, config: Any, std: float = 0.2) -> Model:
    """The method applied, in float64 and eval mode, with the adapter's parameters away from their start."""
    apply_method(model, config).double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith("head."):
                parameter.add_(std * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def assert_dropout_acts(layer: nn.Module, width: int, spread: Tensor) -> None:
    """In training half of the channels are zero and the others doubled: their sum varies by ``spread``, and its mean stays."""
    x = torch.ones(20_000, width, dtype=torch.float64)
    kept, dropped = layer.eval()(x)[0], layer.train()(x)
    torch.testing.assert_close(dropped.std(dim=0), spread, atol=0, rtol=0.05)
    torch.testing.assert_close(dropped.mean(dim=0), kept, atol=0.05, rtol=0.05)
