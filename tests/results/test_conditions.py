"""Step time and memory are compared under the same conditions, all of them; what is not the same is said."""

from typing import Any

import pytest

from gift_vit.results.mini import mini_table
from gift_vit.results.paper import fgvc_table
from gift_vit.results.render import Table
from gift_vit.results.request import Request
from gift_vit.runs.result import Result
from tests.results.conftest import make_result

TRAINER = {"precision": "fp32", "compile": False, "batch_size": 32, "grad_accumulation": 1, "memory": "fast", "speed": "exact"}
TRAINER |= {"step_graph": "auto", "cls_last_block": "auto", "drop_path_rate": 0.1, "workers": 2, "deterministic": False}
ENV = {"cpu": "one", "gpu": "card", "cuda": "13", "torch": "2.6", "timm": "1.0", "gift_vit": "0.2.0", "fused_attention": True}
ACCELERATION = {"cls_last_block": True, "plain_attention": False, "precision": "fp32", "compile": False, "memory": "fast"}


def run(method: str, changed: dict[str, Any] | None = None, ms: float = 100.0) -> Result:
    """A run whose conditions are the usual ones but for what is changed, by dotted key."""
    sections: dict[str, dict[str, Any]] = {"trainer": dict(TRAINER), "env": dict(ENV), "acceleration": dict(ACCELERATION)}
    sections |= {"backbone": {}, "dataset": {}}
    for key, value in (changed or {}).items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    config = {f"trainer.{key}": value for key, value in sections["trainer"].items()}
    config |= {f"dataset.{key}": value for key, value in sections["dataset"].items()}
    env = {**sections["env"], "acceleration": sections["acceleration"]}
    return make_result(method, config=config, env=env, backbone=sections["backbone"], cost={"step_time_ms": ms})


def cell_and_notes(table: Table) -> tuple[list[str], str]:
    row = next(row for row in table.rows if row[0].values[0] == "gift")
    return [cell.text for cell in row[4:6]], "\n".join(table.notes)


SAME: dict[str, Any] = {"trainer.epochs": 7, "trainer.eval_every": 3, "trainer.device": "auto", "env.platform": "Linux-9"}


@pytest.mark.parametrize("key", SAME)
def test_what_does_not_matter_does_not_keep_runs_apart(key: str) -> None:
    cells, notes = cell_and_notes(mini_table(Request([run("linear"), run("gift", {key: SAME[key]}, 150.0)])))
    assert (cells, "ompared in" in notes) == (["1.50", "1.00"], False)


APART: dict[str, tuple[Any, str]] = {
    "trainer.precision": ("bf16", "trainer.precision bf16 (linear probing: fp32)"),
    "trainer.compile": (True, "trainer.compile on (linear probing: off or unknown)"),
    "trainer.batch_size": (64, "trainer.batch_size 64 (linear probing: 32)"),
    "trainer.grad_accumulation": (2, "trainer.grad_accumulation 2 (linear probing: 1)"),
    "trainer.memory": ("lean", "trainer.memory lean (linear probing: fast)"),
    "trainer.speed": ("auto", "trainer.speed auto (linear probing: exact)"),
    "trainer.step_graph": ("off", "trainer.step_graph off (linear probing: auto)"),
    "trainer.cls_last_block": ("off", "trainer.cls_last_block off"),
    "trainer.drop_path_rate": (0.0, "trainer.drop_path_rate 0.0 (linear probing: 0.1)"),
    "trainer.workers": (0, "trainer.workers 0 (linear probing: 2)"),
    "trainer.deterministic": (True, "trainer.deterministic on"),
    "env.device": ("cuda", "device cuda (linear probing: cpu)"),
    "env.cpu": ("another", "cpu another (linear probing: one)"),
    "env.gpu": ("another", "gpu another (linear probing: card)"),
    "env.cuda": ("12", "cuda 12 (linear probing: 13)"),
    "env.threads": (8, "threads 8 (linear probing: 2)"),
    "env.processes": (2, "processes 2 (linear probing: 1)"),
    "env.torch": ("2.7", "torch 2.7 (linear probing: 2.6)"),
    "env.timm": ("1.1", "timm 1.1 (linear probing: 1.0)"),
    "env.gift_vit": ("0.3", "gift_vit 0.3 (linear probing: 0.2.0)"),
    "env.fused_attention": (False, "fused_attention off or unknown (linear probing: on)"),
    "acceleration.plain_attention": (True, "fused_attention off or unknown (linear probing: on)"),
    "acceleration.precision": ("bf16", "precision bf16 (linear probing: fp32)"),
    "acceleration.data_on_device": (True, "data_on_device on (linear probing: off or unknown)"),
    "dataset.cache": ("off", "dataset.cache off"),
}


@pytest.mark.parametrize("key", APART)
def test_another_condition_is_a_dash_and_says_so(key: str) -> None:
    value, said = APART[key]
    cells, notes = cell_and_notes(mini_table(Request([run("linear"), run("gift", {key: value})])))
    assert cells == ["–", "–"]
    assert "Not compared in step time and memory: GIFT on Digits, with " in notes
    assert said in notes


def test_another_image_size_is_told_among_runs_for_time() -> None:
    """Those of one table have the same anyway."""
    timing = [run("linear"), run("gift", {"backbone.input_size": [3, 96, 96]})]
    cells, notes = cell_and_notes(mini_table(Request([run("linear"), run("gift")], timing=timing)))
    assert cells == ["–", "–"]
    assert "GIFT on Digits, with image size [3, 96, 96] (linear probing: [3, 64, 64])" in notes


@pytest.mark.parametrize("key", ["cls_last_block", "step_graph", "frozen_in_bf16", "compiled_by_block"])
def test_what_a_method_rules_out_is_part_of_its_cost_and_said(key: str) -> None:
    runs = [run("linear", {f"acceleration.{key}": True}), run("gift", {f"acceleration.{key}": False}, 250.0)]
    cells, notes = cell_and_notes(mini_table(Request(runs)))
    assert cells == ["2.50", "1.00"]
    assert f"Computed in another way: GIFT on Digits, with {key} off or unknown (linear probing: on)." in notes


def test_each_run_is_compared_with_its_like() -> None:
    lean = {"trainer.memory": "lean"}
    timing = [run("linear", ms=100.0), run("linear", lean, 200.0), run("gift", lean, 500.0)]
    cells, notes = cell_and_notes(mini_table(Request([run("linear"), run("gift")], timing=timing)))
    assert (cells[0], "Not compared" in notes) == ("2.50", False)


def test_memory_of_several_conditions_is_told_beside_it() -> None:
    def on_gpu(dataset: str, precision: str) -> Result:
        config = {"trainer.precision": precision}
        env = {"device": "cuda"}
        return make_result("gift", dataset, run={"benchmark": "fgvc"}, config=config, env=env, cost={"peak_memory_mib": 1024.0})

    same = fgvc_table(Request([on_gpu("cub", "fp32"), on_gpu("dogs", "fp32")]))
    assert not any("several conditions" in note for note in same.notes)
    mixed = fgvc_table(Request([on_gpu("cub", "fp32"), on_gpu("dogs", "bf16")]))
    assert "GPU memory: of runs under several conditions (trainer.precision bf16, fp32)." in mixed.notes
