"""GIFT for every model that Hugging Face peft adapts; importing this registers the method ``GIFT`` with peft.

    from gift_vit.hf import GiftConfig
    from peft import get_peft_model
    model = get_peft_model(model, GiftConfig(r=32, target_modules=["query", "value"]))

Adapters that are saved so are loaded by ``PeftModel.from_pretrained`` after this import. The rest of ``gift_vit`` does without
it, and it without the rest: it is written to peft's conventions.
"""

from peft.utils import PeftType, register_peft_method


def _add_peft_type(name: str) -> None:
    """Make ``name`` a member of peft's enumeration of methods, which has no other way in.

    ``register_peft_method`` takes members alone, and peft and transformers ask them for ``.value``.
    """
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member._sort_order_ = len(PeftType)  # pyright: ignore[reportAttributeAccessIssue]
    member.__objclass__ = PeftType  # pyright: ignore[reportAttributeAccessIssue]
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member


_add_peft_type("GIFT")

from .config import GiftConfig  # noqa: E402 (needs the member)
from .convert import from_adapter, to_adapter  # noqa: E402
from .layer import GiftLayer, GiftPair, Linear  # noqa: E402
from .model import GiftModel  # noqa: E402

__all__ = ["GiftConfig", "GiftLayer", "GiftModel", "GiftPair", "Linear", "from_adapter", "to_adapter"]


def _register() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    member = PeftType("GIFT")
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known is None:
        register_peft_method(name="gift", config_cls=GiftConfig, model_cls=GiftModel)
    elif (known.__module__, known.__qualname__) == (GiftConfig.__module__, GiftConfig.__qualname__):  # imported anew
        PEFT_TYPE_TO_CONFIG_MAPPING[member], PEFT_TYPE_TO_TUNER_MAPPING[member] = GiftConfig, GiftModel
    else:
        raise ImportError(
            f"peft's method GIFT is {known.__module__}.{known.__qualname__} already; import that, or gift_vit.hf, not both"
        )


_register()
