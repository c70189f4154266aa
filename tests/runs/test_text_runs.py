"""Runs on texts with tiny random models of transformers: training, resuming, scoring, merging, and what is refused.

A run takes half a second beside the import of transformers, which takes five.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    T5Config,
    T5Model,
    XLNetConfig,
    XLNetModel,
)

from experiments.crate import crate
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config import RunConfig, load_config
from gift_vit.config.loader import check_present
from gift_vit.methods.adapter import applied_method
from gift_vit.push.__main__ import write_shared
from gift_vit.runs.build import build_model, eval_loader, finished_model, open_data, train_loader
from gift_vit.runs.finished import evaluate_split, write_merged
from gift_vit.runs.predict import check_question
from gift_vit.runs.predictions import read_predictions
from gift_vit.runs.result import Result
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from tests.conf.files import composed
from tests.runs.conftest import check_resumed, check_seeded
from tests.text_models import SIZES, rows, text_model, write

Configured = Callable[..., RunConfig]
PEFT = ("adalora", "boft", "delora", "dora", "glora", "gralora", "hira", "hra", "loha", "lokr", "miss", "oft")
PEFT += ("randlora", "tinylora", "vera")
FIRST = "model.bert.encoder.layer.0.attention.self.query"  # as the run names it; for peft it has no model. in front
ON_DORA = ("method=dora", "method.target_modules=[query,value]")
WITHOUT_DORAS = tuple(f"~method.options.{option}" for option in ("use_dora", "r", "lora_alpha", "lora_dropout"))
BASES: dict[str, Callable[[], Any]] = {  # as they are at the hub, without what a classifier has
    "deberta": lambda: DebertaV2Model(DebertaV2Config(vocab_size=15, type_vocab_size=0, initializer_range=0.3, **SIZES)),
    "bert_mlm": lambda: BertForMaskedLM(BertConfig(vocab_size=15, initializer_range=0.3, **SIZES)),
    "xlnet": lambda: XLNetModel(XLNetConfig(vocab_size=15, d_model=16, n_layer=2, n_head=2, d_inner=24, initializer_range=0.5)),
    "t5": lambda: T5Model(T5Config(vocab_size=15, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)),
}
CALL = Call("python -m gift_vit.train", [])
pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and models beside them."""
    root = tmp_path_factory.mktemp("text")
    write(root / "reviews" / "train.tsv", rows(64))
    write(root / "reviews" / "test.tsv", rows(40))
    for kind in ("bert", "roberta", "gpt2"):
        text_model(root / kind, kind)
    for kind, base in BASES.items():
        base().save_pretrained(text_model(root / kind))
    return root


@pytest.fixture
def configured(root: Path, tmp_path: Path) -> Configured:
    def configure(*words: str, kind: str = "bert") -> RunConfig:
        given = ("dataset=text", f"dataset.root={root}/reviews", "backbone=hf", f"backbone.model={root}/{kind}")
        short = ("trainer.epochs=4", "optim.warmup_epochs=0", "optim.lr=2e-2", "trainer.batch_size=8", "trainer.device=cpu")
        return load_config(composed(*given, *short, "phase=final", f"paths.output_root={tmp_path}", *words))

    return configure


def trained(cfg: RunConfig) -> Result:
    return train_run(cfg, CALL)


