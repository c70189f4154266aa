"""Fine-tuning methods: one file each, found by import; add a file and a YAML, change nothing here."""

import pkgutil
from importlib import import_module

from gift_vit.methods.adapter import (
    AdapterFile,
    ParameterCount,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    read_adapter,
    save_adapter,
)
from gift_vit.methods.adaptformer import AdaptFormerConfig
from gift_vit.methods.bitfit import BitFitConfig
from gift_vit.methods.full import FullConfig
from gift_vit.methods.gift import GiftConfig
from gift_vit.methods.hf_peft import PeftConfig
from gift_vit.methods.linear import LinearConfig
from gift_vit.methods.lora import LoraConfig
from gift_vit.methods.registry import METHODS, MethodSpec, get_method, register_method
from gift_vit.methods.ssf import SsfConfig
from gift_vit.methods.vpt import VptConfig

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "METHODS",
    "AdaptFormerConfig",
    "AdapterFile",
    "BitFitConfig",
    "FullConfig",
    "GiftConfig",
    "LinearConfig",
    "LoraConfig",
    "MethodSpec",
    "ParameterCount",
    "PeftConfig",
    "SsfConfig",
    "VptConfig",
    "adapter_state_dict",
    "apply_method",
    "count_parameters",
    "get_method",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_method",
    "read_adapter",
    "register_method",
    "save_adapter",
]
