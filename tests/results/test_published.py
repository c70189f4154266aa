"""The file of published numbers read alone, its tables digit for digit, and the rule for differences to them."""

from collections import Counter
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from experiments.tables import PUBLISHED_FILE
from gift_vit.common.errors import ConfigError
from gift_vit.results.names import FGVC, VTAB, VTAB_GROUPS
from gift_vit.results.published import PublishedRow, by_conditions, choose_published, is_same_experiment, read_published
from gift_vit.runs.result import Result
from tests.results.conftest import make_result

GROUPS = {f"mean_{group.lower()}": tuple(tasks) for group, tasks in VTAB_GROUPS.items()}


@pytest.fixture(scope="module")
def published() -> list[PublishedRow]:
    return read_published(PUBLISHED_FILE)


def of_paper(published: list[PublishedRow], benchmark: str) -> dict[str, PublishedRow]:
    return {row.method: row for row in choose_published(published, benchmark, ["gift"])}


def test_the_whole_file(published: list[PublishedRow]) -> None:
    # it was compared with the sources value by value: what changes it must be compared again
    assert sha256(PUBLISHED_FILE.read_bytes()).hexdigest() == "8a4d1c3d8d31e30579a5187dec0ce7b9d2c9daadb68f2923eac1835dd3bedc89"
    assert sum(len(row.top1) for row in published) == 1386
    assert Counter(row.conditions.source for row in published) == {
        "gift": 8, "vpetl_bench": 35, "vit_peft_vision": 32, "toast": 6, "adapters_strike_back": 24,
    }  # fmt: skip
    assert min(float(text) for row in published for text in row.top1.values()) > 0
    assert max(size for row in published for size in row.adapter_params) <= 86_000_000
    methods = "full linear bitfit bitfit_all ln_tuning vpt_shallow vpt_deep adaptformer ssf lora gift"
    assert {row.method for row in published} - {""} == set(methods.split())


def test_every_printed_mean_is_that_of_its_numbers_but_one(published: list[PublishedRow]) -> None:
    means = {"mean": tuple(FGVC), "mean_19_tasks": tuple(VTAB), **GROUPS}
    printed = [(row, mean, tasks) for row in published for mean, tasks in means.items() if {mean, *tasks} <= row.top1.keys()]
    wrong = []
    for row, mean, members in printed:
        expected = fmean(float(row.top1[d]) for d in members)
        digits = max(len(row.top1[mean].partition(".")[2]), 1 if row.conditions.source == "toast" else 2)
        if abs(float(row.top1[mean]) - expected) > 0.501 * 10**-digits:
            wrong.append((row.conditions.source, row.name, mean, row.top1[mean], round(expected, 2)))
    for row in of_paper(published, "vtab1k").values():  # from rounded groups alone, the mean is known to a rounding
        tasks = sum(len(names) * float(row.top1[group]) for group, names in GROUPS.items()) / 19
        assert float(row.top1["mean_19_tasks"]) == pytest.approx(tasks, abs=0.005 + 0.005)
    assert wrong == [("toast", "LoRA", "mean", "79.8", 81.8)]
    assert len(printed) == 25 + 52 * 4


def test_sources_are_chosen_by_name_and_rows_that_share_their_conditions_stand_together(published: list[PublishedRow]) -> None:
    groups = by_conditions(choose_published(published, "vtab1k", ["vit_peft_vision", "gift"]))
    assert [(c.source, len(group)) for c, group in groups] == [("gift", 4), ("vit_peft_vision", 16), ("vit_peft_vision", 16)]
    assert {"best-on-test epoch" in c.protocol_text for c, _ in groups[1:]} == {True, False}
    assert len(choose_published(published, "fgvc", ["gift", "toast"])) == 10
    with pytest.raises(ConfigError, match=r"numbers of toast on benchmark vtab1k \(known: adapters_strike_back, gift,"):
        choose_published(published, "vtab1k", ["gift", "toast"])
    with pytest.raises(ConfigError, match=r"of gift on benchmark mini \(it has no published numbers at all\)"):
        choose_published(published, "mini", ["gift"])