@pytest.mark.parametrize(
    ("kind", "words", "adapter"),
    [
        ("bert", ("method=gift_qv", "method.rank=4"), 2 * 2 * 16 * 4),  # two pairs of (16, 4), whatever the depth
        (
            "roberta",
            ("method=gift_qv", "method.rank=4", "method.target_modules=[intermediate.dense]", "method.share=layer"),
            256,
        ),
        ("bert", ("method=lora_text", "method.rank=2"), 2 * 2 * (16 + 16) * 2),
        ("bert", ("method=linear",), 0),
        ("bert", ("method=linear", "backbone.pooling=mean"), 0),
        ("bert", ("method=bitfit",), 2 * (4 * 16 + 24 + 16)),
    ],
)
def test_a_method_trains_and_the_run_is_scored_again_to_the_same(
    configured: Configured, kind: str, words: tuple[str, ...], adapter: int
) -> None:
    cfg = configured(*words, kind=kind)
    result = trained(cfg)
    assert result.params.adapter == adapter
    assert (result.run.backbone, result.backbone["weights"]) == (f"hf_{kind}", kind)
    again = evaluate_split(Run.open(cfg.folder), "test")
    assert (again.top1, again.images) == (result.metrics["test_top1"], 40)
    kept = read_predictions(cfg.folder / "predictions.parquet")["test"]
    assert kept.class_names == ["no", "yes"]
    assert 100 * kept.correct.mean() == pytest.approx(again.top1)


def test_what_can_be_learnt_is_learnt(configured: Configured) -> None:
    result = trained(configured("method=full", "optim.lr=5e-3", "trainer.epochs=20"))
    assert (result.metrics["test_top1"] or 0) > 90  # one of six words decides, and half the texts are of each class


def test_the_head_is_no_target(configured: Configured) -> None:
    cfg = configured("method=lora_text", "method.target_modules=[dense]", "trainer.epochs=1", kind="roberta")
    layers = {name.partition(".layer.")[2].partition(".lora_")[0] for name in applied_method(build_model(cfg, 2)).adapter_names}
    each = ("attention.output.dense", "intermediate.dense", "output.dense")
    assert layers == {f"{block}.{name}" for block in (0, 1) for name in each}
    run = configured("method=gift_qv", "method.target_modules=[attention.output.dense]", "trainer.epochs=1", kind="roberta")
    trained(run)
    held = list(load_file(run.folder / "adapter.safetensors"))
    assert not [name for name in held if "classifier" in name and "gift" in name]
    assert len([name for name in held if ".gift_pair." in name]) == 2


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(configured: Configured) -> None:
    whole, cut = (configured("method=gift_qv", "method.rank=4", f"run_name={name}") for name in ("whole", "cut"))
    check_resumed(whole, cut)


