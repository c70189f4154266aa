"""k nearest neighbours on the frozen backbone's features (Wu et al., arXiv 1805.01978; DINO, arXiv 2104.14294, section 4.1).

The k training images of the largest cosine similarity s vote for their classes with exp(s / τ). The head is the bank of their
features; nothing in it is trained.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import KnnConfig, register_method
from gift_vit.methods.targets import linear_head

_FLOOR = 1e-6  # added to every class's share of the votes, so that a class without a neighbour has a logarithm


class KnnHead(nn.Module):
    """A classification head that compares with a bank of features.

    Attributes:
        bank: Features of the training images, of unit length, class after class, (N, d); (0, d) until it is fitted.
        class_sizes: How many of them each class has, (classes,).
        k: Neighbours that vote, ().
        temperature: τ, ().
    """

    bank: Tensor
    class_sizes: Tensor
    k: Tensor
    temperature: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.empty(0, width))
        self.register_buffer("class_sizes", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("k", torch.tensor(1))
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, features: Tensor) -> Tensor:
        """The logarithm of each class's share of the votes: from features (B, d) to (B, classes).

        Raises:
            ConfigError: If the bank is empty.
        """
        if len(self.bank) == 0:
            raise ConfigError("the bank of method 'knn' is empty: fit the method, or load its adapter file")
        classes = torch.arange(len(self.class_sizes), device=features.device)
        labels = classes.repeat_interleave(self.class_sizes)
        similarity = F.normalize(features.float(), dim=1) @ self.bank.float().T
        nearest, index = similarity.topk(min(int(self.k), len(self.bank)), dim=1)
        votes = (nearest / self.temperature.float()).softmax(1)
        shares = votes.new_zeros(len(features), len(classes)).scatter_add_(1, labels[index], votes)
        return (shares + _FLOOR).log()


def fit_knn(model: nn.Module, setting: Mapping[str, float], features: Tensor, labels: Tensor) -> None:
    """Fill the head's bank.

    Args:
        model: With the method applied.
        setting: ``k`` and ``temperature``.
        features: What the head sees, (N, d).
        labels: Classes, (N,).
    """
    head = model.get_classifier()  # pyright: ignore[reportCallIssue]
    order = labels.argsort(stable=True)
    head.bank = F.normalize(features[order].float(), dim=1)
    head.class_sizes.copy_(labels.bincount(minlength=len(head.class_sizes)))
    head.k.fill_(setting["k"])
    head.temperature.fill_(setting["temperature"])


@register_method(
    "knn",
    KnnConfig,
    merge=None,
    identity_at_init=False,
    unmergeable="it compares an image with the features of the training images, which no plain timm model holds",
    fit=fit_knn,
)
def apply_knn(model: nn.Module, cfg: KnnConfig) -> None:
    """Put an empty bank in the place of the model's head.

    Raises:
        ConfigError: If the model's head is not one linear layer with a bias.
    """
    del cfg
    head = linear_head(model, "knn")
    owner, _, name = next(name for name, module in model.named_modules() if module is head).rpartition(".")
    bank = KnnHead(head.in_features, head.out_features).to(head.weight.device).train(head.training)
    setattr(model.get_submodule(owner), name, bank)
