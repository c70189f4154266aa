"""TOAST: top-down attention steering (Shi, Gai, Darrell, Wang, arXiv 2305.15542): a second pass whose values are fed back to.

With z (B, N, d) the normed tokens of a first pass through the frozen ViT, p → ``prior`` and P → ``transform``:

    ``s = clamp(cos(z, p), 0, 1) z P``;  from the top, ``h = s``, then for l = L−1 … 0: ``h ← U_l h``, ``td_l = O_l h``

(U_l → ``decoders.{l}.down``, O_l → ``decoders.{l}.out``). The second pass starts from the image again, and in block l the
values are ``v + W_v td_l + b_v``; the bias is in them twice, as in the authors' code, and td is not normed. The head reads the
second pass. ``lite_rank`` freezes U and O and trains low-rank updates of them, TOAST-Lite.

The published numbers start from decoders that were tuned on ImageNet, ``weights``; random ones are another starting point.
"""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gift_vit.common.errors import ConfigError
from gift_vit.methods.blocks import refuse_intermediates, timm_blocks
from gift_vit.methods.config import ToastConfig, register_method
from gift_vit.methods.targets import AdaptedLinear, SmallLinear, find_targets, replace_linear

log = logging.getLogger(__name__)
_AUTHORS = {"prompt": "prior", "top_down_transform": "transform", "linear": "down", "linear2": "out"}


class DecoderLinear(SmallLinear):
    """d → d without bias; of TOAST-Lite frozen, with a trained low-rank update of scale 1 / r.

    Attributes:
        weight: (d, d), normal.
        lora_A: (r, d), uniform on ±1/√d; None without rank.
        lora_B: (d, r), zero.
    """

    def __init__(self, width: int, cfg: ToastConfig, device: torch.device) -> None:
        super().__init__(width, width, bias=False, device=device)
        nn.init.normal_(self.weight, std=cfg.decoder_std)
        rank = cfg.lite_rank
        self.lora_A = self.lora_B = None
        if rank is not None:
            self.lora_A = nn.Parameter(torch.empty(rank, width, device=device).uniform_(-(width**-0.5), width**-0.5))
            self.lora_B = nn.Parameter(torch.zeros(width, rank, device=device))

    def forward(self, input: Tensor) -> Tensor:
        """Tokens (..., d) to (..., d)."""
        y = super().forward(input)
        if self.lora_A is None or self.lora_B is None:
            return y
        return y + input @ self.lora_A.to(input.dtype).T @ self.lora_B.to(input.dtype).T / len(self.lora_A)


class Toast(nn.Module):
    """``model.toast``: what selects tokens of the first pass and feeds them back.

    Attributes:
        prior: p, (d,), normal.
        transform: P, (d, d), the identity.
        decoders: ``down`` U and ``out`` O of every block.
    """

    def __init__(self, width: int, depth: int, cfg: ToastConfig, device: torch.device) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.randn(width, device=device))
        self.transform = nn.Parameter(torch.eye(width, device=device))
        self.decoders = nn.ModuleList(
            nn.ModuleDict({name: DecoderLinear(width, cfg, device) for name in ("down", "out")}) for _ in range(depth)
        )

    def similarity(self, tokens: Tensor) -> Tensor:
        """Cosine of every token (B, N, d) with the prior, clamped to [0, 1], shape (B, N, 1)."""
        return F.cosine_similarity(tokens, self.prior.to(tokens.dtype), dim=-1).clamp(0, 1).unsqueeze(-1)

    def feed_back(self, tokens: Tensor) -> list[Tensor]:
        """What is fed back to every block, (B, N, d) each, from the normed tokens (B, N, d) of the first pass."""
        hidden = self.similarity(tokens) * tokens @ self.transform.to(tokens.dtype)
        signals = []
        for decoder in reversed(cast("list[Any]", list(self.decoders))):
            hidden = decoder["down"](hidden)
            signals.append(decoder["out"](hidden))
        return signals[::-1]


class SteeredLinear(AdaptedLinear):
    """A block's ``attn.qkv``, whose values have W_v td + b_v added in the second pass.

    Attributes:
        signal: td (B, N, d) while the block's second pass runs, otherwise None.
    """

    signal: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens (B, N, d) to (B, N, 3 d)."""
        y = self.frozen(x)
        if self.signal is None:
            return y
        width = self.out_features // 3
        bias = None if self.bias is None else self.bias[2 * width :]
        value = F.linear(self.signal, self.weight[2 * width :], bias)
        return y + F.pad(value.to(y.dtype), (2 * width, 0))


class ToastBlock(nn.Module):
    """timm's block with what is fed back as a second input; :mod:`gift_vit.acceleration` leaves nothing of it out."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.train(block.training)

    def forward(self, x: Tensor, signal: Tensor | None = None, **masks: Any) -> Tensor:
        """Tokens (B, N, d) to (B, N, d), with what is fed back to its values, (B, N, d), or without."""
        timm: Any = self
        timm.attn.qkv.signal = signal
        try:
            x = x + timm.drop_path1(timm.ls1(timm.attn(timm.norm1(x), **masks)))
        finally:
            timm.attn.qkv.signal = None
        return x + timm.drop_path2(timm.ls2(timm.mlp(timm.norm2(x))))


