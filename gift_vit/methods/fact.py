"""FacT: the updates of all layers as one tensor in low-rank factors (Jie, Deng, arXiv 2212.03145).

The weights of a block are cut into 4 + 2n pieces of d × d, in this order: q, k, v, proj, the n pieces of fc1 (its output
channels, d at a time) and the n of fc2 (its input channels). All pieces of all L blocks share U → ``u`` and V → ``v`` (d × r);
each has a Σ (r × r) of its own, and with s → ``scale``:

    ``ΔWᵀ = s U Σ Vᵀ``

- FacT-TT: every Σ is trained, ``sigma`` (L, 4 + 2n, r, r).
- FacT-TK: ``Σ_m[i, j] = Σ_k core[i, j, k] p[m, k]`` with ``core`` (r, r, r) and ``p`` (L (4 + 2n), r).

The authors' code of FacT-TK orders the entries of fc1's and fc2's Σ in another way than that formula, which is the paper's: of
F[i, j, c], made of the n rows of p that belong to the layer, it joins (j, c) and cuts that into n pieces of r; for fc2 it takes
the transposes, too. Published numbers come from that, and it is the default here (``order: reference``). They are two models.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import FactConfig, register_method
from gift_vit.methods.targets import AdaptedLinear, find_targets, finer, merge_linears, replace_linear

_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class Fact(nn.Module):
    """``model.fact``: the factors that all layers share.

    Attributes:
        u: (d, r), uniform on ±1/√d.
        v: (d, r), zero, so that the model is unchanged at the start.
        sigma: (L, 4 + 2n, r, r), of FacT-TT; uniform as ``nn.Linear`` draws it, ±1/√r and for fc2 ±1/√(n r).
        core: (r, r, r), of FacT-TK; uniform on ±√3 / r.
        p: (L (4 + 2n), r), of FacT-TK; uniform on ±√(6 / (r + L (4 + 2n))).
    """

    def __init__(self, width: int, depth: int, ratio: int, cfg: FactConfig, device: torch.device) -> None:
        super().__init__()

        def uniform(bound: float, *shape: int) -> Tensor:
            return torch.empty(shape, device=device).uniform_(-bound, bound)

        self.pieces, self.ratio, self.reorders = 4 + 2 * ratio, ratio, cfg.order == "reference"
        self.u = nn.Parameter(uniform(1 / math.sqrt(width), width, cfg.rank))
        self.v = nn.Parameter(torch.zeros(width, cfg.rank, device=device))
        if cfg.form == "tt":
            sigma = uniform(1 / math.sqrt(cfg.rank), depth, self.pieces, cfg.rank, cfg.rank)
            sigma[:, 4 + ratio :] /= math.sqrt(ratio)
            self.sigma = nn.Parameter(sigma)
        else:
            rows = depth * self.pieces
            self.core = nn.Parameter(uniform(math.sqrt(3) / cfg.rank, cfg.rank, cfg.rank, cfg.rank))
            self.p = nn.Parameter(uniform(math.sqrt(6 / (cfg.rank + rows)), rows, cfg.rank))

    def sigmas(self, block: Tensor, target: str) -> Tensor:
        """Σ of the pieces of one layer, shape (pieces, r, r); ``block`` is its index, shape (1)."""
        first, count = {"attn.qkv": (0, 3), "attn.proj": (3, 1)}.get(target, (4, self.ratio))
        own = slice(first + self.ratio, None) if target == "mlp.fc2" else slice(first, first + count)
        if hasattr(self, "sigma"):
            return self.sigma.index_select(0, block)[0, own]
        rows = self.p.unflatten(0, (-1, self.pieces)).index_select(0, block)[0, own]
        if target.startswith("attn.") or not self.reorders:
            return torch.einsum("ijk,mk->mij", self.core, rows)
        joined = torch.einsum("ijk,ck->ijc", self.core, rows).flatten(1).unflatten(1, (self.ratio, -1))  # (r, n, r)
        return joined.permute(1, 2, 0) if target == "mlp.fc2" else joined.transpose(0, 1)


class FactLinear(AdaptedLinear):
    """A frozen linear layer with its pieces of the tensor; the factors belong to ``model.fact``."""

    block: Tensor

    def __init__(self, linear: nn.Linear, fact: Fact, block: int, target: str, cfg: FactConfig) -> None:
        super().__init__(linear)
        self.place = (fact, target)  # in a tuple: the factors are listed once in the state dict
        index = torch.tensor([block], device=linear.weight.device)  # a number would be compiled in, anew for each block
        self.register_buffer("block", index, persistent=False)
        self.scale, self.cuts_input = cfg.scale, target == "mlp.fc2"
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out); dropout is drawn for each piece of the output, in the r channels before V."""
        fact, target = self.place
        u, v, sigmas = (tensor.to(x.dtype) for tensor in (fact.u, fact.v, fact.sigmas(self.block, target)))
        if self.cuts_input:
            hidden = F.linear(x.unflatten(-1, (len(sigmas), -1)), u.T).flatten(-2) @ sigmas.flatten(0, 1)
            change = self.dropout(hidden) @ v.T
        else:
            hidden = x @ u @ sigmas.transpose(0, 1).flatten(1)
            change = (self.dropout(hidden).unflatten(-1, (len(sigmas), -1)) @ v.T).flatten(-2)
        y = self.frozen(x)
        return y + self.scale * change.to(y.dtype)

    def merged_weight(self) -> Tensor:
        """W with s V Σᵀ Uᵀ added to every piece."""
        fact, target = self.place
        u, v, sigmas = (finer(tensor) for tensor in (fact.u, fact.v, fact.sigmas(self.block, target)))
        changes = (v @ sigmas.mT @ u.T).unbind()
        return finer(self.weight) + self.scale * torch.cat(changes, dim=1 if self.cuts_input else 0)


