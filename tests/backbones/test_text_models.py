"""Models of transformers for texts: what of them is new, what they are called with, and how many tokens they take."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ConvBertConfig,
    ConvBertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    FNetConfig,
    FNetModel,
    FSMTConfig,
    FSMTModel,
    MptConfig,
    MptModel,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
    SqueezeBertConfig,
    SqueezeBertModel,
    T5Config,
    T5EncoderModel,
    T5Model,
    XLMConfig,
    XLMForSequenceClassification,
    XLMModel,
    XLNetConfig,
    XLNetModel,
)

from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.text import build_text_model
from gift_vit.common.errors import ConfigError
from gift_vit.data.texts import TextSource
from gift_vit.data.tokens import Tokens
from gift_vit.methods.adapter import head_names
from gift_vit.methods.targets import nameable_targets
from tests.text_models import MODELS, SIZES, text_model

DEBERTA = DebertaV2Config(vocab_size=15, max_position_embeddings=20, type_vocab_size=0, **SIZES)
T5 = T5Config(vocab_size=15, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
BART: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 20}
XLM: dict[str, Any] = {"vocab_size": 15, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 20}
XLM |= {"summary_type": "last", "pad_index": 0, "use_lang_emb": False}
GROUPS: dict[str, Any] = {f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention", "intermediate", "output")}
BASES: dict[str, Callable[[], Any]] = {
    "deberta": lambda: DebertaV2Model(DEBERTA),
    "deberta_classifier": lambda: DebertaV2ForSequenceClassification(DEBERTA),
    "bert_mlm": lambda: BertForMaskedLM(BertConfig(vocab_size=15, max_position_embeddings=20, **SIZES)),
    "roberta_base": lambda: RobertaModel(RobertaConfig(vocab_size=15, max_position_embeddings=20, pad_token_id=0, **SIZES)),
    "xlnet": lambda: XLNetModel(XLNetConfig(vocab_size=15, d_model=16, n_layer=2, n_head=2, d_inner=24)),
    "t5": lambda: T5Model(T5),
    "t5_encoder": lambda: T5EncoderModel(T5),
    "bart": lambda: BartModel(BartConfig(vocab_size=15, pad_token_id=0, bos_token_id=2, eos_token_id=3, **BART)),
    "fsmt": lambda: FSMTModel(FSMTConfig(langs=["a", "b"], src_vocab_size=15, tgt_vocab_size=15, **BART)),
    "opt": lambda: OPTModel(
        OPTConfig(
            vocab_size=15,
            hidden_size=16,
            num_hidden_layers=2,
            ffn_dim=24,
            num_attention_heads=2,
            max_position_embeddings=20,
            word_embed_proj_dim=16,
        )
    ),
    "xlm_last": lambda: XLMModel(XLMConfig(**XLM)),
    "xlm_classifier": lambda: XLMForSequenceClassification(XLMConfig(**{**XLM, "summary_type": "first"})),
    "fnet": lambda: FNetModel(FNetConfig(vocab_size=15, max_position_embeddings=20, tpu_short_seq_length=20, **SIZES)),
    "convbert": lambda: ConvBertModel(ConvBertConfig(vocab_size=15, max_position_embeddings=20, **SIZES)),
    "squeezebert": lambda: SqueezeBertModel(
        SqueezeBertConfig(vocab_size=15, max_position_embeddings=20, embedding_size=16, **SIZES, **GROUPS)
    ),
    "albert": lambda: AlbertModel(AlbertConfig(vocab_size=15, embedding_size=16, max_position_embeddings=20, **SIZES)),
    "mpt": lambda: MptModel(MptConfig(vocab_size=15, d_model=16, n_heads=2, n_layers=2, max_seq_len=20)),
    "narrow": lambda: BertModel(BertConfig(vocab_size=3, max_position_embeddings=20, **SIZES)),
}


def built(tmp_path: Path, kind: str, num_classes: int = 2, **options: Any) -> Any:
    """The backbone of a folder of that kind: ``bert`` is a classifier's with its pooler, ``other`` has weights not its own."""
    folder = text_model(tmp_path, "roberta" if kind == "other" else "bert")
    if kind == "other":
        BertConfig(vocab_size=15, max_position_embeddings=20, **SIZES).save_pretrained(folder)
    elif kind != "bert":
        BASES[kind]().save_pretrained(folder)
    return build_text_model(BackboneConfig("hf", str(folder), kind="transformers", **options), num_classes).eval()


