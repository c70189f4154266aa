"""Tiny random transformers of seven kinds, and GIFT adapters that do something."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from gift_vit.hf import GiftConfig

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"initializer_range": 0.2}  # so that layers do more than nothing
T5: Any = {"decoder_start_token_id": 0}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(vocab_size=50, **SIZES)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(vocab_size=50, **SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, eos_token_id=0, initializer_range=0.2)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=50, **T5)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SIZES)),
    "timm": lambda: timm.create_model("test_vit", num_classes=3),
}
TASKS = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft would ask the hub for the config of a base model; transformers warns of names that peft still uses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def build(kind: str, seed: int = 0) -> Any:
    """A model of a kind, the same whenever it is built."""
    torch.manual_seed(seed)
    return MODELS[kind]().eval()


def inputs(kind: str) -> dict[str, Tensor]:
    """Four samples for it."""
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)}
    if kind == "timm":
        return {"x": torch.randn(4, 3, 160, 160, generator=generator)}
    ids = torch.randint(2, 50, (4, 7), generator=generator)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "t5" else {})


@torch.no_grad()
def logits(model: Any, kind: str, **kwargs: Any) -> Tensor:
    """What a model says of them."""
    outputs = model.eval()(**inputs(kind), **kwargs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def adapted(kind: str, targets: Any, *, random: bool = True, name: str = "default", **options: Any) -> Any:
    """The model with GIFT on its targets; ``random``: with an adapter that changes what it says."""
    config = GiftConfig(**{"r": 4, "target_modules": targets, "task_type": TASKS.get(kind), **options})
    model = get_peft_model(build(kind), config, adapter_name=name)
    return randomise(model) if random else model


@torch.no_grad()
def randomise(model: Any, name: str = "default", seed: int = 5) -> Any:
    """Fill the pairs of an adapter with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f".gift_pair.{name}." in key:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model