def merge_fact(model: nn.Module, cfg: FactConfig) -> None:
    """Fold the updates into their layers and remove the factors."""
    del cfg
    merge_linears(model)
    del model.fact


@register_method("fact", FactConfig, merge=merge_fact)
def apply_fact(model: nn.Module, cfg: FactConfig) -> None:
    """Replace the linear layers of all blocks by :class:`FactLinear`; the factors live in ``model.fact``.

    Raises:
        ConfigError: If the layers cannot be cut into pieces of d × d, or the rank exceeds d.
    """
    projections = find_targets(model, ["attn.proj"])["attn.proj"]
    linear, depth = projections[0].module, len(projections)
    width, ratio = linear.in_features, _pieces_of_mlps(model, linear.in_features, depth)
    if cfg.rank > width:
        raise ConfigError(f"method.rank={cfg.rank}: expected 1 to {width}, the width of the tokens")
    layers = find_targets(model, _TARGETS)
    rows = {"attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": ratio * width, "mlp.fc2": width}
    for target, layer in ((target, layer) for target, found in layers.items() for layer in found):
        if layer.module.out_features != rows[target]:
            raise ConfigError(f"method 'fact' needs layers of pieces {width} x {width}, and not {layer.name}, {layer.module}")
    model.fact = fact = Fact(width, depth, ratio, cfg, linear.weight.device).train(model.training)
    for target, found in layers.items():
        for block, layer in enumerate(found):
            replace_linear(model, layer.name, FactLinear(layer.module, fact, block, target, cfg))


def _pieces_of_mlps(model: nn.Module, width: int, depth: int) -> int:
    """n, the hidden width of the MLPs over that of the tokens."""
    ratios: set[float] = set()
    for name in (f"blocks.{index}.mlp" for index in range(depth)):
        mlp = model.get_submodule(name)
        fc1, fc2 = getattr(mlp, "fc1", None), getattr(mlp, "fc2", None)
        if not (isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear) and fc1.out_features == fc2.in_features):
            raise ConfigError(
                f"method 'fact' needs MLPs of two layers, fc1 and fc2, and not {name}, a gated {type(mlp).__name__}"
            )
        ratios.add(fc1.out_features / width)
    if len(ratios) > 1 or not all(ratio.is_integer() for ratio in ratios):
        listed = " and ".join(f"{ratio:g}" for ratio in sorted(ratios))
        raise ConfigError(
            f"method 'fact' needs MLPs that are a whole number of times as wide as the tokens ({width}), not {listed}"
        )
    return int(ratios.pop())
