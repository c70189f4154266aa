"""The benchmark: what does not depend on the machine, and its output. Times are never asserted."""

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch

from experiments.bench import __main__ as command
from experiments.bench import parallel_runs
from experiments.bench.cost import Cost, inference_flops, training_cost
from experiments.bench.measure import Figures, inference_logits, step_cost
from experiments.bench.report import plot, ratio, records, table
from experiments.bench.variants import REFERENCE, VARIANTS, Variant, build, choose_variants
from gift_vit import cli
from gift_vit.methods.gift import GiftPair

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


def test_lean_and_minimal_keep_less(costs: dict[str, Cost]) -> None:
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
    assert {n for n, p in reference.named_parameters() if p.requires_grad} == {
        n for n, p in gift.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("name", [v.name for v in VARIANTS])
def test_every_variant_can_be_built_and_counted(name: str) -> None:
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    own = variant(name)
    flops, saved_bytes = step_cost(own, build(own, "test_vit", CPU), images)
    assert flops > 0
    assert (saved_bytes is None) == (own.compiled or not own.training)


def test_what_is_compiled_is_one_graph() -> None:
    model = build(variant("gift compiled"), TINY, CPU)
    assert torch._dynamo.explain(model)(IMAGES).graph_break_count == 0


def test_variants_share_the_frozen_weights_and_nothing_else() -> None:
    plain = dict(build(variant("plain, inference"), TINY, CPU).named_parameters())
    shared = {
        name: {n for n, p in build(variant(name), TINY, CPU, plain).named_parameters() if p.data_ptr() == plain_ptr(plain, n)}
        for name in ("gift", "full", "linear")
    }
    assert shared["full"] == set()
    assert shared["gift"] == shared["linear"] == set(plain) - {"head.weight", "head.bias"}


def plain_ptr(plain: dict[str, torch.nn.Parameter], name: str) -> int | None:
    return plain[name].data_ptr() if name in plain else None


def figures(name: str, *seconds: float) -> Figures:
    middle = sorted(seconds)[len(seconds) // 2]
    return Figures(variant(name), 8, 10**9, 2**20, None, middle, 0.0, seconds)


def test_ratios_are_taken_within_a_round() -> None:
    reference = figures(REFERENCE, 1.0, 2.0, 4.0)
    assert ratio(figures("gift", 0.5, 1.8, 2.0), reference) == 0.5
    assert ratio(figures("gift", 0.5, 1.0), figures(REFERENCE, 1.0, 4.0)) == 0.375
    assert ratio(reference, None) is None


def test_records_table_and_picture(tmp_path: Path) -> None:
    found = records([figures(REFERENCE, 1.0, 1.0), figures("gift", 0.5, 0.5)], {("fp32", 8): 4e9}, {"device": "cpu"})
    assert [(r["name"], r["ratio"], r["images_per_s"], r["product_share"]) for r in found] == [
        (REFERENCE, 1.0, 8.0, 0.25),
        ("gift", 0.5, 16.0, 0.5),
    ]
    assert json.loads(json.dumps(found)) == found
    [row] = [line for line in table(found, "caption", "commit").splitlines() if line.startswith("| gift |")]
    assert row == "| gift | 8 | 500.0 | 0.0 | 0.500 | 16.0 | 1.0 | 2 | 50 | 1.0 | – |"
    plot(found, "title", tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def run(*words: str, program: ModuleType = command) -> int:
    with patch.object(sys, "argv", ["bench", *words]), pytest.raises(SystemExit) as stopped:
        program.main()
    return int(stopped.value.code or 0)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model={TINY}", "batch_sizes=[1]", "rounds=1", "variants=[gift,linear,'plain, inference']", "device=cpu"]
    assert run("--quick", *words, f"out={tmp_path / 'cpu'}") == cli.SUCCESS
    assert (tmp_path / "cpu.md").read_text() == capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert [(line["name"], line["batch_size"], line["model"]) for line in lines] == [
        (name, 1, TINY) for name in ("gift", "linear", "plain, inference")
    ]
    assert lines[0]["ratio"] is None, "no reference in this run"
    assert lines[2]["ratio"] == 1.0


def test_runs_together_and_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=vit_mini_patch8_64", "runs=2", "methods=[linear]", "batch_size=2", "rounds=1", "device=cpu"]
    assert run(*words, f"out={tmp_path / 'runs.jsonl'}", program=parallel_runs) == cli.SUCCESS
    assert [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| linear")] == [
        ["| linear", "one"],
        ["| linear", "each its own"],
    ]
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for line in lines:
        assert (line["model"], line["runs"], line["method"]) == ("vit_mini_patch8_64", 2, "linear")
        assert line["ratio"] == line["together"][0] / line["alone"][0]
        assert not {"platform", "out"} & line.keys(), "what says nothing of speed, and a person's folders"


def test_an_unknown_variant_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("variants=[gfit]") == cli.USER_ERROR
    assert capsys.readouterr().err.startswith("error: unknown variant 'gfit' (known: reference; floor; gift; ")
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)