def test_a_merged_run_is_a_plain_folder_of_transformers(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configured("method=gift_qv", "method.rank=4", "dataset.max_length=6")  # of up to 20
    trained(cfg)
    run = Run.open(cfg.folder)
    monkeypatch.setattr(type(run.model().tokenizer), "save_pretrained", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_merged(run, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
    monkeypatch.undo()
    assert "\ntexts were cut to 6 tokens, as its tokenizer does with truncation=True" in write_merged(run, tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = [row["sentence"] for row in rows(40)]
    with torch.inference_mode():
        said = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits
    kept = read_predictions(cfg.folder / "predictions.parquet")["test"]
    assert (said.argmax(1).numpy() == kept.predicted).all()
    torch.testing.assert_close(said.numpy(), kept.logits.astype("float32"), atol=5e-3, rtol=5e-3)
    assert model.config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(ConfigError, match="takes texts, and not pictures"):
        check_question(run, None)


def test_how_many_texts_are_cut_is_said(configured: Configured, caplog: pytest.LogCaptureFixture) -> None:
    lengths = [len(row["sentence"].split()) + 2 for row in rows(40)]
    expected = sum(length > 6 for length in lengths)
    caplog.set_level(logging.WARNING)
    trained(configured("method=linear", "trainer.epochs=1", "dataset.max_length=6"))
    assert f"test: {expected} of 40 texts ({100 * expected / 40:.1f} %) are longer than 6 tokens and were cut" in caplog.text


@pytest.mark.parametrize(("kind", "limit"), [("bert", 20), ("roberta", 19)])  # RoBERTa counts from the pad token's id, 0, on
def test_no_text_is_longer_than_the_model_allows(
    configured: Configured, root: Path, kind: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(root / kind / "long.jsonl", [{"text": "good " * 50, "label": index % 2} for index in range(20)])
    cfg = configured("method=linear", "trainer.epochs=1", f"dataset.root={root}/{kind}/long.jsonl", kind=kind)
    trained(cfg)
    assert f"longer than {limit} tokens" in caplog.text


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "xlnet"])
@pytest.mark.parametrize("loader", [train_loader, eval_loader])
def test_no_prediction_depends_on_what_shares_a_batch(configured: Configured, kind: str, loader: Any) -> None:
    """XLNet's head reads the last position."""
    cfg = configured("method=linear", kind=kind)
    model, data, device = build_model(cfg, 2).eval(), open_data(cfg), torch.device("cpu")
    loaded = loader(cfg, model, data, device) if loader is train_loader else loader(cfg, model, data, "test", device)
    tokens = next(iter(loaded if loader is eval_loader else loaded.epoch(0)))[0]
    assert not tokens[:, 1].all()
    alone = torch.cat([model(text[None, :, text[1] == 1]) for text in tokens])
    torch.testing.assert_close(model(tokens), alone, atol=1e-5, rtol=1e-4)


def test_texts_come_in_the_order_of_the_run_s_seed(configured: Configured) -> None:
    cfg, device = configured("method=linear"), torch.device("cpu")
    model, data = build_model(cfg, 2), open_data(cfg)
    check_seeded(lambda seed: train_loader(replace(cfg, seed=seed), model, data, device))


def test_a_tokenizer_without_pad_token_is_refused_and_takes_one_by_name(configured: Configured, tmp_path: Path) -> None:
    folder = text_model(tmp_path / "nopad", "gpt2", pad=False)
    words = ("method=linear", "trainer.epochs=1", f"backbone.model={folder}")
    with pytest.raises(ConfigError, match=r"has no pad token.*name one of its tokens"):
        trained(configured(*words))
    with pytest.raises(ConfigError, match="knows no such token"):
        trained(configured(*words, "backbone.pad_token=absent"))
    assert trained(configured(*words, "backbone.pad_token='[SEP]'")).metrics["test_top1"] is not None


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("method=gift_qv", "method.target_modules=[qeury]"), ConfigError, "'qeury' matches no layer; name one of attention"),
        (("method=gift_qv", "method.target_modules=[word_embeddings]"), ConfigError, "an? Embedding and not an nn.Linear"),
        (("method=gift_qv", "method.rank=17"), ConfigError, "method.rank=17: expected 1 to 16"),
        (("method=vpt_deep",), ConfigError, "'vpt' is for timm's ViTs"),
        (("backbone.model=nobody/has-this",), RunError, "could not be had from the hub"),
        (("method=linear", "trainer.memory=lean"), ConfigError, "lean is not possible"),
    ],
)
def test_what_does_not_fit_is_one_line(
    configured: Configured, words: tuple[str, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        trained(configured(*words))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset=text", "dataset.root=/x"), "holds texts, and backbone vit_b16_in21k takes images"),
        (
            ("dataset=text", "dataset.root=/x", "backbone=roberta_base", "method=lora_text", "method.init=eva"),
            "method.init=eva looks at training images, and dataset text_x holds texts",
        ),
        (("backbone=roberta_base",), "holds images, and backbone roberta_base takes texts"),
        (("dataset=text", "dataset.root=/x", "backbone=hf", "backbone.model=/absent"), "there is no folder /x"),
        (("dataset=text", "dataset.root=.", "backbone=hf", "backbone.model=/absent"), "model=/absent: no such folder"),
    ],
)
def test_what_can_be_seen_is_said_before_torch_is_imported(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(8))
    with pytest.raises(ConfigError, match=said):
        check_present(load_config(composed(*(word.replace("root=.", f"root={tmp_path}") for word in words))))