SAME: dict[str, Any] = {
    "method": "gift",
    "dataset": "cub",
    "seed": 42,
    "run": {"benchmark": "fgvc", "protocol": "gift_paper", "overrides": ["dataset=cub", "optim.lr=0.001"]},
    "backbone": {"architecture": "vit_base_patch16_224", "tag": "augreg_in21k"},
    "params": {"adapter": 24_576},
    "config": {},
}
OTHERWISE = [
    {"method": "lora"},
    {"params": {"adapter": 24_577}},
    *({"backbone": change} for change in ({"tag": "orig_in21k"}, {"architecture": "vit_large_patch16_224"})),
    *({"run": change} for change in ({"protocol": "clean"}, {"benchmark": "vtab1k"})),
    {"run": {"protocol_changes": {"trainer.epochs": [100, 50]}}},
    *({"run": {"overrides": [word]}} for word in ("method.target_modules=[attn.q]", "+method.rank=16")),
    *({"run": {"overrides": [word]}} for word in ("dataset.splits_dir=splits/official", "dataset.transform.hflip=0")),
    *({"config": {f"backbone.{key}": value}} for key, value in (("img_size", 384), ("pretrained", False))),
]


def ours(**changes: Any) -> Result:
    return make_result(**{k: v | changes.get(k, {}) if isinstance(v, dict) else changes.get(k, v) for k, v in SAME.items()})


def test_the_rule_for_differences(published: list[PublishedRow]) -> None:
    row = of_paper(published, "fgvc")["gift"]
    assert is_same_experiment([ours(), ours(dataset="cars", run={"overrides": ["seed=0", "dataset.root=/data/cars"]})], row)
    for changes in OTHERWISE:
        assert not is_same_experiment([ours(), ours(**changes)], row), changes
    assert not is_same_experiment([], row)
    assert [other for other in published if other is not row and is_same_experiment([ours()], other)] == []


HEAD = "source,title,ref,benchmark,method,published_as,adapter_params_m,weights,protocol,protocol_text,dataset,top1"
LINE = "s,t,r,fgvc,gift,GIFT,0.02,w,p,text,cub,89.7"
BROKEN = [
    ("a,b\n", "has columns"),
    (f"{HEAD}\n{LINE},more\n", "line 2: expected 12 values"),
    (f"{HEAD}\n{LINE}\ns,t,r\n", "line 3: expected 12 values"),
    (f"{HEAD}\n{LINE.replace('fgvc', 'fgv')}\n", "line 2: unknown benchmark 'fgv' .known: fgvc, vtab1k."),
    (f"{HEAD}\n{LINE.replace('cub', 'vtab_dtd')}\n", "line 2: unknown dataset 'vtab_dtd' of benchmark fgvc"),
    (f"{HEAD}\n{LINE.replace('gift', 'gfit')}\n", "line 2: unknown method 'gfit'; leave it empty"),
    (f"{HEAD}\n{LINE.replace('89.7', '101')}\n", "line 2: top1 is '101', expected a number from 0 to 100"),
    (f"{HEAD}\n{LINE.replace('89.7', '')}\n", "line 2: top1 is '', expected"),
    (f"{HEAD}\n{LINE.replace('89.7', 'nan')}\n", "line 2: top1 is 'nan', expected"),
    (f"{HEAD}\n{LINE.replace('0.02', '0.02M')}\n", "line 2: adapter_params_m is '0.02M', expected"),
    (f"{HEAD}\n{LINE}\n{LINE.replace('89.7', '90')}\n", "has two numbers of s for GIFT on cub"),
    (f"{HEAD}\n{LINE}\n{LINE.replace('gift,', ',').replace('cub', 'cars')}\n", "calls GIFT of s by several labels: , gift"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"p\.csv.*{message}") as error:
        read_published(tmp_path / "p.csv")
    assert "\n" not in str(error.value)


def test_absent_and_binary_files_and_an_unknown_size(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    with pytest.raises(ConfigError, match=r"p\.csv cannot be read: No such file"):
        read_published(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"p\.csv is no readable CSV file"):
        read_published(file)
    file.write_text(f"{HEAD}\n{LINE.replace('0.02', '')}\n")
    assert read_published(file)[0].adapter_params == ()
