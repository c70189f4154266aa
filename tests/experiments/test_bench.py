"""The benchmark: what does not depend on the machine, and its output. Times are never asserted."""

import json
import logging
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments.bench import __main__ as command
from experiments.bench import end_to_end, loading, whole_runs
from experiments.bench.cost import Cost, inference_flops, training_cost
from experiments.bench.measure import Figures, inference_logits, step_cost
from experiments.bench.models import build
from experiments.bench.report import plot, ratio, records, table
from experiments.bench.variants import METHODS, REFERENCE, VARIANTS, Variant, choose_variants
from gift_vit.methods.gift import GiftPair
from tests.results.conftest import exit_code, refused
from tests.warm import run_module

TINY = "vit_tiny_patch16_224"
CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def variant(name: str) -> Variant:
    return choose_variants([name])[0]


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    torch.set_float32_matmul_precision("highest")
    names = ("reference", "floor", "gift", "gift lean", "gift minimal", "gift, timm's forward")
    return {name: training_cost(build(variant(name), TINY, CPU), IMAGES) for name in names}


def test_gift_costs_what_a_frozen_backbone_costs_and_less_with_the_class_token_alone(costs: dict[str, Cost]) -> None:
    assert costs["gift, timm's forward"].flops <= 1.02 * costs["floor"].flops, "r = 16 of d = 192; 1.01 at d = 768"
    assert costs["gift"].flops < 0.95 * costs["floor"].flops
    assert costs["gift"].flops < 0.9 * costs["reference"].flops
    assert costs["gift"].saved_bytes < costs["floor"].saved_bytes
    assert costs["gift lean"].saved_bytes <= 0.55 * costs["reference"].saved_bytes
    assert costs["gift lean"].flops <= costs["reference"].flops
    assert costs["gift minimal"].saved_bytes < 0.2 * costs["reference"].saved_bytes


def test_merged_inference_computes_less_than_timms(costs: dict[str, Cost]) -> None:
    plain, merged = (inference_flops(build(variant(f"{n}, inference"), TINY, CPU), IMAGES) for n in ("plain", "gift merged"))
    assert merged < 0.95 * plain
    assert plain == pytest.approx(costs["floor"].forward_flops)


def test_explaining_computes_the_maps_and_little_more_than_the_forward_pass() -> None:
    own = {name: build(variant(f"{name}, inference"), TINY, CPU) for name in ("plain", "gift", "gift explained")}
    plain, gift = (inference_flops(own[name], IMAGES) for name in ("plain", "gift"))
    explained = inference_flops(partial(inference_logits, variant("gift explained, inference"), own["gift explained"]), IMAGES)
    product, width, patches = 2 * 16 * 192, 192, 2 * 196  # of a row of d = 192 with r = 16 columns
    maps = 12 * product * (2 * width + 1 + 2 * patches)  # per block ω φ, ωᵀ C, b C, and of each patch a post and a pre map
    last_block = plain - inference_flops(build(variant("gift merged, inference"), TINY, CPU), IMAGES) + 2 * product * patches
    assert explained == gift + maps + last_block, "which the class token alone does not need"
    assert explained < 1.1 * plain