def test_a_folder_that_is_no_model_is_refused(configured: Configured, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "nothing_known"}))
    for folder in ("empty", "odd"):
        with pytest.raises(ConfigError, match=f"backbone.model={tmp_path}/{folder}") as caught:
            trained(configured(f"backbone.model={tmp_path}/{folder}"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", ("method=gift_qv", "method.rank=4")),
        (
            "roberta",
            ("method=gift_qv", "method.rank=4", "method.target_modules=[query,intermediate.dense]", "method.share=layer"),
        ),
        ("bert", ("method=gift_qv", "method.rank=4", "backbone.pooling=mean")),
        ("roberta", ("method=lora_text", "method.rank=2")),
        *(("bert", (f"method={name}", "method.target_modules=[query,value]")) for name in PEFT),
        ("bert", ("method=c3a", "method.target_modules=[query,value]", "method.options.block_size=8")),
        ("bert", ("method=fourierft", "method.target_modules=[query,value]", "method.options.n_frequency=9")),
        ("bert", (*ON_DORA, "method.peft_type=UNILORA", *WITHOUT_DORAS)),
        ("bert", (*ON_DORA, f"+method.options.alpha_pattern={{{FIRST}:64}}")),
        ("bert", (*ON_DORA, "+method.options.rank_pattern={layer.1.attention.self.value:2}")),
        ("bert", ("method=loha", "method.target_modules=[query,value]", f"+method.options.rank_pattern={{{FIRST}:2}}")),
        (
            "bert",
            (
                "method=c3a",
                "method.target_modules=[query,value]",
                "method.options.block_size=8",
                f"+method.options.block_size_pattern={{{FIRST}:4}}",
            ),
        ),
        ("bert", ("method=vblora", "method.target_modules=[query,value]", "method.options.vector_length=8")),
        (
            "roberta",
            (
                "method=ia3",
                "method.target_modules=[key,intermediate.dense]",
                "method.options.feedforward_modules=[intermediate.dense]",
            ),
        ),
        ("bert", ("method=ln_tuning", "method.target_modules=[LayerNorm]")),
        ("deberta", ("method=gift_qv", "method.rank=4", "method.target_modules=[query_proj,value_proj]")),
        ("bert_mlm", ("method=lora_text", "method.rank=2")),
        ("xlnet", ("method=lora_text", "method.rank=2", "method.target_modules=[layer_1,layer_2]")),
        ("t5", ("method=gift_qv", "method.rank=4", "method.target_modules=[q,v]", "backbone.pooling=mean")),
    ],
)
def test_peft_loads_what_a_run_leaves_for_it(configured: Configured, root: Path, kind: str, words: tuple[str, ...]) -> None:
    """``adapter/`` on the plain model of transformers gives the run's own logits; with mean pooling, its hidden states."""
    cfg = configured("trainer.epochs=1", *words, kind=kind)
    result = trained(cfg)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(result.files or {})
    ours: Any = Run.open(cfg.folder).model()
    mean = "backbone.pooling=mean" in words
    auto = AutoModel if mean else AutoModelForSequenceClassification
    base: Any = auto.from_pretrained(root / kind, **({} if mean else {"num_labels": 2}))
    base = base.get_encoder() if kind == "t5" else base
    said = [row["sentence"] for row in rows(6)]
    texts = ours.tokenizer(said, padding=True, return_tensors="pt", return_token_type_ids=False)
    base.config.pad_token_id = ours.tokenizer.pad_token_id
    before = base(**texts)[0].detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*adapter keys")  # what the file lacks, or has no place for
        loaded = PeftModel.from_pretrained(base, str(cfg.folder / "adapter"))
    assert loaded.peft_config["default"].base_model_name_or_path == str(root / kind)
    expected = ours.model(**texts)[0]
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(loaded(**texts)[0], expected, atol=1e-6, rtol=1e-5)


