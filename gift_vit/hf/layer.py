"""A linear layer that GIFT adapts, and the pair (φ, ψ) that such layers share."""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import GiftConfig

_HALF = (torch.float16, torch.bfloat16)


class GiftPair(nn.Module):
    """φ (d_in, r) and ψ (r, d_in) of all layers of a group.

    Layers share this module and not its parameters: peft moves, casts and loads adapters by putting other parameters in their
    place, which would part the layers from each other.
    """

    def __init__(self, d_in: int, r: int, init_weights: bool | str = True) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.empty(d_in, r))
        self.psi = nn.Parameter(torch.empty(r, d_in))
        self.reset_parameters(init_weights)

    def reset_parameters(self, init_weights: bool | str) -> None:
        """Draw φ and ψ as ``nn.Linear(d_in, r)`` draws its weight, uniform on ±1/√d_in; one is zero unless False is given."""
        bound = 1 / math.sqrt(len(self.phi))
        for parameter in (self.phi, self.psi):
            nn.init.uniform_(parameter, -bound, bound)
        if init_weights == "wegeft":
            nn.init.zeros_(self.phi)
        elif init_weights:
            nn.init.zeros_(self.psi)


class GiftLayer(BaseTunerLayer):
    """What a layer with GIFT adapters has beside the layer it wraps.

    Attributes:
        gift_pair: The pair of each adapter.
        r: Its rank.
        scaling: The factor s of φ ψ.
        group: Which layers share the pair, as a name.
        compute: How the adapter is computed, see :class:`GiftConfig`.
    """

    adapter_layer_names: tuple[str, ...] = ("gift_pair",)
    other_param_names: tuple[str, ...] = ("r", "scaling", "group", "compute")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.gift_pair = nn.ModuleDict({})
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.group: dict[str, str] = {}
        self.compute: dict[str, str] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged_weight: Tensor | None = None  # W while adapters are merged; in no state dict
        self.kwargs = kwargs
        base = self.get_base_layer()
        self.in_features, self.out_features = widths(base)
        self.quantization_backend = resolve_quantization_backend(base, **kwargs)

    def update_layer(self, adapter_name: str, pair: GiftPair, group: str, config: GiftConfig) -> None:
        """Add an adapter whose pair this layer shares with the others of its group."""
        self.gift_pair[adapter_name] = pair
        self.r[adapter_name], self.scaling[adapter_name] = config.r, config.scaling
        self.group[adapter_name], self.compute[adapter_name] = group, config.compute
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _factors(self, adapter: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """φ and ψ on a device; layers that share them may lie on several."""
        pair = cast("GiftPair", self.gift_pair[adapter])
        return pair.phi.to(device), pair.psi.to(device)

    @property
    def _stores_transposed(self) -> bool:
        return isinstance(self.get_base_layer(), Conv1D)

    def _weight(self) -> Tensor:
        """W, shape (d_out, d_in), without any adapter."""
        weight = self._original()
        return weight.T if self._stores_transposed else weight

    def _original(self) -> Tensor:
        """The base layer's weight without any adapter, where and in the numbers that the layer has now."""
        base, kept = self.get_base_weight(), self._unmerged_weight
        if kept is None:
            return base
        return kept.to(base.device, base.dtype if base.is_floating_point() else None)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight, s (W φ) ψ, in the layout of the base layer's weight and at least in float32."""
        weight = self._weight()
        phi, psi = self._factors(adapter, weight.device)
        dtype = torch.promote_types(torch.promote_types(weight.dtype, phi.dtype), torch.float32)
        delta = self.scaling[adapter] * (weight.to(dtype) @ phi.to(dtype)) @ psi.to(dtype)
        return delta.T.contiguous() if self._stores_transposed else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """The change of the weight is known, so it can be approximated by LoRA's."""
        del adapter_name
        return True

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put W (I + Σ s φ ψ) in the place of W: all adapters change the weight as it was before any of them.

        Args:
            safe_merge: Refuse a weight that is not finite, leaving the layer as it was.
            adapter_names: The adapters to merge; None: the active ones.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.gift_pair]
        if not names:
            return
        original = self.get_base_weight().clone() if self._unmerged_weight is None else self._original()
        deltas = [self.get_delta_weight(name) for name in (*self.merged_adapters, *names)]
        merged = torch.stack([original.to(deltas[0].dtype), *deltas]).sum(0)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken")
        self._unmerged_weight = original
        self.set_base_weight(merged.to(original.dtype))
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put W back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.set_base_weight(self._original())
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def _check_forward_args(self, x: Tensor, adapter_names: list[str]) -> None:
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError("Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first.")


class Linear(nn.Module, GiftLayer):
    """GIFT on ``nn.Linear``, on transformers' ``Conv1D``, and on the quantised layers that peft knows."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, pair: GiftPair, group: str, config: GiftConfig, **kwargs: Any
    ) -> None:
        super().__init__()
        GiftLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, pair, group, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Inputs (…, d_in) to outputs (…, d_out); with ``adapter_names``, each sample by the adapter named for it."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is not None:
            self._check_forward_args(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self.base_layer(self._adapt_samples(x, adapter_names), *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.gift_pair]
        if not names:
            return self.base_layer(x, *args, **kwargs)
        if not self._uses_weight_form(names):
            return self.base_layer(self._adapt(x, names), *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in names:
            result = result + self._delta_output(x, name).to(result.dtype)
        return result

    def _uses_weight_form(self, names: list[str]) -> bool:
        forms = {self.compute[name] for name in names}
        if forms == {"auto"}:
            return self.training and self.quantization_backend is None and self.get_base_layer().weight.dtype in _HALF
        return "weight" in forms

    def _adapt(self, x: Tensor, names: list[str]) -> Tensor:
        """X + Σ s (x ψᵀ) φᵀ, in the dtype of x: what the base layer is to see."""
        adapted: Tensor | None = None
        for name in names:
            phi, psi = self._factors(name, x.device)
            cast = self._cast_input_dtype(x, psi.dtype)
            delta = (cast @ psi.T) @ phi.T * self.scaling[name]
            adapted = (cast if adapted is None else adapted) + delta
        assert adapted is not None
        return adapted.to(x.dtype)

    def _adapt_samples(self, x: Tensor, adapter_names: list[str]) -> Tensor:
        """The same, for each sample (B, …) with its own adapter; one that this layer has not changes nothing."""
        adapted = x.clone()
        for name in set(adapter_names) & set(self.gift_pair):
            rows = [index for index, own in enumerate(adapter_names) if own == name]
            adapted[rows] = self._adapt(x[rows], [name])
        return adapted

    def _delta_output(self, x: Tensor, name: str) -> Tensor:
        """S (x ψᵀ)(W φ)ᵀ, shape (…, d_out)."""
        weight = self._weight()
        phi, psi = self._factors(name, weight.device)
        reduced = self._cast_input_dtype(x, psi.dtype) @ psi.T * self.scaling[name]
        # φ is cast and not W: autograd would keep a float32 copy of W for each layer
        return reduced.to(weight.dtype) @ (weight @ phi.to(weight.dtype)).T

    def __repr__(self) -> str:
        return "gift." + super().__repr__()


def widths(layer: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear layer.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    is_linear = isinstance(layer, nn.Linear) or resolve_quantization_backend(layer) is not None
    if not is_linear or isinstance(layer, nn.Embedding):
        raise TypeError(
            f"Target module {layer} is not supported. GIFT adapts `torch.nn.Linear` (optionally quantized) and "
            "`transformers.pytorch_utils.Conv1D`."
        )
    return layer.in_features, layer.out_features  # pyright: ignore[reportReturnType]
