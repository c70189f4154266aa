"""Language models of transformers, which answer in words. Imported for such a run alone: transformers takes seconds."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.text import TextModel, loaded, refuse_lacking, refuse_strange_tokens, take_pad_token, with_lacking
from gift_vit.common.errors import ConfigError

_ASKED_FOR = ("position_ids", "logits_to_keep")


class LanguageModel(TextModel):
    """A causal language model, called with prompts and answers and giving the logits of the answers' tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, A, V) of the A last tokens of sequences (B, 3, L): ids, attention mask, and where the answer stands.

        Sequences are filled up in front, so that all end together. A is the length of the longest answer: for what stands in
        front of it no logits are computed, which would take most of the memory.
        """
        ids, mask, answers = tokens.unbind(1)
        longest = int(answers.any(0).sum())
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        outputs = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=longest + 1, use_cache=False
        )
        return outputs.logits[:, :-1]  # each says what the next token is

    def continued(self, ids: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """The tokens that greedy decoding adds to prompts (B, L) that are filled up in front, (B, ≤ max_new_tokens).

        It is plain whatever temperature or penalty the model's folder asks for. A row that has come to its end is filled up
        with the pad token.
        """
        ends = {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
        own = self.model.generation_config  # which fills in what a config that is given leaves at its default
        self.model.generation_config = GenerationConfig(do_sample=False, **ends)
        try:
            made = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens)
        finally:
            self.model.generation_config = own
        return made[:, ids.shape[1] :]

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Nothing is drawn anew."""
        return ()


def build_language_model(cfg: BackboneConfig) -> LanguageModel:
    """A causal language model with its tokenizer, in the numbers that ``cfg.dtype`` says.

    Batches are filled up with the pad token, else the unknown, else the end token: it is masked everywhere, so that no number
    depends on which it is, and no row of the embedding is added for it.

    Raises:
        ConfigError: If there is no such model or folder, it is no causal language model or takes no positions, or it has no end
            token.
        RunError: If the hub cannot be reached.
    """
    if cfg.pooling != "model":
        raise ConfigError(f"backbone.pooling={cfg.pooling} is for classifiers of texts; a language model answers in words")
    model, tokenizer = loaded(cfg, lambda: _load(cfg))
    lacking = [name for name in _ASKED_FOR if name not in inspect.signature(model.forward).parameters]
    if lacking:
        raise ConfigError(
            f"backbone.model={cfg.model}: transformers' {type(model).__name__} takes no {lacking[0]}, which batches of prompts "
            "need; give another language model, such as backbone=llama3_8b"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {cfg.model} has no end token (eos_token), with which an answer ends; give a model that has one"
        )
    if _looks_ahead(model):
        raise ConfigError(
            f"backbone.model={cfg.model}: transformers' {type(model).__name__} looks at the words that it is to say; give a "
            "language model that reads from left to right, such as backbone=llama3_8b"
        )
    take_pad_token(cfg, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    refuse_strange_tokens(cfg, model, tokenizer)
    return LanguageModel(cfg, model, tokenizer)


@torch.inference_mode()
def _looks_ahead(model: Any) -> bool:
    """Whether what stands behind a token changes what follows it, as of an encoder that is not told to be a decoder."""
    logits = model.eval()(input_ids=torch.tensor([[0, 0, 1], [0, 0, 2]])).logits[:, 0]
    return not torch.equal(*logits)


def _load(cfg: BackboneConfig) -> Any:
    dtype = getattr(torch, cfg.dtype)
    if cfg.pretrained:
        model, lacking = with_lacking(AutoModelForCausalLM, cfg, dtype=dtype)
        refuse_lacking(model, lacking)
        return model
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(cfg.model, revision=cfg.revision), dtype=dtype)
