"""Models of transformers, and those that classify texts. Imported for such a backbone alone: transformers takes seconds."""

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator, Set
from contextlib import nullcontext
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.hub import hub_asked_once
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.data.tokens import INPUTS, TokenTransform, as_tokens

log = logging.getLogger(__name__)

_HEADS = ("classifier", "pre_classifier", "score", "classification_head", "logits_proj", "vocab_projector")
_DRAWN = ("pooler.", "sequence_summary.")  # parts of a head too, where no weights are loaded that could hold them
_WITH_SEGMENTS = ("xlnet", "funnel")  # learn what is of which text, and have no type_vocab_size
_TRIED = 16  # tokens of the texts that a model is tried on
_OF_A_TOKENIZER = re.compile(r"token|vocab|merges|\.model$")  # in names of files
_IN_LAYER = re.compile(r"\.\d+\.")  # in names of parameters


class TextModel(nn.Module):
    """A model of transformers with its tokenizer, called with tokens (B, 3, L) as a ViT is with pixels.

    Attributes:
        model: The model of transformers.
        tokenizer: Its tokenizer.
        max_tokens: The most tokens that it takes; None: it does not say.
        pretrained_cfg: What it is called, where timm's models say that.
        varies: A batch may have another length than the one before.
    """

    varies = True

    def __init__(self, cfg: BackboneConfig, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = max_tokens(model, tokenizer)
        self.pretrained_cfg = {"architecture": weights_name(cfg)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the layers a second time in the backward pass, and keep little of them; a model is built without.

        Raises:
            ConfigError: If the model cannot.
        """
        if enable and not self.model.supports_gradient_checkpointing:
            name = type(self.model).__name__
            raise ConfigError(f"trainer.memory=minimal is not possible: {name} cannot checkpoint its layers; use fast")
        if enable:
            current = hasattr(self.model, "activation_checkpointing_enable")
            name = "activation_checkpointing_enable" if current else "gradient_checkpointing_enable"  # until transformers 5
            getattr(self.model, name)({"use_reentrant": False})

    def take_plain_attention(self) -> bool:
        """Compute attention by plain products from here on, and no fused kernel; whether the model can."""
        self.model.set_attn_implementation("eager")
        return self.model.config._attn_implementation == "eager"


class TextClassifier(TextModel):
    """A model that gives logits (B, classes).

    Args:
        cfg: What the backbone is told.
        model: The model of transformers.
        tokenizer: Its tokenizer.
        num_classes: Classes, or 1 for a number.
        new: The names of the model's parameters that its weights lack.

    Attributes:
        pads_in_front: Whether batches are filled up in front of the texts: the head reads the last position.
        end_token_id: The token that the head looks for, which stands as often in every text; None: it looks for none.
    """

    def __init__(self, cfg: BackboneConfig, model: Any, tokenizer: Any, num_classes: int, new: Set[str]) -> None:
        super().__init__(cfg, model, tokenizer)
        self.num_classes = num_classes
        self.pads_in_front = _pads_in_front(model)
        own_head = cfg.pooling != "mean"
        self.end_token_id = model.config.eos_token_id if own_head and model.config.is_encoder_decoder else None
        summary = ("sequence_summary",) if hasattr(model, "sequence_summary") else ()  # XLM's head, and a pooler of others
        self._heads = tuple(_heads(model, new)) or summary
        self.head = nn.Linear(model.config.hidden_size, num_classes) if cfg.pooling == "mean" else None
        self._names = [name for name in INPUTS if name != "token_type_ids" or _knows_types(model)]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, classes) of tokens (B, 3, L): ids, attention mask and types, 0 and 1 for the first and second text."""
        return self._called(tokens).logits if self.head is None else self.head(self.forward_features(tokens))

    def forward_features(self, tokens: Tensor) -> Tensor:
        """What the linear head of ``pooling: mean`` sees, (B, D): the mean over the tokens of each text."""
        hidden = self._called(tokens).last_hidden_state
        mask = tokens[:, INPUTS.index("attention_mask"), :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of what :meth:`forward_features` gives, or with ``pre_logits`` that itself, as of timm's models."""
        assert self.head is not None, "a method that is fitted has a linear head"
        return features if pre_logits else self.head(features)

    def _called(self, tokens: Tensor) -> Any:
        return self.model(**{name: part for name, part in zip(INPUTS, tokens.unbind(1), strict=True) if name in self._names})

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """What is drawn anew for a task: one linear layer, or the modules of the model's own head, wherever they lie."""
        return self.head if self.head is not None else tuple(self.model.get_submodule(name) for name in self._heads)


def build_text_model(cfg: BackboneConfig, num_classes: int) -> TextClassifier:
    """A model of transformers with a head of ``num_classes`` classes, drawn from torch's random numbers.

    A head of as many classes that the weights hold is kept, as transformers keeps it, and the log says so.

    Raises:
        ConfigError: If there is no such model or folder, transformers has no head for it, its weights are another model's, it
            has no pad token, or it reads pad tokens.
        RunError: If the hub cannot be reached.
    """
    (model, new), tokenizer = loaded(cfg, lambda: _load(cfg, num_classes))
    _settle_padding(cfg, model, tokenizer)
    classifier = TextClassifier(cfg, model, tokenizer, num_classes, new)
    if not classifier.get_classifier():
        parts = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(
            f"backbone.model={cfg.model}: no head is known in transformers' {type(model).__name__} (it has {parts}); give "
            "backbone.pooling=mean"
        )
    _check_padding(cfg, classifier)
    return classifier


def loaded(cfg: BackboneConfig, load: Callable[[], Any]) -> tuple[Any, Any]:
    """What ``load`` makes of ``cfg.model``, and its tokenizer.

    Raises:
        ConfigError: If there is no such folder, transformers cannot load it, or its tokenizer is not the model's.
        RunError: If the hub cannot be reached, or has no such model.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it tells at length that the head is new
    transformers_logging.disable_progress_bar()
    try:
        with nullcontext() if os.path.isdir(cfg.model) else hub_asked_once():
            AutoConfig.from_pretrained(cfg.model, revision=cfg.revision)  # which says best what is no model at all
            tokenizer = _tokenizer(cfg)
            model = load()
    except OSError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        if os.path.isdir(cfg.model):
            raise ConfigError(f"backbone.model={cfg.model} is no folder of a model of transformers: {reason}") from error
        raise RunError(
            f"the model {cfg.model} could not be had from the hub ({reason}); connect to the internet, check its name, or give "
            "a local folder with backbone.model=<folder>"
        ) from error
    except (SafetensorError, UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"backbone.model={cfg.model}: its weights cannot be read ({reason}); get them again") from error
    except (ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(f"backbone.model={cfg.model} cannot be loaded: {' '.join(str(error).split())}") from error
    finally:
        transformers_logging.set_verbosity(level)
    return model, tokenizer


def _tokenizer(cfg: BackboneConfig) -> Any:
    """The model's tokenizer; of a folder without one transformers makes one that knows special tokens alone."""
    remedy = f"save its tokenizer there too: tokenizer.save_pretrained({cfg.model!r})"
    if os.path.isdir(cfg.model) and not any(map(_OF_A_TOKENIZER.search, os.listdir(cfg.model))):
        raise ValueError(f"the folder holds no tokenizer; {remedy}")
    tokenizer = AutoTokenizer.from_pretrained(cfg.model, revision=cfg.revision)
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ValueError(f"its tokenizer knows no words, special tokens alone; {remedy}")
    return tokenizer


def refuse_strange_tokens(cfg: BackboneConfig, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding of: the first text with one would end the training.

    Raises:
        ConfigError: Names one.
    """
    try:
        rows = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # it has no such table, as those that read characters
        return
    unused = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - {*tokenizer.all_special_ids}
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: -1 if item[1] in unused else item[1])
    if index >= rows:
        raise ConfigError(
            f"backbone.model={cfg.model}: its tokenizer has the token {token!r}, the {index + 1:,}th, and the model embeds "
            f"{rows:,}; save a model after resize_token_embeddings, or its own tokenizer"
            + (", or name a token of these with backbone.pad_token=" if index == tokenizer.pad_token_id else "")
        )


def _load(cfg: BackboneConfig, num_classes: int) -> tuple[Any, set[str]]:
    """The model, with ``pooling: mean`` an encoder without a head, and the names of parameters that its weights lack."""
    mean = cfg.pooling == "mean"
    auto = AutoModel if mean else AutoModelForSequenceClassification
    config = AutoConfig.from_pretrained(cfg.model, revision=cfg.revision, **({} if mean else {"num_labels": num_classes}))
    if cfg.pretrained:
        model, new = with_lacking(auto, cfg, config=config, dtype=torch.float32)
        held = [name for name, _ in model.named_parameters() if name.startswith(_HEADS) and name not in new]
        if held and not mean:
            log.info("backbone.model=%s has a head for %d outputs (%s): it is trained further", cfg.model, num_classes, held[0])
        _check_body(model, new, mean)
    else:
        model = auto.from_config(config)
        new = {name for name, _ in model.named_parameters() if name.startswith(_DRAWN)}
    return (_encoder(model) if mean else model), new


def _encoder(model: Any) -> Any:
    """The model, of an encoder and a decoder the first, as the mean is to be over what was read; without a pooler."""
    # config.is_encoder_decoder is false where T5's encoder was saved alone
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        model = model.get_encoder()
        if not hasattr(model, "config"):
            raise ValueError(f"transformers' {type(model).__name__} is no model by itself, which backbone.pooling=mean needs")
    if hasattr(model, "pooler"):
        model.pooler = _NoPooler()
    return model


class _NoPooler(nn.Module):
    """In the place of a pooler, which was made for the first token; some encoders call theirs without a look."""

    def forward(self, hidden: Any, *_: Any, **__: Any) -> Any:
        """What it is given: some go on with it, and nobody looks at what comes of it."""
        return hidden


def with_lacking(auto: Any, cfg: BackboneConfig, **told: Any) -> tuple[Any, set[str]]:
    """A model by one of transformers' ``Auto`` classes, and the names of what its weights lack or have in another size."""
    told |= {"revision": cfg.revision, "ignore_mismatched_sizes": True}  # a head of other classes is drawn anew
    model, info = auto.from_pretrained(cfg.model, output_loading_info=True, **told)
    if left := [name for name in info["unexpected_keys"] if _IN_LAYER.search(name)]:
        log.warning(
            "backbone.model=%s: %d tensors of its weights are of layers that its config.json does not have, such as %s",
            *(cfg.model, len(left), min(left)),
        )
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def refuse_lacking(model: Any, lacking: Set[str], other: str = "") -> None:
    """Refuse weights that lack something that a model has, or have another size; it would be drawn at random, and stay so."""
    if lacking:
        known = f"which transformers' {type(model).__name__} has"
        raise ValueError(
            f"its weights lack {min(lacking)} of config.json's size, {known}; give the weights of such a model{other}"
        )


def _check_body(model: Any, new: Set[str], mean: bool) -> None:
    """Refuse weights that lack a part of the model below its head, or have it in another size than config.json says.

    As another model's, an encoder's without the decoder that is used, or a longer table of positions.
    """
    passed = ("decoder.",) if mean else _HEADS
    body = "" if mean else f"{model.base_model_prefix}."
    below = {name for name in new if name.startswith(body) or _IN_LAYER.search(name)}
    lacking = {name for name in below if not name.startswith(passed) and "pooler" not in name}
    refuse_lacking(model, lacking, "" if mean else ", or backbone.pooling=mean for an encoder alone")


def _heads(model: nn.Module, new: Set[str], prefix: str = "") -> Iterator[str]:
    """Names of the modules that are a task's own: heads by their names, and the outermost that hold ``new`` parameters alone.

    A pooler that the weights hold is none of them.
    """
    for name, module in model.named_children():
        held = {f"{prefix}{name}.{key}" for key, _ in module.named_parameters()}
        if (name in _HEADS and not prefix) or (held and held <= new):
            yield prefix + name
        else:
            yield from _heads(module, new, f"{prefix}{name}.")


def _pads_in_front(model: Any) -> bool:
    """Whether the model's head reads the last position, as XLNet's, which counts positions from one token to another."""
    read = {getattr(module, "summary_type", None) for module in model.modules()}
    return model.config.model_type == "xlnet" and not read.isdisjoint({"last", "cls_index"})


@torch.no_grad()
def _check_padding(cfg: BackboneConfig, model: TextClassifier) -> None:
    """Refuse a model that reads the tokens that fill up batches: it gives a text other logits beside a longer one."""
    limit = {"truncation": True, "max_length": min(model.max_tokens or _TRIED, _TRIED)}
    texts = [model.tokenizer(words, return_token_type_ids=True, **limit) for words in ("a film", "a film " * _TRIED)]
    short, long = (torch.from_numpy(as_tokens(text["input_ids"], text["token_type_ids"])) for text in texts)
    stack = TokenTransform(model.tokenizer.pad_token_id, model.pads_in_front).stack
    training = model.model.training
    model.model.eval()
    try:
        alone, beside = model(stack([short]))[0], model(stack([short, long]))[0]
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"backbone.model={cfg.model} cannot read a text of {short.shape[1]} tokens ({reason})") from error
    finally:
        model.model.train(training)
    if (alone - beside).abs().max() > 1e-3 * alone.abs().max() + 1e-6:  # rounding is a thousandth of that
        other = "model" if cfg.pooling == "mean" else "mean"
        raise ConfigError(
            f"backbone.model={cfg.model}: transformers' {type(model.model).__name__} reads the tokens that fill up batches, so "
            f"that a text's logits depend on the texts beside it; give backbone.pooling={other}, or another model"
        )


def _settle_padding(cfg: BackboneConfig, model: Any, tokenizer: Any) -> None:
    """Let tokenizer and model agree on what batches are filled up with."""
    take_pad_token(cfg, tokenizer)
    if tokenizer.pad_token_id is None:
        end = f", such as backbone.pad_token='{tokenizer.eos_token}'" if tokenizer.eos_token else ""
        raise ConfigError(
            f"the tokenizer of {cfg.model} has no pad token, and texts of unequal length need one; name one of its tokens{end}"
        )
    refuse_strange_tokens(cfg, model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id


def take_pad_token(cfg: BackboneConfig, tokenizer: Any) -> None:
    """Give the tokenizer the pad token that the backbone names, if it names one."""
    if cfg.pad_token is not None:
        if cfg.pad_token not in tokenizer.get_vocab():
            raise ConfigError(f"backbone.pad_token={cfg.pad_token}: the tokenizer of {cfg.model} knows no such token")
        tokenizer.pad_token = cfg.pad_token


def max_tokens(model: Any, tokenizer: Any) -> int | None:
    """The most tokens that both take, by tokenizer, config and tables of positions; None: none of them says.

    RoBERTa counts its positions from the pad token's id on, OPT and BART from 2.
    """
    limits = [tokenizer.model_max_length]
    said = getattr(model.config, "max_position_embeddings", None)
    if said is not None and said > 0:  # XLNet says -1
        limits.append(said)
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", "wpe", "embed_positions")) and isinstance(module, nn.Embedding):
            first = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            limits.append(module.num_embeddings - first)
    most = min(limits)
    return most if most < 1 << 20 else None  # tokenizers that do not know it say 1e30


def _knows_types(model: Any) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1 or model.config.model_type in _WITH_SEGMENTS


def weights_name(cfg: BackboneConfig) -> str:
    """The name at the hub, or the last part of a folder's path: what a machine's paths do not change."""
    return os.path.basename(os.path.normpath(cfg.model)) if os.path.isdir(cfg.model) else cfg.model
