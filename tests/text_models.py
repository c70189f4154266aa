"""Tiny random models of transformers with a tokenizer, in folders, and tables of texts that can be learnt."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Digits, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as InTurn
from tokenizers.processors import BertProcessing, TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

WORDS = ("good", "fine", "nice", "bad", "poor", "sad", "a", "the", "film", "very")
_VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
_ROBERTA: dict[str, Any] = {"vocab_size": 15, "max_position_embeddings": 20, "pad_token_id": 0, "type_vocab_size": 1}
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, Any] = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(vocab_size=15, max_position_embeddings=20, initializer_range=0.3, **SIZES)
    ),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**_ROBERTA, **SIZES)),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(vocab_size=15, n_embd=16, n_layer=2, n_head=2, n_positions=20)),
}


def text_model(folder: Path, kind: str = "bert", pad: bool = True) -> Path:
    """A model of a kind with random weights, and a tokenizer of fifteen words; without ``pad`` it has no pad token."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(_VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # pyright: ignore[reportAttributeAccessIssue]
    special = {"unk_token": "[UNK]", "eos_token": "[SEP]"} | ({"pad_token": "[PAD]"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, special: Sequence[str] = ("[PAD]",), **sizes: Any) -> Path:
    """A Llama of random weights, of a few thousand parameters, which knows nothing; its tokenizer splits every digit off.

    ``special`` are its special tokens beside start and end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE(unk_token=None, byte_fallback=False))
    tokenizer.pre_tokenizer = InTurn([Digits(individual_digits=True), ByteLevel(False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>", *special], initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the correct answer is true false answer solution option ending"] * 4, trainer)
    tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "[PAD]"} if "[PAD]" in special else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, **SIZES}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=1, pad_token_id=None)
    config.update(shape | sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, str]]:
    """Sentences of one to seven words, and whether they are good: each says it with one word."""
    generator = torch.Generator().manual_seed(count)
    made = []
    for index in range(count):
        word = WORDS[int(torch.randint(3, (), generator=generator)) + 3 * (index % 2)]
        rest = ["very"] * int(torch.randint(4, (), generator=generator))
        made.append({"sentence": " ".join(["a", *rest, word, "film"]), "label": "no" if index % 2 else "yes"})
    return made


def write(file: Path, table: Sequence[dict[str, Any]]) -> Path:
    """A table, as the name's ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        file.write_text(json.dumps(list(table)))
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in table) + "\n")
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(table)), file)
    else:
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(table[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(table)
    return file


GLUE_COLUMNS = {"cola": ("sentence",), "rte": ("sentence1", "sentence2"), "mrpc": ("sentence1", "sentence2")}


def glue_task(folder: Path, task: str, sizes: dict[str, int]) -> Path:
    """A task of GLUE as it is prepared, of texts that can be learnt; labels of test are -1, and those of stsb are numbers."""
    folder.mkdir(parents=True)
    for split, size in sizes.items():
        table: list[dict[str, Any]] = []
        for row in rows(size):
            value = int(row["label"] == "yes")
            label = float(5 * value) - 0.5 * value * len(row["sentence"].split()) / 7 if task == "stsb" else value
            texts = dict.fromkeys(GLUE_COLUMNS.get(task, ("sentence1", "sentence2")), row["sentence"])
            table.append({**texts, "label": (-1.0 if task == "stsb" else -1) if split == "test" else label})
        write(folder / f"{split}.parquet", table)
    (folder / "glue.json").write_text("{}")
    return folder


def questions(of_set: str, count: int) -> list[dict[str, str]]:
    """Questions of a set that say their own answer, in LLM-Adapters' form."""
    first, second = {"boolq": ("true", "false"), "piqa": ("solution1", "solution2")}[of_set]
    made = []
    for number in range(count):
        answer = second if number % 2 else first
        asked = f"Say {answer} {'please ' * (number % 5)}now.\n\nAnswer format: {first}/{second}"
        made.append({"instruction": asked, "input": "", "output": f"the correct answer is {answer}", "answer": answer})
    return made
