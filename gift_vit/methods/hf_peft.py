"""The methods of Hugging Face peft on timm's layers: one YAML each, no code of ours per method.

peft's layers are put into the model in place and taken out again by merging. peft itself is imported on first use: it
brings transformers along, which takes seconds that other methods need not wait for.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from gift_vit.common.checks import of_type
from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.methods.config import PeftConfig, register_method, spec_of
from gift_vit.methods.targets import block_of, choose_from, chosen_blocks, find_targets, head_modules, refuse_shared

# these need more than a layer: task ids in every forward pass, an embedding, a language model's attention or decoder;
# GIFT is there once gift_vit.hf is imported, and kind: gift is the one for timm
_NOT_FOR_LAYERS = {"POLY", "TRAINABLE_TOKENS", "ADAPTION_PROMPT", "SHADOW", "GIFT"}
_SET_BY_US = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
# Options that peft takes without a word and that change nothing here, by the method that has them (None: all), and why.
# Measured: weights, outputs and gradients are then those without the option.
_WITHOUT_EFFECT = {
    None: (
        "it is for embeddings, quantised or transposed weights, or language models",
        {"fan_in_fan_out", "ensure_weight_tying", "layer_replication", "megatron_config", "megatron_core", "target_parameters"}
        | {"trainable_token_indices", "use_qalora", "qalora_group_size"},
    ),
    "LORA": (
        "it belongs to a start that needs data or a quantised weight",
        {"loftq_config", "eva_config", "corda_config", "lora_ga_config"},
    ),
    "ADALORA": (
        "ranks are not allocated to layers here",
        {"target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "rank_pattern", "alpha_pattern"},
    ),
    "ADAMSS": (
        "subspaces are not allocated here",
        {"use_asa", "asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval"}
        | {"asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent"},
    ),
}
_FACTORS = ("ia3_l", "boft_s")  # stored with two axes of which one is 1; they start at 1, and decay would pull them towards 0
REFUSALS = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What peft raises where it cannot do a thing."""