def some_tokens(length: int) -> torch.Tensor:
    """Tokens (2, 3, length), the second text of them shorter."""
    ids = torch.randint(5, 15, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, -1] = ids[1, length // 2] = 3
    ids[1, length // 2 + 1 :] = mask[1, length // 2 + 1 :] = 0
    return torch.stack([ids, mask, torch.zeros_like(ids)], 1)


@pytest.mark.parametrize(
    ("kind", "options", "head"),
    [
        ("bert", {}, ("classifier",)),  # the pooler is among the weights
        ("bert", {"num_classes": 3}, ("classifier",)),
        ("bert", {"pretrained": False}, ("classifier",)),
        ("roberta_base", {}, ("classifier.dense", "classifier.out_proj")),
        ("bert_mlm", {}, ("bert.pooler.dense", "classifier")),
        ("deberta", {}, ("pooler.dense", "classifier")),
        ("deberta_classifier", {"num_classes": 3}, ("classifier",)),
        ("deberta", {"pretrained": False}, ("pooler.dense", "classifier")),
        ("xlm_classifier", {}, ("sequence_summary.summary",)),  # the weights hold it
        ("xlnet", {}, ("sequence_summary.summary", "logits_proj")),
        ("xlnet", {"pretrained": False}, ("sequence_summary.summary", "logits_proj")),
    ],
)
def test_the_head_is_all_that_the_weights_lack(
    tmp_path: Path, kind: str, options: dict[str, Any], head: tuple[str, ...]
) -> None:
    model = built(tmp_path, kind, **options)
    assert head_names(model) == tuple(f"model.{name}.{part}" for name in head for part in ("weight", "bias"))


@pytest.mark.parametrize("kind", ["t5", "t5_encoder", "bart"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_the_mean_is_over_what_an_encoder_makes_of_each_text(tmp_path: Path, kind: str, pretrained: bool) -> None:
    model, tokens = built(tmp_path, kind, pooling="mean", pretrained=pretrained), some_tokens(8)
    assert not [name for name, _ in model.named_parameters() if "decoder" in name]
    if pretrained:
        encoder = AutoModel.from_pretrained(tmp_path).get_encoder().eval()
        hidden = encoder(input_ids=tokens[:, 0], attention_mask=tokens[:, 1]).last_hidden_state
        expected = torch.stack([hidden[0].mean(0), hidden[1, :5].mean(0)])
        torch.testing.assert_close(model.forward_features(tokens), expected)
    torch.testing.assert_close(model(tokens[1:, :, :5]), model(tokens)[1:])


def test_a_pooler_that_is_called_without_a_look_is_left_out(tmp_path: Path) -> None:
    model, tokens = built(tmp_path, "squeezebert", pooling="mean"), some_tokens(8)
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    hidden = AutoModel.from_pretrained(tmp_path).eval()(input_ids=tokens[:, 0], attention_mask=tokens[:, 1]).last_hidden_state
    torch.testing.assert_close(model.forward_features(tokens), torch.stack([hidden[0].mean(0), hidden[1, :5].mean(0)]))


@pytest.mark.parametrize(
    ("kind", "pooling", "refused"), [("bart", "model", True), ("bart", "mean", False), ("bert", "model", False)]
)
def test_a_text_that_holds_the_token_that_its_end_is_found_by(tmp_path: Path, kind: str, pooling: str, refused: bool) -> None:
    model = built(tmp_path, kind, pooling=pooling)
    source = TextSource([("a good film",), ("a [SEP] good film",)], np.zeros(2, np.int64), ["", ""])
    said = r"^train: the text 'a \[SEP\] good film' holds \[SEP\], by which the model finds where texts end; take it out$"
    with pytest.raises(ConfigError, match=said) if refused else nullcontext():
        Tokens(source, model.tokenizer, 20, "train", model.end_token_id)


@pytest.mark.parametrize(("pooling", "name"), [("model", "XLNetForSequenceClassification"), ("mean", "XLNetModel")])
def test_layers_that_cannot_be_checkpointed_are_named(tmp_path: Path, pooling: str, name: str) -> None:
    model = built(tmp_path, "xlnet", pooling=pooling)
    model.set_grad_checkpointing(False)
    with pytest.raises(ConfigError, match=f"^trainer.memory=minimal is not possible: {name} cannot checkpoint its layers"):
        model.set_grad_checkpointing()


def test_xlnet_is_told_which_text_a_token_is_of(tmp_path: Path) -> None:
    model, tokens = built(tmp_path, "xlnet"), some_tokens(8)
    tokens[:, 2, 4:] = 1
    ids, mask, types = tokens.unbind(1)
    expected = model.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=0)
    without = model.model(input_ids=ids, attention_mask=mask).logits
    assert not torch.equal(expected, without)


@pytest.mark.parametrize("kind", ["albert", "mpt", "xlm_classifier"])
def test_layers_in_blocks_of_other_names_can_be_adapted(tmp_path: Path, kind: str) -> None:
    names = nameable_targets(built(tmp_path, kind))
    assert names
    assert not [name for name in names if "classifier" in name or "score" in name]


@pytest.mark.parametrize("kind", ["bert", "opt", "bart"])
@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_as_many_tokens_as_the_model_says_fit(tmp_path: Path, kind: str, pooling: str) -> None:
    model = built(tmp_path, kind, pooling=pooling)
    assert model.max_tokens == 20
    assert model(some_tokens(20)).shape == (2, 2)


@pytest.mark.parametrize(
    ("kind", "pooling", "said"),
    [
        (
            "xlm_last",
            "model",
            "XLMFor.* reads the tokens that fill up batches, so that .*; give backbone.pooling=mean, or another",
        ),
        (
            "fnet",
            "mean",
            "FNetModel reads the tokens that fill up batches, so that .*; give backbone.pooling=model, or another",
        ),
        ("convbert", "model", "ConvBertForSequenceClassification reads the tokens that fill up batches"),
        ("narrow", "mean", r"its tokenizer has the token 'very', the 15th, and the model embeds 3; save a model after resize_"),
        ("t5_encoder", "model", r"weights lack transformer.decoder.*T5ForSequenceClassification has.*or backbone.pooling=mean"),
        ("other", "model", r"weights lack bert.embeddings.*BertForSequenceClassification has; give the weights"),
        ("other", "mean", r"weights lack embeddings.*BertModel has; give the weights of such a model$"),
        ("fsmt", "mean", "FSMTEncoder is no model by itself, which backbone.pooling=mean needs"),
    ],
)
def test_what_could_not_be_told_apart_from_noise_is_refused_in_one_line(
    tmp_path: Path, kind: str, pooling: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        built(tmp_path, kind, pooling=pooling)
    assert "\n" not in str(caught.value)


def spoilt(folder: Path, **config: Any) -> BackboneConfig:
    """The backbone of a folder whose ``config.json`` says something else than its weights are."""
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **config}))
    return BackboneConfig("hf", str(folder), kind="transformers")


@pytest.mark.parametrize("key", ["max_position_embeddings", "vocab_size"])
@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_tables_that_are_not_those_of_the_weights_are_refused(tmp_path: Path, key: str, pooling: str) -> None:
    """They would be drawn at random; a longer table of positions is what people write for longer texts."""
    cfg = replace(spoilt(text_model(tmp_path), **{key: 30}), pooling=pooling)
    with pytest.raises(ConfigError, match=r"embeddings\.\w+_embeddings\.weight"):
        build_text_model(cfg, 2)


def test_layers_that_the_config_does_not_have_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_text_model(spoilt(text_model(tmp_path), num_hidden_layers=1), 2)
    assert (
        "16 tensors of its weights are of layers that its config.json does not have, such as bert.encoder.layer.1."
        in caplog.text
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, kind: str) -> None:
    """transformers makes one that knows special tokens alone: every text would be the same."""
    MODELS[kind]().save_pretrained(tmp_path)
    cfg = BackboneConfig("hf", str(tmp_path), kind="transformers")
    with pytest.raises(ConfigError, match=r"the folder holds no tokenizer; save its tokenizer there too: tokenizer\.save_pre"):
        build_text_model(cfg, 2)
    (tmp_path / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ConfigError, match="its tokenizer knows no words, special tokens alone; save its tokenizer"):
        build_text_model(cfg, 2)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*Should have a `model_type` key in its config\.json"):
        build_text_model(cfg, 2)


def test_a_token_that_has_no_embedding_is_refused_if_it_is_used(tmp_path: Path) -> None:
    def with_pad(folder: Path) -> BackboneConfig:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": "[MORE]"})
        tokenizer.save_pretrained(folder)
        return BackboneConfig("hf", str(folder), kind="transformers")

    cfg = with_pad(text_model(tmp_path / "bert"))
    with pytest.raises(ConfigError, match=r"token '\[MORE\]', the 16th, and the model embeds 15; .* backbone\.pad_token="):
        build_text_model(cfg, 2)
    assert build_text_model(replace(cfg, pad_token="[PAD]"), 2).tokenizer.pad_token_id == 0


def test_weights_that_are_cut_short_are_refused_by_name(tmp_path: Path) -> None:
    file = text_model(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=rf"backbone\.model={tmp_path}: its weights cannot be read \(.*\); get them again"):
        build_text_model(BackboneConfig("hf", str(tmp_path), kind="transformers"), 2)
