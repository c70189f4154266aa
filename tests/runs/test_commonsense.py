"""Commonsense170k from the command to the record, with a Llama of random weights that knows nothing of the world.

It is trained on questions that tell their own answer. A run takes a second beside the import of transformers.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.language import LanguageModel, build_language_model
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.tensors import IGNORED
from gift_vit.config import RunConfig, load_config
from gift_vit.config.loader import check_present
from gift_vit.data.config import CommonsenseConfig
from gift_vit.data.prompts import Prompts, PromptTokenizer
from gift_vit.data.questions import QuestionSource
from gift_vit.data.tokens import TokenTransform
from gift_vit.engine.objective import SEQUENCES
from gift_vit.engine.state import Precision
from gift_vit.invariance.pair import open_pair
from gift_vit.runs.decoding import Decoding
from gift_vit.runs.finished import evaluate_split, make_predictions, write_merged
from gift_vit.runs.result import Result
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from gift_vit.runs.verify import Untruth, verify_run
from tests.conf.files import composed
from tests.data.conftest import SHARED
from tests.runs.conftest import check_resumed
from tests.text_models import questions, text_model, tiny_llama, write

Configured = Callable[..., RunConfig]
CALL = Call("python -m gift_vit.train", [])
pytestmark = pytest.mark.usefixtures("offline")
CPU = torch.device("cpu")
REAL = SHARED / "text" / "commonsense"
GIFT = ("method=gift_qkvud", "method.rank=4")
NORMS = ("method=ln_tuning", "method.target_modules=[input_layernorm,post_attention_layernorm,norm]")
NEW = 24  # tokens that an answer is given: `the correct answer is false` has fewer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, and models beside them."""
    root = tmp_path_factory.mktemp("commonsense")
    write(root / "data" / "commonsense_170k.json", [*questions("boolq", 48), *questions("piqa", 48)])
    write(root / "data" / "boolq" / "test.json", questions("boolq", 14))
    write(root / "data" / "piqa" / "test.json", questions("piqa", 6))
    tiny_llama(root / "llama")
    return root


@pytest.fixture
def configured(root: Path, tmp_path: Path) -> Configured:
    def configure(*words: str, model: Path | None = None, method: Sequence[str] = GIFT) -> RunConfig:
        data = ("dataset=commonsense", f"dataset.root={root}/data", "dataset.sets=[boolq,piqa]", "dataset.val_fraction=0.1")
        given = ("backbone=hf", f"backbone.model={model or root / 'llama'}", *method)
        short = ("phase=final", "protocol=commonsense_gift", "trainer.epochs=2", "trainer.device=cpu", "optim.lr=1e-2")
        return load_config(composed(*data, *given, *short, f"paths.output_root={tmp_path}", *words))

    return configure


def trained(cfg: RunConfig) -> Result:
    return train_run(cfg, CALL)


def answers(cfg: RunConfig, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cfg.folder / "answers" / f"{name}.jsonl").read_text().split("\n")[:-1]]


