"""Fine-tuning methods: options in ``config.py``, and one file for what each does. Public names are imported on demand."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gift_vit.methods.adapter import (
        AdapterFile,
        ParameterCount,
        adapter_state_dict,
        apply_method,
        count_parameters,
        initialise_method,
        load_adapter,
        load_adapter_state_dict,
        merge_method,
        read_adapter,
        save_adapter,
    )
    from gift_vit.methods.config import (
        METHODS,
        AdapterConfig,
        AdaptFormerConfig,
        AplaConfig,
        BitFitConfig,
        ConvpassConfig,
        FactConfig,
        FullConfig,
        GiftConfig,
        GiftHfConfig,
        KnnConfig,
        LinearConfig,
        LinearExactConfig,
        LoraConfig,
        MethodSpec,
        PeftConfig,
        RepAdapterConfig,
        SsfConfig,
        ToastConfig,
        VptConfig,
        get_method,
        register_method,
    )

__all__ = [
    "METHODS",
    "AdaptFormerConfig",
    "AdapterConfig",
    "AdapterFile",
    "AplaConfig",
    "BitFitConfig",
    "ConvpassConfig",
    "FactConfig",
    "FullConfig",
    "GiftConfig",
    "GiftHfConfig",
    "KnnConfig",
    "LinearConfig",
    "LinearExactConfig",
    "LoraConfig",
    "MethodSpec",
    "ParameterCount",
    "PeftConfig",
    "RepAdapterConfig",
    "SsfConfig",
    "ToastConfig",
    "VptConfig",
    "adapter_state_dict",
    "apply_method",
    "count_parameters",
    "get_method",
    "initialise_method",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_method",
    "read_adapter",
    "register_method",
    "save_adapter",
]
_HOMES = ("config", "adapter")  # the first imports no torch


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
