"""Linear probing to the optimum: multinomial logistic regression on the frozen backbone's features.

With x = (f − mean) / s, where s² is the mean variance of the features f over the training images, the head minimises

    ``mean cross entropy(W x + b) + λ / 2 ‖W‖²``

which scikit-learn's ``LogisticRegression`` on x has with C = 1 / (λ N). It is convex: neither the start nor a seed matters.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.methods.config import LinearExactConfig, merge_nothing, register_method
from gift_vit.methods.targets import linear_head

_ITERATIONS = 2000
_TOLERANCE = 1e-9


def fit_linear_exact(
    model: nn.Module, setting: Mapping[str, float], features: Tensor, labels: Tensor, tolerance: float = _TOLERANCE
) -> None:
    """Set the head to the optimum for one penalty, found in float64 by L-BFGS.

    Args:
        model: With the method applied.
        setting: ``penalty``: λ.
        features: What the head sees, (N, d).
        labels: Classes, (N,).
        tolerance: Of the largest entry of the gradient, at which the search for the optimum ends.
    """
    head = model.get_classifier()  # pyright: ignore[reportCallIssue]
    mean = features.double().mean(0)
    scale = features.double().var(0, correction=0).mean().sqrt().clamp_min(1e-12)
    x = (features.double() - mean) / scale
    weight = x.new_zeros(head.weight.shape).requires_grad_()
    bias = x.new_zeros(len(weight)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + setting["penalty"] / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType] (torch's hint wants a float)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias - weight @ mean / scale)


@register_method("linear_exact", LinearExactConfig, merge=merge_nothing, fit=fit_linear_exact)
def apply_linear_exact(model: nn.Module, cfg: LinearExactConfig) -> None:
    """Leave the backbone frozen.

    Raises:
        ConfigError: If the model's head is not one linear layer with a bias.
    """
    del cfg
    linear_head(model, "linear_exact")