def test_what_can_be_learnt_is_answered_and_the_record_says_how_well(configured: Configured, tmp_path: Path) -> None:
    """The one run of the suite that answers rightly: two seconds of training."""
    cfg = configured("trainer.epochs=30", method=["method=full"])
    result = trained(cfg)
    assert result.metric == "exact"
    extra = result.extra_metrics or {}
    for name, count in (("boolq", 14), ("piqa", 6)):
        rows = answers(cfg, name)
        assert [row["id"] for row in rows] == list(range(count))
        assert [row["answer"] for row in rows] == [row["answer"] for row in questions(name, count)]
        exact = [row["text"].strip() == f"the correct answer is {row['answer']}" for row in rows]
        assert exact == [row["exact"] for row in rows]
        assert extra[f"exact_{name}"] == pytest.approx(100 * sum(exact) / count)
        assert extra[f"exact_{name}"] > 80, "each question says its answer"
    assert result.metrics["test_top1"] == pytest.approx((extra["exact_boolq"] + extra["exact_piqa"]) / 2)
    assert extra["regex"] >= (result.metrics["test_top1"] or 0)
    assert {"answers/boolq.jsonl", "answers/piqa.jsonl"} <= set(result.files or {})
    again = evaluate_split(Run.open(cfg.folder), "test")
    assert (again.top1, again.images, again.further) == (result.metrics["test_top1"], 20, extra)
    assert any("give every recorded score" in line for line in verify_run(Run.open(cfg.folder)))
    _as_plain_transformers_answers(cfg, tmp_path / "merged")
    with pytest.raises(ConfigError, match="answers in words, which training has kept in answers/"):
        make_predictions(Run.open(cfg.folder))
    with pytest.raises(ConfigError, match=r"llama takes texts, and this is for images"):
        open_pair(Run.open(cfg.folder), CPU)
    rows = [{**row, "text": "the correct answer is true"} for row in answers(cfg, "boolq")]
    (cfg.folder / "answers" / "boolq.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(Untruth, match=r"answers/boolq.jsonl has another SHA-256"):
        list(verify_run(Run.open(cfg.folder), score=False))


def _as_plain_transformers_answers(cfg: RunConfig, folder: Path) -> None:
    """The run's answers are those of its merged model, asked one question at a time by transformers alone."""
    assert "AutoModelForCausalLM" in write_merged(Run.open(cfg.folder), folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for name, count in (("boolq", 14), ("piqa", 6)):
        for row, question in zip(answers(cfg, name), questions(name, count), strict=True):
            assert row["text"] == alone(model, tokenizer, question["instruction"], 32)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # it names RMS norms itself
@pytest.mark.parametrize("words", [GIFT, ("method=lora_qkvud", "method.rank=2"), NORMS], ids=["gift", "lora", "norms"])
def test_the_folder_for_peft_answers_as_the_run_did(configured: Configured, root: Path, words: tuple[str, ...]) -> None:
    dtype = "float32" if words is NORMS else "bfloat16"
    cfg = configured(f"backbone.dtype={dtype}", method=words)
    trained(cfg)
    base = AutoModelForCausalLM.from_pretrained(root / "llama", dtype=getattr(torch, dtype))
    model, tokenizer = (
        PeftModel.from_pretrained(base, str(cfg.folder / "adapter")).eval(),
        AutoTokenizer.from_pretrained(root / "llama"),
    )
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    asked = tokenizer(questions("boolq", 1)[0]["instruction"], return_tensors="pt")
    ours: Any = Run.open(cfg.folder).model()
    torch.testing.assert_close(model(**asked).logits, ours.model(**asked).logits)


def alone(model: Any, tokenizer: Any, question: str, new: int) -> str:
    """What plain transformers answers to one question: no batch, no padding."""
    inputs = tokenizer(f"{question}\n", return_tensors="pt")
    plain = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    with torch.inference_mode():
        made = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=plain)
    return tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


MIXED = ["Is it?", "Are much longer questions answered as short ones are, true or not true?", "a", "one two three"]


@pytest.mark.parametrize("special", [("[PAD]",), ()], ids=["pad token", "none"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_do_not_depend_on_what_is_asked_beside(tmp_path: Path, special: Sequence[str], batch_size: int) -> None:
    folder = tiny_llama(tmp_path / "llama", special, initializer_range=0.6)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    expected = [alone(plain, tokenizer, question, NEW) for question in MIXED]
    assert len(set(expected)) == len(MIXED), "else a mix-up of the order would not show"
    # whatever the folder asks for, decoding is plain and greedy
    GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=5.0, min_new_tokens=NEW).save_pretrained(folder)
    model = build_language_model(BackboneConfig(name="x", model=str(folder), kind="transformers"))
    dataset = CommonsenseConfig(name="commonsense", root="/absent", max_new_tokens=NEW)
    decoding = Decoding(model.eval(), dataset, batch_size, Precision("fp32", CPU), CPU)
    assert decoding.answers(MIXED, "boolq") == expected


def test_a_batch_that_the_memory_does_not_hold_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes after the whole training; the longest questions are asked first."""
    model = language_model(tiny_llama(tmp_path, initializer_range=0.6)).eval()
    dataset = CommonsenseConfig(name="commonsense", root="/absent", max_new_tokens=NEW)
    decoding = Decoding(model, dataset, 8, Precision("fp32", CPU), CPU)
    expected, continued = decoding.answers(MIXED, "boolq"), LanguageModel.continued

    def short_of_memory(self: LanguageModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return continued(self, ids, *rest)

    monkeypatch.setattr(LanguageModel, "continued", short_of_memory)
    most = 1
    assert decoding.answers(MIXED, "boolq") == expected
    assert "no memory for 2 questions at a time: 1 from here on" in caplog.text
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        decoding.answers(MIXED, "boolq")


def test_an_answer_ends_with_the_end_token(root: Path) -> None:
    """A row that is done is filled up, and what is behind its end is not read."""
    model = language_model(root / "llama")
    end = model.tokenizer.eos_token_id
    rows = iter([[5, 6, 7], [end, 9, 8], [9, end, 7]])  # what the three questions are made to say, step by step

    def forced(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e9).scatter(1, torch.tensor(next(rows))[:, None], 0.0)

    original = model.model.generate
    model.model.generate = lambda **told: original(**told, logits_processor=[forced])
    made = model.continued(torch.tensor([[3, 4]] * 3), torch.ones(3, 2, dtype=torch.int64), 3)
    pad = model.tokenizer.pad_token_id
    assert made.tolist() == [[5, end, pad], [6, 9, end], [7, 8, 7]]


def language_model(folder: Path, **options: Any) -> LanguageModel:
    return build_language_model(BackboneConfig(name="x", model=str(folder), kind="transformers", **options))


def batch_of(model: LanguageModel, rows: Sequence[dict[str, str]], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the loaders stack it, and what is to be said."""
    asked, told = ([row[key] for row in rows] for key in ("instruction", "answer"))
    source = QuestionSource(asked, told, told, [""] * len(rows))
    prompts = Prompts(source, PromptTokenizer(model.tokenizer, max_length), "train")
    items = [prompts[index] for index in range(len(prompts))]
    batch = TokenTransform(model.tokenizer.pad_token_id, in_front=True).stack([torch.from_numpy(tokens) for tokens, _ in items])
    longest = max(len(target) for _, target in items)
    labels = torch.full((len(items), longest), IGNORED)
    for row, (_, target) in zip(labels, items, strict=True):
        row[longest - len(target) :] = target
    return batch, labels


def test_the_loss_is_that_of_the_answers_alone_in_float64(root: Path) -> None:
    """By hand: each question alone, in double precision, the log-probabilities of the answer's tokens and the end."""
    model = language_model(root / "llama").eval()
    rows = [*questions("boolq", 3), *questions("piqa", 2), {"instruction": "Why?", "answer": "true"}]
    batch, labels = batch_of(model, rows)
    found = SEQUENCES.loss(model(batch).float(), labels).item() / len(rows)
    plain = AutoModelForCausalLM.from_pretrained(root / "llama").double().eval()
    losses, counts = [], set()
    for row in rows:
        prompt = model.tokenizer(f"{row['instruction']}\n")["input_ids"]
        whole = model.tokenizer(f"{row['instruction']}\nthe correct answer is {row['answer']}")["input_ids"]
        assert whole[: len(prompt)] == prompt
        ids = [*whole, model.tokenizer.eos_token_id]
        logits = plain(torch.tensor([ids])).logits[0].tolist()
        told = range(len(prompt), len(ids))
        losses.append(sum(math.log(sum(map(math.exp, logits[at - 1]))) - logits[at - 1][ids[at]] for at in told) / len(told))
        counts.add(len(told))
    assert len(counts) > 1, "answers of several lengths"
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_no_number_depends_on_padding(root: Path) -> None:
    model = language_model(root / "llama").eval()
    batch, labels = batch_of(model, [*questions("boolq", 3), {"instruction": "Why?", "answer": "true"}])
    other = torch.where(batch[:, 1:2] == 1, batch, torch.tensor([7, 0, 0])[None, :, None])
    longer = torch.cat([other[:, :, :1] * 0, other], 2)
    for changed in (other, longer):
        torch.testing.assert_close(model(changed), model(batch), rtol=1e-5, atol=1e-5)
    assert model(batch).shape[:2] == labels.shape


def test_the_beginning_of_a_long_question_is_cut_and_never_its_answer(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = language_model(root / "llama")
    question = {"instruction": "word " * 50 + "the end\n\nAnswer format: true/false", "answer": "false"}
    whole, labels = batch_of(model, [question])
    caplog.set_level(logging.WARNING)
    cut, same = batch_of(model, [question, questions("boolq", 1)[0]], max_length=40)
    assert "train: 1 of 2 questions (50.0 %) are longer than 40 tokens with their answer" in caplog.text
    assert same[0].tolist() == labels[0].tolist()
    assert cut[0, 0, -40:].tolist() == [model.tokenizer.bos_token_id, *whole[0, 0, -39:].tolist()]
    assert PromptTokenizer(model.tokenizer, 40).prompts(["word " * 50], "boolq", 30)[0][0] == model.tokenizer.bos_token_id


@pytest.mark.skipif(not (REAL / "boolq").is_dir(), reason="needs ../shared/data/text/commonsense")
def test_real_questions_are_asked_in_their_own_words(root: Path) -> None:
    """What is trained on, turned back into text, is the file's instruction and output; what is asked is the instruction."""
    model = language_model(root / "llama")
    for name in ("boolq", "piqa", "social_i_qa", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa"):
        rows = json.loads((REAL / name / "test.json").read_text())[:20]
        batch, labels = batch_of(model, rows, max_length=4096)
        prompts = PromptTokenizer(model.tokenizer, 4096).prompts([row["instruction"] for row in rows], name, 32)
        for row, (ids, mask, _), told, prompt in zip(rows, batch, labels, prompts, strict=True):
            spoken = [model.tokenizer.decode(tokens) for tokens in (ids[mask == 1], told[told != IGNORED], prompt)]
            assert spoken == [
                f"<s>{row['instruction']}\n{row['output']}</s>",
                f"{row['output']}</s>",
                f"<s>{row['instruction']}\n",
            ]


class _Killed(Exception):
    """The machine is gone."""


def test_a_killed_run_goes_on_with_the_next_set_and_ends_the_same(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(configured("run_name=whole"))
    cut, original, asked = configured("run_name=cut"), Decoding.answers, []

    def ask(self: Decoding, questions: Sequence[str], name: str) -> list[str]:
        asked.append(name)
        if asked == ["boolq", "piqa"]:
            raise _Killed
        return original(self, questions, name)

    monkeypatch.setattr(Decoding, "answers", ask)
    with pytest.raises(_Killed):
        trained(cut)
    assert not (cut.folder / "result.json").exists()
    caplog.set_level(logging.INFO)
    result = trained(cut)
    assert asked == ["boolq", "piqa", "piqa"]
    assert "boolq is answered already" in caplog.text
    assert (result.metrics, result.extra_metrics) == (whole.metrics, whole.extra_metrics)
    for name in ("adapter.safetensors", "answers/boolq.jsonl", "answers/piqa.jsonl"):
        assert (cut.folder / name).read_bytes() == (configured("run_name=whole").folder / name).read_bytes()


@pytest.mark.parametrize("damage", ["another model", "cut short", "no JSON"])
def test_answers_that_are_not_this_models_are_not_gone_on_with(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cfg, asked, original = configured("trainer.epochs=1"), [], Decoding.answers
    trained(cfg)
    expected = answers(cfg, "boolq")
    (cfg.folder / "result.json").unlink()
    file = cfg.folder / "answers" / "boolq.jsonl"
    lines = file.read_text().split("\n")
    lines[0] = lines[0].replace('"id": 0', '"id": 99')
    file.write_text("no\n" if damage == "no JSON" else "\n".join(lines[:3] if damage == "cut short" else lines))
    if damage == "another model":
        (cfg.folder / "answers" / "model.json").write_text(json.dumps({"sha256": "0" * 64}))
    monkeypatch.setattr(Decoding, "answers", lambda self, texts, name: asked.append(name) or original(self, texts, name))
    trained(cfg)
    assert "boolq" in asked
    assert answers(cfg, "boolq") == expected


def test_a_resumed_training_ends_bit_by_bit_as_one_that_was_not(configured: Configured) -> None:
    """With dropout, which the kept random state has to bring back."""
    method = ("method=lora_qkvud", "method.rank=2")
    whole, cut = (configured("trainer.epochs=3", f"run_name={name}", method=method) for name in ("whole", "cut"))
    check_resumed(whole, cut)


def test_a_search_scores_val_by_whole_answers_and_sees_no_test(configured: Configured) -> None:
    """It has to learn something to be seen to: two seconds of training."""
    words = ("phase=search", "trainer.epochs=30", "trainer.eval_every=0", "trainer.keep_predictions=all")
    cfg = configured(*words, method=["method=full"])
    result = trained(cfg)
    assert (result.metrics["test_top1"], result.data.val_images, result.predictions) == (None, 10, None)
    assert (result.metrics["val_top1"] or 0) > 80
    assert not (cfg.folder / "answers").exists()


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # it names RMS norms itself
@pytest.mark.parametrize("words", [NORMS, ("method=full",)], ids=["norms", "full"])
def test_what_is_held_in_half_precision_is_not_trained(configured: Configured, words: tuple[str, ...]) -> None:
    """Of a norm's weight near 1 a step of 2.5e-4 would round to nothing."""
    said = r"trains model\..*, which is held in bfloat16, where .* give backbone.dtype=float32$"
    with pytest.raises(ConfigError, match=said):
        trained(configured("backbone.dtype=bfloat16", method=words))


def test_weights_that_are_not_all_there_are_refused(root: Path, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"its weights lack lm_head\.weight of config\.json's size, which transformers' LlamaForCausalLM has"
    ):
        language_model(folder)
    tied = tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    assert language_model(tied).model.config.tie_word_embeddings


def test_a_merged_model_keeps_the_settings_of_its_folder(configured: Configured, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    GenerationConfig(eos_token_id=[1, 7], temperature=0.6, do_sample=True).save_pretrained(folder)
    cfg = configured("trainer.epochs=1", model=folder)
    trained(cfg)
    write_merged(Run.open(cfg.folder), tmp_path / "merged")
    merged = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert (merged.eos_token_id, merged.temperature, merged.do_sample) == ([1, 7], 0.6, True)


def test_bf16_weights_and_checkpointing(configured: Configured) -> None:
    fast, minimal = (trained(configured(f"trainer.memory={memory}", f"run_name={memory}")) for memory in ("fast", "minimal"))
    assert fast.metrics == minimal.metrics, "the same numbers from less memory"
    cfg = configured("backbone.dtype=bfloat16", "trainer.memory=minimal")
    half = trained(cfg)
    assert half.metrics["train_loss"] == pytest.approx(fast.metrics["train_loss"], rel=0.05)
    model = Run.open(cfg.folder).model()
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "gift_pair" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if "gift_pair" not in name} == {torch.bfloat16}


def test_predictions_that_are_not_wanted_are_not_left(configured: Configured) -> None:
    cfg = configured("trainer.epochs=1", "trainer.keep_predictions=off")
    result = trained(cfg)
    assert result.extra_metrics
    assert not (cfg.folder / "answers").exists()


@pytest.mark.parametrize(
    ("protocol", "epochs", "batch", "pieces", "lr", "seeds"),
    [("commonsense_gift", 6, 32, 4, 2.5e-4, [42, 43, 44]), ("commonsense_wegeft", 3, 16, 1, 2e-4, [42, 43, 44])],
)
def test_the_protocols_are_the_papers(protocol: str, epochs: int, batch: int, pieces: int, lr: float, seeds: list[int]) -> None:
    """language.md §2.2; no autocast, the whole of train, a linear schedule with a tenth of warm-up, the norm clipped to 1."""
    words = ("dataset=commonsense", "backbone=llama3_8b", "method=gift_qkvud", f"protocol={protocol}", "phase=final")
    cfg = load_config(composed(*words))
    trainer, optim = cfg.trainer, cfg.optim
    assert (trainer.epochs, trainer.batch_size, trainer.grad_accumulation) == (epochs, batch, pieces)
    assert (optim.lr, optim.weight_decay, optim.clip_norm) == (lr, 0.0, 1.0)
    assert (optim.decay, optim.schedule, optim.warmup_ratio, optim.warmup_epochs) == ("linear", "step", 0.1, 0)
    assert (optim.warmup_lr, optim.min_lr) == (0.0, 0.0)
    assert (cfg.backbone.dtype, trainer.precision, cfg.compute.speed) == ("bfloat16", "fp32", "exact")
    assert (cfg.train_split, cfg.stop_epoch, cfg.protocol.seeds, cfg.seed) == ("trainval", None, seeds, seeds[0])
    ours = load_config(composed(*words[:3], "phase=final"))
    assert (ours.protocol.name, ours.trainer.epochs, ours.optim.decay) == ("clean", 3, "linear"), "not those of a few images"


WIDTHS = {"q_proj": 4096, "k_proj": 4096, "v_proj": 4096, "o_proj": 4096, "up_proj": 4096}  # d_in


@pytest.mark.parametrize(
    ("method", "llama", "llama_3", "scale"),
    [
        ("gift_qv_llm", 1_048_576, 1_048_576, None),
        ("gift_proj", 1_048_576, 1_048_576, None),
        ("gift_qkvud", 3_506_176, 3_932_160, None),
        ("wegeft_qkvud", 3_506_176, 3_932_160, 2.0),
    ],
)
def test_the_methods_have_the_papers_sizes(configured: Configured, method: str, llama: int, llama_3: int, scale: float) -> None:
    """language.md §2.3: a pair for each target."""
    told = configured(method=[f"method={method}"]).method
    for down, expected in ((11_008, llama), (14_336, llama_3)):
        assert sum(2 * told.rank * {**WIDTHS, "down_proj": down}[name] for name in told.target_modules) == expected
    assert (told.alpha and told.alpha / told.rank) == scale


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("method=linear",), ConfigError, "method 'linear' finds nothing to train: llama has no head; choose another method"),
        (("method.target_modules=[lm_head]",), ConfigError, "'lm_head' matches no layer; name one of self_attn.q_proj"),
        (("method.target_modules=[query]",), ConfigError, "'query' matches no layer; name one of self_attn.q_proj"),
        (("backbone.model=nobody/has-this",), RunError, "could not be had from the hub"),
        (("backbone.pooling=mean",), ConfigError, "backbone.pooling=mean is for classifiers"),
        (("backbone.pad_token=absent",), ConfigError, "knows no such token"),
    ],
)
def test_what_does_not_fit_is_one_line(
    configured: Configured, words: tuple[str, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        trained(configured(*words, method=() if words[0] == "method=linear" else GIFT))
    assert "\n" not in str(caught.value)


def test_models_that_cannot_answer_are_refused(configured: Configured, tmp_path: Path) -> None:
    encoder = text_model(tmp_path / "bert", "bert")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(encoder)).save_pretrained(encoder)
    with pytest.raises(ConfigError, match="BertLMHeadModel looks at the words that it is to say"):
        trained(configured(model=encoder))
    folder = tiny_llama(tmp_path / "llama")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(ConfigError, match=r"has no end token \(eos_token\), with which an answer ends"):
        trained(configured(model=folder))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("backbone=vit_mini",), "holds texts, and backbone vit_mini takes images"),
        (("dataset=text", "dataset.root=.", "backbone=llama3_8b"), "backbone.dtype=bfloat16 is for language models"),
        (("backbone=llama_7b",), r"there is no folder .*absent/commonsense; type: python -m data_prep.commonsense root="),
        (("backbone=llama_7b", "dataset.root=."), "there is no file .*commonsense_170k.json; type: python -m data_prep"),
        (("backbone=llama_7b", "dataset.sets=[boolqs]"), "unknown dataset.sets 'boolqs'; did you mean boolq?"),
        (("backbone=llama_7b", "dataset.sets=[piqa,piqa]"), "expected one or several names, each once"),
        (("backbone=llama_7b", "dataset.train=[]"), "expected one or several names, each once"),
        (("backbone=llama_7b", "dataset.max_new_tokens=512"), "leaves nothing of dataset.max_length=512 for the question"),
    ],
)
def test_what_can_be_seen_is_said_before_torch_is_imported(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    words = ("dataset=commonsense", f"paths.data_root={tmp_path}/absent", *words)
    with pytest.raises(ConfigError, match=said):
        check_present(load_config(composed(*(word.replace("root=.", f"root={tmp_path}") for word in words))))
