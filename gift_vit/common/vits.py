"""Which of timm's models are Vision Transformers in the sense of this project."""

from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gift_vit.common.errors import ConfigError


def check_vit(model: nn.Module, name: str | None = None) -> None:
    """Refuse a model that is no timm ViT: patches embedded once, then one list of blocks, each with attention.

    Args:
        model: Of timm.
        name: What a person calls it; None: its architecture.

    Raises:
        ConfigError: If it is none; says what there is in it.
    """
    kind, embed = type(model).__name__, getattr(model, "patch_embed", None)
    blocks = getattr(model, "blocks", None)
    blocks = list(blocks.children()) if isinstance(blocks, nn.Module) else []
    other = [type(block).__name__ for block in blocks if not hasattr(block, "attn")]
    if not blocks:
        problem = "without blocks"
    elif other:
        problem = f"whose blocks are no attention and MLP ({other[0]})"
    elif not isinstance(embed, PatchEmbed | HybridEmbed):
        problem = f"whose patch embedding is {type(embed).__name__ if embed else 'elsewhere'}, and not timm's"
    elif any(isinstance(module, _BatchNorm) for module in model.modules()):
        problem = "with batch normalisation, whose statistics training moves and no adapter holds"
    else:
        return
    parts = ", ".join(part for part, _ in model.named_children())
    raise ConfigError(
        f"{name or architecture(model)} is timm's {kind} {problem}; expected a timm ViT, such as vit_*, deit*, beit* or eva* "
        f"(a patch embedding and one list of blocks with attention; it has {parts or 'no parts'})"
    )


def architecture(model: nn.Module) -> str:
    """The model's name at timm, without the tag of its weights; its class where that is not known."""
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__))
