"""The file of published numbers read alone, its tables digit for digit, and the rule for differences to them."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from experiments.tables import PUBLISHED_FILE
from gift_vit.errors import ConfigError
from gift_vit.results.names import DATASET_NAMES, FGVC, METHOD_NAMES, VTAB, VTAB_GROUPS
from gift_vit.results.published import (
    VIT_B16_PARAMETERS,
    PublishedRow,
    by_conditions,
    choose_published,
    is_same_experiment,
    read_published,
)
from gift_vit.results.schema import Result

Make = Callable[..., Result]
SPEC = Path(__file__).parents[3] / "shared" / "spec" / "paper_numbers.csv"
GROUPS = {f"mean_{group.lower()}": tuple(tasks) for group, tasks in VTAB_GROUPS.items()}

# as the paper's page prints them: five datasets and their mean; three groups and the mean of 19 tasks; parameters in percent
PAPER = {
    "vpt_deep": ("87.88 84.79 98.98 84.51 82.89 87.81", "81.03 85.65 58.89 72.68", "0.054"),
    "bitfit": ("87.75 84.61 99.32 85.23 84.01 88.18", "81.79 85.15 57.75 72.37", "0.097"),
    "lora": ("88.00 84.94 99.32 85.36 85.92 88.71", "81.96 85.89 60.98 73.95", "0.172"),
    "gift": ("89.71 86.28 99.22 87.44 84.28 89.39", "81.95 86.30 61.12 74.09", "0.029"),
}


@pytest.fixture(scope="module")
def published() -> list[PublishedRow]:
    return read_published(PUBLISHED_FILE)


def of_paper(published: list[PublishedRow], benchmark: str) -> dict[str, PublishedRow]:
    return {row.method: row for row in choose_published(published, benchmark, ["gift"])}


def test_the_whole_file(published: list[PublishedRow]) -> None:
    assert sum(len(row.top1) for row in published) == 1386
    assert Counter(row.conditions.source for row in published) == {
        "gift": 8, "vpetl_bench": 35, "vit_peft_vision": 32, "toast": 6, "adapters_strike_back": 24,
    }  # fmt: skip
    means = {"mean", "mean_19_tasks", "mean_3_groups", *GROUPS}
    for row in published:
        assert not row.method or row.method in METHOD_NAMES
        assert set(row.top1) <= set(DATASET_NAMES) | means
        assert all(0 < float(text) <= 100 for text in row.top1.values())
        assert all(0 <= size <= 86_000_000 for size in row.adapter_params)
    methods = {row.method for row in published} - {""}
    assert methods == {
        "full", "linear", "bitfit", "bitfit_all", "ln_tuning", "vpt_shallow", "vpt_deep", "adaptformer", "ssf", "lora", "gift",
    }  # fmt: skip


def test_the_papers_fgvc_table_digit_for_digit(published: list[PublishedRow]) -> None:
    rows = of_paper(published, "fgvc")
    assert list(rows) == list(PAPER)
    for method, (printed, _, percent) in PAPER.items():
        top1 = rows[method].top1
        assert " ".join(top1[key] for key in (*FGVC, "mean")) == printed
        assert f"{fmean(float(top1[d]) for d in FGVC):.2f}" == top1["mean"]
        assert f"{100 * rows[method].adapter_params[0] / VIT_B16_PARAMETERS:.3f}" == percent


def test_the_papers_vtab_table_digit_for_digit(published: list[PublishedRow]) -> None:
    rows = of_paper(published, "vtab1k")
    assert list(rows) == list(PAPER)
    for method, (_, printed, percent) in PAPER.items():
        top1 = rows[method].top1
        assert " ".join(top1[key] for key in (*GROUPS, "mean_19_tasks")) == printed
        # the tasks are not printed: from the rounded groups, the mean is known to a rounding only
        tasks = sum(len(names) * float(top1[group]) for group, names in GROUPS.items()) / 19
        assert float(top1["mean_19_tasks"]) == pytest.approx(tasks, abs=0.005 + 0.005)
        assert f"{100 * rows[method].adapter_params[0] / VIT_B16_PARAMETERS:.3f}" == percent


def test_every_printed_mean_is_that_of_its_numbers_but_one(published: list[PublishedRow]) -> None:
    means = {"mean": tuple(FGVC), "mean_19_tasks": tuple(VTAB), **GROUPS}
    wrong, checked = [], 0
    for row in published:
        for mean, members in means.items():
            if mean in row.top1 and set(members) <= set(row.top1):
                decimals = len(row.top1[mean].partition(".")[2])
                expected = fmean(float(row.top1[d]) for d in members)
                checked += 1
                if abs(float(row.top1[mean]) - expected) > 0.501 * 10 ** -max(
                    decimals, 1 if row.conditions.source == "toast" else 2
                ):
                    wrong.append((row.conditions.source, row.name, mean, row.top1[mean], round(expected, 2)))
    assert wrong == [("toast", "LoRA", "mean", "79.8", 81.8)]
    assert checked == 25 + 52 * 4


def test_rows_that_share_their_conditions_stand_together(published: list[PublishedRow]) -> None:
    rows = choose_published(published, "vtab1k", ["vit_peft_vision", "gift"])
    groups = by_conditions(rows)
    assert [(c.source, len(group)) for c, group in groups] == [("gift", 4), ("vit_peft_vision", 16), ("vit_peft_vision", 16)]
    assert {"best-on-test epoch" in c.protocol_text for c, _ in groups[1:]} == {True, False}


TASKS = {
    **{"cifar": "vtab_cifar100", "oxford_flowers102": "vtab_flowers102", "oxford_iiit_pet": "vtab_pets"},
    **{"diabetic_retinopathy": "vtab_retinopathy", "clevr_dist": "vtab_clevr_distance", "kitti": "vtab_kitti_distance"},
    **{"dsprites_loc": "vtab_dsprites_location", "dsprites_ori": "vtab_dsprites_orientation"},
    **{"smallnorb_azi": "vtab_smallnorb_azimuth", "smallnorb_ele": "vtab_smallnorb_elevation"},
    **{"CUB": "cub", "NABirds": "nabirds", "OxfordFlowers": "flowers", "StanfordDogs": "dogs", "StanfordCars": "cars"},
    **{"Natural": "mean_natural", "Specialized": "mean_specialized", "Structured": "mean_structured"},
    **{"mean19": "mean_19_tasks", "mean_of_3_groups": "mean_3_groups", "mean": "mean", "mean(as printed)": "mean"},
}


@pytest.mark.skipif(not SPEC.is_file(), reason="the collection of published numbers is not beside this checkout")
def test_it_restates_the_collection_row_by_row() -> None:
    with SPEC.open(newline="") as original, PUBLISHED_FILE.open(newline="") as restated:
        pairs = list(zip(csv.DictReader(original), csv.DictReader(restated), strict=True))
    assert len(pairs) == 1386
    for theirs, ours in pairs:
        assert (theirs["source"], theirs["ref"]) == (ours["title"], ours["ref"])
        assert (theirs["method"], theirs["protocol"]) == (ours["published_as"], ours["protocol_text"])
        assert theirs["benchmark"].lower().replace("-", "") == ours["benchmark"]
        assert ours["weights"] in theirs["weights"]
        assert TASKS.get(theirs["task"], f"vtab_{theirs['task']}") == ours["dataset"]
        assert float(theirs["acc"]) == float(ours["top1"])
        assert theirs["params_M"].removesuffix("M").strip() == ours["adapter_params_m"]


SAME: dict[str, Any] = {
    "method": "gift",
    "dataset": "cub",
    "seed": 42,
    "run": {"benchmark": "fgvc", "protocol": "gift_paper", "overrides": ["dataset=cub", "optim.lr=0.001"]},
    "backbone": {"architecture": "vit_base_patch16_224", "tag": "augreg_in21k"},
    "params": {"adapter": 24_576},
}
OTHERWISE = [
    {"method": "lora"},
    {"run": {"protocol": "clean"}},
    {"run": {"benchmark": "vtab1k"}},
    {"run": {"protocol_changes": {"trainer.epochs": [100, 50]}}},
    {"run": {"overrides": ["method.target_modules=[attn.q]"]}},
    {"run": {"overrides": ["+method.rank=16"]}},
    {"backbone": {"tag": "orig_in21k"}},
    {"backbone": {"architecture": "vit_large_patch16_224"}},
    {"params": {"adapter": 24_577}},
]


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return {
        key: SAME[key] | change[key] if key in change and isinstance(SAME[key], dict) else change.get(key, SAME[key])
        for key in SAME
    }


def test_the_rule_for_differences(published: list[PublishedRow], make: Make) -> None:
    row = of_paper(published, "fgvc")["gift"]
    assert is_same_experiment([make(**SAME), make(**changed({"dataset": "cars"}))], row)
    assert len(OTHERWISE) == 9
    for change in OTHERWISE:
        assert not is_same_experiment([make(**SAME), make(**changed(change))], row), change
    assert not is_same_experiment([], row)
    others = [other for other in published if other is not row and is_same_experiment([make(**SAME)], other)]
    assert others == []


def test_sources_are_chosen_by_name(published: list[PublishedRow]) -> None:
    assert len(choose_published(published, "fgvc", ["gift", "toast"])) == 10
    with pytest.raises(
        ConfigError, match=r"no published numbers of toast on benchmark vtab1k \(known: adapters_strike_back, gift,"
    ):
        choose_published(published, "vtab1k", ["gift", "toast"])
    with pytest.raises(ConfigError, match=r"of gift on benchmark mini \(it has no published numbers at all\)"):
        choose_published(published, "mini", ["gift"])


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


def test_number_of_broken_files() -> None:
    assert len(BROKEN) == 12


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"p\.csv.*{message}") as error:
        read_published(tmp_path / "p.csv")
    assert "\n" not in str(error.value)


def test_an_absent_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read: No such file"):
        read_published(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"p\.csv is no readable CSV file"):
        read_published(tmp_path / "p.csv")


def test_a_size_may_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"{HEAD}\n{LINE.replace('0.02', '')}\n")
    assert read_published(tmp_path / "p.csv")[0].adapter_params == ()