def test_the_reference_form_computes_gift() -> None:
    reference, gift = (build(variant(name), TINY, CPU) for name in ("reference", "gift"))
    for model in (reference, gift):
        pair = model.get_submodule("gift.attn.proj")
        assert isinstance(pair, GiftPair)
        torch.nn.init.normal_(pair.psi, std=0.02, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(reference.eval()(IMAGES), gift.eval()(IMAGES), atol=2e-5, rtol=1e-4)
    trained = [{n for n, p in model.named_parameters() if p.requires_grad} for model in (reference, gift)]
    assert trained[0] == trained[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [v.name for v in {*METHODS, *VARIANTS}])
def test_every_variant_can_be_built_and_counted(name: str) -> None:
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    own = variant(name)
    flops, saved_bytes = step_cost(own, build(own, "test_vit", CPU), images)
    assert flops > 0
    assert (saved_bytes is None) == (own.compiled or not own.training)


@pytest.mark.slow
def test_what_is_compiled_is_one_graph() -> None:
    model = build(variant("gift compiled"), TINY, CPU)
    assert torch._dynamo.explain(model)(IMAGES).graph_break_count == 0


def test_variants_share_the_frozen_weights_and_nothing_else() -> None:
    plain = dict(build(variant("plain, inference"), "test_vit", CPU).named_parameters())
    frozen = set(plain) - {"head.weight", "head.bias"}
    for name, expected in (("gift", frozen), ("full", set()), ("linear", frozen)):
        own = build(variant(name), "test_vit", CPU, plain).named_parameters()
        assert {n for n, p in own if n in plain and p.data_ptr() == plain[n].data_ptr()} == expected, name


def figures(name: str, *seconds: float) -> Figures:
    return Figures(variant(name), 8, 10**9, 36_864, 2**20, None, seconds)


def test_ratios_within_a_round_records_table_and_picture(tmp_path: Path) -> None:
    reference = figures(REFERENCE, 1.0, 2.0, 4.0)
    assert (ratio(figures("gift", 0.5, 1.8, 2.0), reference), ratio(reference, None)) == (0.5, None)
    assert ratio(figures("gift", 0.5, 1.0), figures(REFERENCE, 1.0, 4.0)) == 0.375
    found = records([figures(REFERENCE, 1.0, 1.0), figures("gift", 0.5, 0.5)], {("fp32", 8): 4e9}, {"device": "cpu"})
    told = [(r["name"], r["ratio"], r["images_per_s"], r["product_share"]) for r in found]
    assert told == [(REFERENCE, 1.0, 8.0, 0.25), ("gift", 0.5, 16.0, 0.5)]
    assert json.loads(json.dumps(found)) == found
    [row] = [line for line in table(found, "caption", "commit").splitlines() if line.startswith("| gift |")]
    assert row == "| gift | 8 | 500.0 | 0.0 | 0.500 | 16.0 | 1.0 | 2 | 50 | 1.0 | – | 36,864 |"
    plot(found, "title", tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


run, whole = partial(exit_code, command.main), partial(exit_code, end_to_end.main)


def test_the_command_writes_what_it_prints_and_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "experiments")
    words = ["model=test_vit", "batch_sizes=[1]", "rounds=1", "variants=[gift,linear,'plain, inference']", "device=cpu"]
    assert run("--quick", *words, f"out={tmp_path / 'cpu.v1'}") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.v1.jsonl", "cpu.v1.md", "cpu.v1.png"}
    assert (tmp_path / "cpu.v1.md").read_text() == capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "cpu.v1.jsonl").read_text().splitlines()]
    names = ("gift", "linear", "plain, inference")
    assert [(line["name"], line["batch_size"], line["model"]) for line in lines] == [(name, 1, "test_vit") for name in names]
    assert (lines[0]["ratio"], lines[2]["ratio"]) == (None, 1.0), "no reference in this run"
    prepared = [f"batch 1: preparing {name} ({number} of 3)" for number, name in enumerate(names, 1)]
    assert [record.getMessage() for record in caplog.records] == [*prepared, "batch 1: round 1 of 1"]


def test_speeds_of_loading_are_medians_of_a_round_s_ratios() -> None:
    measured = [{"theirs": 4.0, "ours": 1.0}, {"theirs": 2.0, "ours": 1.0}, {"theirs": 9.0, "ours": 3.0}]
    [theirs, ours] = loading.table(measured, "", "").rows
    assert [cell.text for cell in theirs] == ["theirs", "1.00", "1.00", "1.00"]
    assert [cell.text for cell in ours] == ["ours", "3.00", "2.00", "4.00"]


def test_whole_runs_begin_anew_in_a_folder_that_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []

    def train(words: list[str]) -> float:
        out = Path(dict(word.split("=", 1) for word in words)["paths.output_root"])
        assert not out.exists()
        begun.append(out)
        cost = {"total_seconds": 1.5, "train_seconds": 1.0, "peak_memory_mib": None}
        (out / "run").mkdir(parents=True)
        (out / "run/result.json").write_text(json.dumps({"cost": cost, "env": {"acceleration": {}}}))
        (out / "run/metrics.jsonl").write_text('{"images_per_s": 4.0, "seconds": 1.0}\n' * 2)
        return 2.0

    monkeypatch.setattr(whole_runs, "_command", train)
    words = ["model=test_vit", "images=2", "classes=1", "side=32", "workers=1", "contenders=[gift]", f"folder={tmp_path}"]
    for _ in range(2):
        assert whole(*words, "device=cpu") == 0
        assert "| gift_vit | 2 | 4 | – | 2.0 | 1.0 |" in capsys.readouterr().out
    assert len(set(begun)) == 4
    assert len(list(tmp_path.glob("images/t*/000/*.jpg"))) == 4
    said = refused(whole, capsys, *words, "images=4")
    assert f"folder={tmp_path} holds 2 images of 1 classes, 32 pixels wide, not 4 images" in said


def test_whole_runs_train_as_a_person_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of the project: over 3 s beside other tests."""

    def train(words: list[str]) -> float:
        ended = run_module("gift_vit.train", *words, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return 99.0

    monkeypatch.setattr(whole_runs, "_command", train)
    words = ["images=10", "classes=2", "side=64", "batch_size=2", "epochs=1", "plain_epochs=1", "workers=0", "device=cpu"]
    assert whole(*words, "contenders=[gift,reference]", "model=test_vit.r160_in1k", f"folder={tmp_path}", "squash=true") == 0
    assert re.findall(r"^\| (\w+) \| 1 \| [1-9]", capsys.readouterr().out, re.MULTILINE) == ["gift_vit", "reference"]


def test_no_name_is_of_two_variants() -> None:
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)
    named = choose_variants(["reference", "methods", "gift"])
    assert [v.name for v in named] == ["reference", *(v.name for v in METHODS)], "each once"