def test_a_folder_that_peft_cannot_write_loses_no_run(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("Expected a parameter")

    monkeypatch.setattr("peft.get_peft_model_state_dict", fails)
    cfg = configured("method=lora_text", "method.rank=2")
    assert "adapter.safetensors" in (trained(cfg).files or {})
    assert "adapter/ is not written (KeyError: 'Expected a parameter')" in caplog.text
    assert not (cfg.folder / "adapter").exists()


def test_what_is_left_for_peft_is_pushed_and_described(configured: Configured, tmp_path: Path) -> None:
    """The backbone is in a folder of this machine, of which the name alone is shared."""
    cfg = configured("method=gift_qv")
    trained(cfg)
    (tmp_path / "pushed").mkdir()
    write_shared(Run.open(cfg.folder), tmp_path / "pushed", "me/it")
    assert json.loads((tmp_path / "pushed/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "bert"
    own, pushed = (folder / "adapter" / "adapter_model.safetensors" for folder in (cfg.folder, tmp_path / "pushed"))
    assert own.read_bytes() == pushed.read_bytes()
    described = {entity["@id"]: entity for entity in crate(Run.open(cfg.folder))["@graph"]}
    assert {"@id": "adapter/adapter_model.safetensors"} in described["./"]["hasPart"]
    assert described["config.yaml"]["name"] == "Configuration"


@pytest.mark.parametrize("method", ["linear", "bitfit"])
def test_a_run_without_layers_of_peft_leaves_no_folder_for_it(configured: Configured, method: str) -> None:
    cfg = configured(f"method={method}")
    assert not any(name.startswith("adapter/") for name in trained(cfg).files or {})
    assert not (cfg.folder / "adapter").exists()


def test_attention_in_bf16_on_a_cpu_is_plain_and_the_record_says_so(configured: Configured) -> None:
    """The fused kernel takes longer there, by a third in MiniLM's backward pass."""
    cfg = configured("method=gift_qv", "trainer.precision=bf16")
    result, run = trained(cfg), Run.open(cfg.folder)
    ours: Any = finished_model(run, "cpu")[0]
    accelerated: Any = result.env["acceleration"]
    assert accelerated["plain_attention"]
    assert ours.model.config._attn_implementation == "eager"
    assert evaluate_split(run, "test").top1 == result.metrics["test_top1"]
    tokens = ours.tokenizer([row["sentence"] for row in rows(6)], padding=True, return_tensors="pt")
    plain = ours.eval().model(**tokens).logits
    ours.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours.model(**tokens).logits, plain)


def test_a_revision_at_the_hub_is_loaded_and_named_in_the_record(
    configured: Configured, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two revisions in the hub's cache, the newer one with other weights."""
    kept = tmp_path / "hub" / "models--me--tiny"
    for revision, commit in (("main", "a" * 40), ("first", "b" * 40)):
        shutil.copytree(root / "bert", kept / "snapshots" / commit)
        write_ref = kept / "refs" / revision
        write_ref.parent.mkdir(exist_ok=True)
        write_ref.write_text(commit)
    newer = kept / "snapshots" / ("a" * 40) / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(newer).items()}, newer, {"format": "pt"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    results = [
        trained(
            configured("method=linear", "backbone.model=me/tiny", f"backbone.revision={revision}", f"run_name=r_{revision}")
        )
        for revision in ("null", "first")
    ]
    assert [result.backbone["weights"] for result in results] == ["me/tiny", "me/tiny@first"]
    fingerprints = [result.backbone["weights_sha256"] for result in results]
    assert fingerprints[0] != fingerprints[1] == trained(configured("method=linear", "run_name=x")).backbone["weights_sha256"]
    with pytest.raises(RunError, match="could not be had from the hub"):
        trained(configured("method=linear", "backbone.model=me/tiny", "backbone.revision=second", "run_name=z"))
    with pytest.raises(ConfigError, match=r"backbone.revision=first is for the hub, and .*/bert is a folder; leave it out"):
        configured("backbone.revision=first")