def _two_passes(model: Any, images: Tensor, **masks: Any) -> Tensor:
    """``forward_features``: normed tokens (B, N, d) of the second pass over images (B, 3, H, W)."""
    embedded = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    with torch.no_grad():  # nothing in it is trained
        tokens = embedded
        for block in model.blocks:
            tokens = block(tokens, **masks)
        tokens = model.norm(tokens)
    recomputes = model.grad_checkpointing and torch.is_grad_enabled()
    for block, signal in zip(model.blocks, model.toast.feed_back(tokens), strict=True):
        run = partial(checkpoint, block, use_reentrant=False) if recomputes else block
        embedded = run(embedded, signal, **masks)
    return model.norm(embedded)


def initialise_toast(model: nn.Module, cfg: ToastConfig, batches: Iterable[Tensor]) -> None:
    """Load the tuned decoders, and warn of a prior that no token of a first batch passes: it cannot learn.

    Raises:
        ConfigError: If the file is absent, or not of this model, or there is no batch.
    """
    vit, toast = cast("VisionTransformer", model), cast("Toast", model.toast)
    if cfg.weights is None:
        log.warning("TOAST starts from random decoders; the published numbers start from decoders tuned on ImageNet")
    else:
        cfg.check_present()
        _load_decoders(toast, Path(cfg.weights))
    if (images := next(iter(batches), None)) is None:
        raise ConfigError("method 'toast' starts from a first batch of training images, and there is none in what it was given")
    with torch.no_grad():
        tokens = VisionTransformer.forward_features(vit, images)
        passing = (toast.similarity(tokens) > 0).double().mean().item()
    log.info("TOAST: %.0f %% of the tokens of a first batch pass the selection", 100 * passing)
    if passing == 0:
        log.warning("TOAST's prior selects no token of a first batch and has no gradient there; take another seed")


def _load_decoders(toast: Toast, path: Path) -> None:
    """Take prior, transform and decoders from a file, with this project's names or the authors'."""
    try:
        safe = path.suffix == ".safetensors"
        content: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, SafetensorError) as error:
        raise ConfigError(f"method.weights={path} cannot be read: {str(error).splitlines()[0]}") from error
    tensors = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else {}
    own = {name: tensor for name, tensor in toast.state_dict().items() if "lora_" not in name}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed = ".".join(_AUTHORS.get(part, part) for part in str(name).split("."))
        found |= {known: tensor for known in own if f".{renamed}".endswith(f".{known}")}
    wrong = [name for name, tensor in own.items() if name not in found or found[name].shape != tensor.shape]
    if wrong:
        raise ConfigError(
            f"method.weights={path} has no {wrong[0]} of shape {tuple(own[wrong[0]].shape)}; give TOAST's decoders"
        )
    toast.load_state_dict(found, strict=False)


@register_method(
    "toast",
    ToastConfig,
    merge=None,
    identity_at_init=False,
    unmergeable="its feedback depends on the input",
    initialise=initialise_toast,
)
def apply_toast(model: nn.Module, cfg: ToastConfig) -> None:
    """Let ``model.forward_features`` pass twice; what selects and feeds back lives in ``model.toast``."""
    vit, blocks = timm_blocks(model, "toast")
    layers = find_targets(model, ["attn.qkv"])["attn.qkv"]
    device = next(model.parameters()).device
    toast = Toast(vit.embed_dim, len(blocks), cfg, device).train(model.training)
    for name, parameter in toast.named_parameters():
        is_lite = cfg.lite_rank is not None and "decoders" in name and "lora_" not in name
        parameter.requires_grad_(not is_lite and (name != "transform" or cfg.train_transform))
    model.toast = toast
    for layer in layers:
        replace_linear(model, layer.name, SteeredLinear(layer.module))
    for index, block in blocks.items():
        model.set_submodule(f"blocks.{index}", ToastBlock(block))
    vars(model)["forward_features"] = partial(_two_passes, model)
    refuse_intermediates(model, "TOAST passes twice")  # timm's own would be one pass of the plain backbone
