"""The options of GIFT as a peft method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class GiftConfig(PeftConfig):
    """Configuration of a :class:`gift_vit.hf.GiftModel`: weights W become W (I + s φ ψ), with few pairs (φ, ψ) for all layers.

    Paper: https://arxiv.org/abs/2312.00700; ``init_weights="wegeft"`` and ``alpha`` are those of its fifth version, WeGeFT.

    Args:
        r: Rank of the pairs, from 1 to the input width of every target.
        target_modules: Names of linear layers, as a list (a name or the end of one), a regular expression for whole names, or
            ``"all-linear"``; None: the paper's, by the model's type.
        exclude_modules: Names that are not adapted though ``target_modules`` matches them.
        share: ``"target"``: one pair for all layers of a target name and an input width; ``"name"``: of the last part of the
            layer's own name, which is what ``"all-linear"`` comes to; ``"all"``: one for all layers, of one input width;
            ``"layer"``: one each; or lists of target names, each list one pair.
        alpha: None: s = 1 (GIFT); a number: s = alpha / r (WeGeFT).
        init_weights: True: φ as ``nn.Linear`` draws its weight, ψ zero. ``"wegeft"``: φ zero, ψ drawn. False: both drawn, so
            that the adapter does something at once.
        compute: ``"activation"``: the base layer sees x + s (x ψᵀ) φᵀ. ``"weight"``: s (x ψᵀ)(W φ)ᵀ is added to what it
            returns, which keeps small changes better in half precision. ``"auto"``: ``"weight"`` where a base layer in half
            precision is trained, otherwise ``"activation"``.
        bias: Biases that are trained too: ``"none"``, ``"all"`` or ``"gift_only"``.
        modules_to_save: Modules trained and saved as a whole, such as a new head.
        layers_to_transform: Indices of the layers that are adapted; all, if None.
        layers_pattern: Name of the ``nn.ModuleList`` that ``layers_to_transform`` counts in.
    """

    r: int = field(default=16, metadata={"help": "Rank of the pairs"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names of the linear layers to adapt, a regular expression, or 'all-linear'"}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, or a regular expression, of modules to leave out"}
    )
    share: str | list[list[str]] = field(
        default="target",
        metadata={"help": "Which layers share a pair: 'target', 'name', 'all', 'layer', or lists of target names"},
    )
    alpha: float | None = field(default=None, metadata={"help": "The update is scaled by alpha / r; None: not at all"})
    init_weights: bool | Literal["wegeft"] = field(
        default=True, metadata={"help": "True: psi zero; 'wegeft': phi zero; False: neither"}
    )
    compute: Literal["auto", "activation", "weight"] = field(
        default="auto", metadata={"help": "How the forward pass is computed; all give the same but for rounding"}
    )
    bias: str = field(default="none", metadata={"help": "Biases trained too: 'none', 'all' or 'gift_only'"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules apart from GIFT's layers that are trained and saved as a whole"}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of the layers to adapt"})
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the nn.ModuleList that layers_to_transform counts in"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.GIFT  # pyright: ignore[reportAttributeAccessIssue]
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")
        if self.r < 1:
            raise ValueError(f"`r` should be a positive integer value but the value passed is {self.r}")
        if isinstance(self.share, str) and self.share not in ("target", "name", "all", "layer"):
            raise ValueError(f"`share` should be 'target', 'name', 'all', 'layer' or lists of target names, got {self.share!r}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"`alpha` should be a positive number or None, got {self.alpha!r}")
        if self.init_weights not in (True, False, "wegeft"):
            raise ValueError(f"`init_weights` should be True, False or 'wegeft', got {self.init_weights!r}")
        if self.compute not in ("auto", "activation", "weight"):
            raise ValueError(f"`compute` should be 'auto', 'activation' or 'weight', got {self.compute!r}")

    @property
    def scaling(self) -> float:
        """The factor s of φ ψ."""
        return 1.0 if self.alpha is None else self.alpha / self.r


def _as_set(names: list[str] | set[str] | str | None) -> set[str] | str | None:
    return set(names) if isinstance(names, list) else names
