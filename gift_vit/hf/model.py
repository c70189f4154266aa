"""GIFT in a model: which layers are adapted, which of them share a pair, and what is saved of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn

from gift_vit.methods.targets import reads_weight

from .config import GiftConfig
from .layer import GiftLayer, GiftPair, Linear, widths

log = logging.getLogger(__name__)

# the paper's targets, by the model type of transformers
TRANSFORMERS_MODELS_TO_GIFT_TARGET_MODULES_MAPPING: dict[str, list[str]] = {
    **{kind: ["query", "value"] for kind in ("bert", "roberta", "electra", "camembert", "xlm-roberta")},
    **{kind: ["q_proj", "v_proj"] for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "opt")},
    "gpt2": ["c_attn"],
    "t5": ["q", "v"],
    "vit": ["o_proj"],
}
_PEFT_PREFIX = "base_model.model."


class GiftModel(BaseTuner):
    """Adapts the linear layers of a model by GIFT (https://arxiv.org/abs/2312.00700).

    Args:
        model: The model to adapt, in place.
        config: The options.
        adapter_name: A name for the adapter; not ``gift`` or a part of it, which peft would take for the name of the method.
        low_cpu_mem_usage: Make the pairs on the meta device, for an adapter that is loaded next.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import AutoModelForSequenceClassification
        >>> from gift_vit.hf import GiftConfig
        >>> base = AutoModelForSequenceClassification.from_pretrained("FacebookAI/roberta-base")
        >>> model = get_peft_model(base, GiftConfig(r=32, target_modules=["query", "value"], task_type="SEQ_CLS"))
    """

    prefix: str = "gift_"
    tuner_layer_cls = GiftLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_GIFT_TARGET_MODULES_MAPPING

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        del model
        if peft_config.target_modules == "all-linear" and peft_config.share == "target":
            peft_config.share = "name"  # peft puts all full names in its place, and the file has these
        self._pairs: dict[str, GiftPair] = {}

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del parameter_name  # of methods that adapt parameters of experts
        if reads_weight(parent, target_name):
            raise TypeError(
                f"{current_key} cannot be adapted: {type(parent).__name__} computes with its weight and does not call it; "
                f"give exclude_modules=[{current_key!r}]"
            )
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        d_in, _ = widths(base)
        if peft_config.r > d_in:
            raise ValueError(f"`r`={peft_config.r} is larger than the input width of {current_key}, {d_in}; choose 1 to {d_in}")
        group = group_of(current_key, d_in, peft_config)
        if group not in self._pairs:
            self._pairs[group] = GiftPair(d_in, peft_config.r, peft_config.init_weights)
        pair = self._pairs[group]
        if len(pair.phi) != d_in:
            raise ValueError(
                f"share={peft_config.share!r} needs layers of one input width: {current_key} has {d_in}, those before it "
                f"{len(pair.phi)}; leave some out, or use share='target'"
            )
        if isinstance(target, GiftLayer):
            target.update_layer(adapter_name, pair, group, peft_config)
            return
        kwargs = get_quantization_kwargs(self.model)
        new_module = Linear(target, adapter_name, pair, group, peft_config, **kwargs)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)  # an additional adapter is not trained at once
        self._replace_module(parent, target_name, new_module, target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As :class:`BaseTuner` does; then the log names the groups."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        adapted = [module for module in model.modules() if isinstance(module, GiftLayer) and adapter_name in module.group]
        layers = [module.group[adapter_name] for module in adapted]
        for group, pair in self._pairs.items():
            size = sum(parameter.numel() for parameter in pair.parameters())
            log.info("GIFT pair %s: input width %d, %d layers, %d parameters", group, len(pair.phi), layers.count(group), size)
        self._pairs = {}  # the layers hold them

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """As :class:`BaseTuner` does, also where a head of several layers is put back, which has no weight of its own."""
        if not hasattr(new_module, "base_layer") and not hasattr(getattr(child, "base_layer", child), "weight"):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within it each sample is computed by the adapter that ``adapter_names`` names for it; ``__base__``: by none."""
        del args
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {name for module in self.modules() if isinstance(module, GiftLayer) for name in module.gift_pair}
        if unknown := set(adapter_names) - known - {"__base__"}:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        beams = kwargs.get("num_beams") or 1  # generate repeats each sample so often, after the encoder
        repeated = [name for name in adapter_names for _ in range(beams)]
        encoder = self.model.get_encoder() if beams > 1 and getattr(self.model.config, "is_encoder_decoder", False) else None
        in_encoder = set(encoder.modules()) if encoder is not None else set()
        with ExitStack() as hooks:
            for module in self.modules():
                if isinstance(module, (GiftLayer, AuxiliaryTrainingWrapper)):
                    names = list(adapter_names) if module in in_encoder else repeated
                    handle = module.register_forward_pre_hook(partial(_pass_names, names), with_kwargs=True)
                    hooks.callback(handle.remove)
            yield

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor], unwanted_adapter_names: list[str]
    ) -> dict[str, Tensor]:
        """Each pair once, under the first of its layers."""
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        seen: set[nn.Module] = set()
        for name, layer in _layers(model, adapter_name):
            pair = layer.gift_pair[adapter_name]
            if pair in seen:
                for part in ("phi", "psi"):
                    selected.pop(_key(name, adapter_name, part), None)
            seen.add(pair)
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Each pair of the file under all layers of its group, whichever of them it stands under there."""
        stored: dict[tuple[str, str], Tensor] = {}
        others: dict[str, Tensor] = {}
        for key, tensor in state_dict.items():
            name, found, part = key.rpartition(".gift_pair.")
            if not found:
                others[key] = tensor
                continue
            d_in = tensor.shape[0 if part == "phi" else -1]
            group = group_of(name.removeprefix(_PEFT_PREFIX), d_in, config), part
            if not torch.equal(stored.setdefault(group, tensor), tensor):
                raise ValueError(f"The adapter holds two different {part} for the layers of {group[0]}, which share one")
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, others)
        wanted: set[tuple[str, str]] = set()
        for name, layer in _layers(model, adapter_name):
            for part in ("phi", "psi"):
                group = _stored_group(layer, adapter_name, part, stored)
                wanted.add(group)
                if group in stored:
                    remapped[_key(name, adapter_name, part)] = stored[group]
        unused = {
            f"{group}.gift_pair.{part}": tensor for (group, part), tensor in stored.items() if (group, part) not in wanted
        }
        return remapped | unused  # peft names what it cannot place


def _stored_group(layer: GiftLayer, adapter: str, part: str, stored: dict[tuple[str, str], Tensor]) -> tuple[str, str]:
    """The layer's group as the file has it; one of another width is taken too, for torch then says which shapes differ."""
    own = layer.group[adapter]
    if (own, part) in stored:
        return own, part
    name = own.partition(" ")[0]
    return next((key for key in stored if key[0].partition(" ")[0] == name and key[1] == part), (own, part))


def group_of(name: str, d_in: int, config: GiftConfig) -> str:
    """Which pair the layer of a name and an input width has: layers for which this says the same share one."""
    if config.share == "all":
        return "all"
    if config.share == "layer":
        return name
    target = _target_of(name, config)
    if isinstance(config.share, str):
        return f"{target} ({d_in})"
    for names in config.share:
        if target in names:
            return "+".join(names)
    raise ValueError(f"`share` has no list with {target}; it lists {config.share}")


def _target_of(name: str, config: GiftConfig) -> str:
    """The longest target that a layer's name is or ends in; of an expression or a name with a number its last part."""
    last = name.rpartition(".")[2]
    if config.target_modules is None or isinstance(config.target_modules, str) or config.share == "name":
        return last
    matching = [target for target in config.target_modules if name == target or name.endswith(f".{target}")]
    target = max(matching, key=len, default=last)
    return last if any(part.isdigit() for part in target.split(".")) else target


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, GiftLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, GiftLayer) and adapter_name in module.gift_pair:
            yield name, module


def _key(layer: str, adapter_name: str, part: str) -> str:
    return f"{layer}.gift_pair.{adapter_name}.{part}"


def _pass_names(names: list[str], module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    del module
    return args, kwargs | {"adapter_names": names}