def inject(model: nn.Module, peft_type: str, names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Put peft's layers into the model, in place; exactly their adapter parameters become trainable.

    The tuner is called as ``peft.inject_adapter_in_model`` calls it. That function refuses methods whose layers share
    tensors, since it drops the tuner that lists them; here the layers keep them alive and the adapter file holds them.

    Args:
        model: A timm ViT, frozen.
        peft_type: The method's name.
        names: Full names of the modules to adapt.
        options: Fields of peft's config class.

    Raises:
        ConfigError: If peft cannot adapt them so; the model is then as it was.
    """
    inject_config(model, _build_config(peft_type, _pattern(names), options), names)


def inject_config(model: nn.Module, config: Any, names: Sequence[str]) -> None:
    """As :func:`inject`, by a config of peft that matches the modules of these names.

    Keys of ``rank_pattern`` and of its kin, regular expressions, become the names of the layers that they match.
    Until it is merged the model keeps the config where peft's own functions look for it, as ``peft_config["default"]``.
    """
    peft_type = str(config.peft_type.value)
    _settle_patterns(config, names)
    weights = {name: model.get_submodule(name).get_parameter("weight").detach().clone() for name in names}
    try:
        with _quiet():
            tuner = _peft().PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, "default")
            # in float32 what is added to a model of half precision, as peft has it; norms, which stand in for others, are not
            tuner._cast_adapter_dtype("default")
        _check_layers(model, config, weights)
    except REFUSALS as error:
        _take_out(model, weights)
        raise ConfigError(f"{peft_type} of peft cannot adapt this model: {_one_line(error)}") from error
    for _, layer in peft_layers(model):
        layer.train(layer.get_base_layer().training)
        for part in (getattr(layer, name, None) for name in layer.other_param_names):
            if isinstance(part, nn.Module):  # peft makes AdaLoRA's frozen ranknum trainable where it moves it to a GPU
                part.requires_grad_(False)
        for factors in filter(None, (getattr(layer, name, None) for name in _FACTORS)):
            factors.exempt_from_weight_decay = True


def _settle_patterns(config: Any, names: Sequence[str]) -> None:
    from peft.utils.other import get_pattern_key

    for option, given in vars(config).items():
        if not option.endswith("_pattern") or not isinstance(given, dict):
            continue
        try:
            idle = [key for key in given if not any(get_pattern_key([key], name) == key for name in names)]
        except re.error as error:
            raise ConfigError(f"method.options.{option}={given}: no regular expression ({error})") from error
        if idle:
            raise ConfigError(
                f"method.options.{option}: {idle[0]!r} matches none of the adapted layers, which are {', '.join(names[:3])}"
                f"{', …' if len(names) > 3 else ''}"
            )
        setattr(config, option, {name: given[key] for name in names if (key := get_pattern_key(list(given), name)) in given})


def peft_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers that peft put into the model, with their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


@torch.no_grad()
def merge_peft(model: nn.Module, cfg: Any) -> None:
    """Fold every layer of peft into the layer that it wraps, and put that one back.

    Raises:
        ConfigError: If the method cannot be merged; the model is then as it was.
    """
    layers = peft_layers(model)
    refuse_shared(spec_of(cfg).kind, model, [(name, layer.get_base_layer()) for name, layer in layers])
    for name, layer in layers:
        try:
            with _quiet():
                layer.merge()
        except NotImplementedError as error:
            method = type(layer).__module__.split(".")[-2]  # peft.tuners.<method>.layer
            raise ConfigError(f"{method} of peft cannot be merged into the backbone; keep the adapter beside it") from error
        model.set_submodule(name, layer.get_base_layer().requires_grad_(False))
    vars(model).pop("peft_config", None)
    vars(model).pop("draws_on_cpu", None)


@register_method("peft", PeftConfig, merge=merge_peft, identity_at_init=False)
def apply_peft(model: nn.Module, cfg: PeftConfig) -> None:
    """Replace the target layers by peft's; what peft refuses of the options is an error before the model is touched."""
    _check_options(cfg)
    options = dict(cfg.options)
    if cfg.peft_type == "LN_TUNING":
        names = _norm_names(model, cfg)
    else:
        names = _linear_names(model, cfg.target_modules, cfg.blocks)
        if options.get("feedforward_modules"):  # of IA3: the targets whose input is scaled, not their output
            options["feedforward_modules"] = _pattern(_linear_names(model, options["feedforward_modules"], cfg.blocks))
    inject(model, cfg.peft_type, names, options)
    if options.get("module_dropout"):  # LoHa's and LoKr's, by a number that a recorded step would draw once
        vars(model)["draws_on_cpu"] = True


def _pattern(names: Sequence[str]) -> str:
    """Matches these names alone; a list of names would match every longer name that ends in one of them."""
    return "|".join(map(re.escape, names))


def _linear_names(model: nn.Module, targets: Sequence[str], blocks: Sequence[int] | None) -> list[str]:
    return [layer.name for layers in find_targets(model, targets, blocks).values() for layer in layers]


def _norm_names(model: nn.Module, cfg: PeftConfig) -> list[str]:
    chosen_blocks(model, cfg.blocks)
    head = head_modules(model)
    norms = {name: type(module).__name__ for name, module in model.named_modules() if _is_norm(module) and module not in head}
    kinds = " or ".join(dict.fromkeys(norms.values())) or "LayerNorm or RMSNorm"
    where = "" if cfg.blocks is None else f" in blocks={list(cfg.blocks)}"
    names: list[str] = []
    for target in cfg.target_modules:
        found = [name for name in norms if f".{name}".endswith(f".{target}")]
        if cfg.blocks is not None:
            found = [name for index in cfg.blocks for name in found if (block_of(name) or (None,))[0] == index]
        if not found:
            known = choose_from((name.rpartition(".")[2] for name in norms), kinds)
            raise ConfigError(f"target {target!r} matches no {kinds}{where}; {known}")
        names += found
    return names


def _is_norm(module: nn.Module) -> bool:
    """A layer norm that has a weight. Models of transformers have RMS norms of classes of their own, as LlamaRMSNorm.

    peft names both kinds, by the model: ``TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING``.
    """
    named = isinstance(module, nn.LayerNorm) or re.search(r"(layer|rms)_?norm$", type(module).__name__, re.IGNORECASE)
    weight = getattr(module, "weight", None)
    return bool(named) and isinstance(weight, nn.Parameter) and weight.ndim == 1


def _build_config(peft_type: str, target_modules: list[str] | str, options: Mapping[str, Any]) -> Any:
    """The config object of peft; what it refuses is a :class:`ConfigError`."""
    try:
        with _quiet():
            return _config_class(peft_type)(target_modules=target_modules, **options)
    except REFUSALS as error:
        raise ConfigError(f"method.options of {peft_type}: {_one_line(error)}") from error


def _check_layers(model: nn.Module, config: Any, weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        layer: Any = model.get_submodule(name)
        if not weight.is_meta and not torch.equal(layer.get_base_layer().weight, weight):
            raise ValueError(f"with these options it changes the frozen weight of {name}, which the adapter file does not hold")
        factor = getattr(config, "boft_n_butterfly_factor", None)
        if factor is not None and len(layer.boft_R["default"]) != factor:
            raise ValueError(f"boft_n_butterfly_factor={factor} needs peft's CUDA extension, which could not be loaded; take 1")


@torch.no_grad()
def _take_out(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    vars(model).pop("peft_config", None)
    for name, layer in peft_layers(model):
        model.set_submodule(name, layer.get_base_layer())
    for name, weight in weights.items():
        model.get_submodule(name).get_parameter("weight").copy_(weight)
    model.requires_grad_(False)


def _config_class(peft_type: str) -> type[Any]:
    classes = {
        kind.value: cls
        for kind, cls in _peft().PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if kind.value not in _NOT_FOR_LAYERS and "target_modules" in {f.name for f in fields(cls)}
    }
    if peft_type not in classes:
        hint = did_you_mean(peft_type.upper(), classes)
        raise ConfigError(f"unknown method.peft_type {peft_type!r}{hint} (known: {', '.join(sorted(classes))})")
    return classes[peft_type]


def _check_options(cfg: PeftConfig) -> None:
    """Names and types of the options, and what peft's config class refuses; that checks types nowhere and some values only."""
    cls = _config_class(cfg.peft_type)
    known = {f.name for f in fields(cls)} - {f.name for f in fields(_peft().PeftConfig)} - _SET_BY_US
    types = get_type_hints(cls)
    if cfg.options.get("init_lora_weights") == "eva":  # without its look at data it is plain LoRA
        raise ConfigError(
            "method.options.init_lora_weights=eva needs training images, which peft is not given; take method=lora_eva"
        )
    for name, value in cfg.options.items():
        if name not in known:
            hint = did_you_mean(name, sorted(known))
            raise ConfigError(f"unknown key method.options.{name}{hint} (known: {', '.join(sorted(known))})")
        if not of_type(value, types[name]):
            expected = getattr(types[name], "__name__", None) if not get_args(types[name]) else str(types[name])
            raise ConfigError(f"method.options.{name}={value!r}: expected {expected}".replace("typing.", ""))
        for reason, without_effect in (_WITHOUT_EFFECT[kind] for kind in (None, cfg.peft_type) if kind in _WITHOUT_EFFECT):
            if name in without_effect and value != next(f.default for f in fields(cls) if f.name == name):
                raise ConfigError(f"method.options.{name}={value!r} has no effect: {reason}; leave it out")
    config = _build_config(cfg.peft_type, list(cfg.target_modules), cfg.options)
    if getattr(config, "random_seed", 0) is None:
        raise ConfigError(
            f"method.options.random_seed is required for {cfg.peft_type}: what it draws at the start is not in the "
            "adapter file, and must come out the same when that is loaded"
        )


def _peft() -> Any:
    with _quiet():
        import peft
    return peft


@contextmanager
def _quiet() -> Iterator[None]:
    """Peft and what it imports warn of what is meant here, such as layers that are no language model's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
