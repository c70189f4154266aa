"""Display names against the configurations they are names of."""

import re

from data_prep.vtab.tasks import TASKS
from gift_vit.config.compose import conf_dir
from gift_vit.results import names


def stems(folder: str) -> set[str]:
    return {path.stem for path in (conf_dir() / folder).glob("*.yaml")}


def test_every_method_and_every_dataset_but_the_users_has_a_name() -> None:
    assert set(names.METHOD_NAMES) == stems("method")
    assert len(set(names.METHOD_NAMES.values())) == len(names.METHOD_NAMES) >= 39
    assert set(names.DATASET_NAMES) == stems("dataset") - {"folder", "parquet", "csv", "text"}
    assert len(set(names.DATASET_NAMES.values())) == len(names.DATASET_NAMES) == 5 + 5 + 19 + 8 + 1


def benchmark_of(dataset: str) -> str:
    text = (conf_dir() / "dataset" / f"{dataset}.yaml").read_text()
    if base := re.search(r"^defaults: \[/(_\w+)\]", text, re.MULTILINE):
        text += (conf_dir() / f"{base[1]}.yaml").read_text()
    return re.findall(r"^benchmark: (\w+)", text, re.MULTILINE)[0]


def test_benchmarks_are_those_of_the_configurations() -> None:
    groups = {"fgvc": names.FGVC, "vtab1k": names.VTAB, "mini": names.MINI}
    groups |= {"glue": names.GLUE, "commonsense": names.COMMONSENSE}
    expected = {dataset: benchmark for benchmark, datasets in groups.items() for dataset in datasets}
    assert {dataset: benchmark_of(dataset) for dataset in names.DATASET_NAMES} == expected


def test_vtab_has_the_groups_names_and_order_of_its_preparation() -> None:
    given = [(group, label, title) for group, tasks in names.VTAB_GROUPS.items() for label, title in tasks.items()]
    assert given == [(task.group.capitalize(), f"vtab_{task.name}", task.title) for task in TASKS.values()]
    assert [len(tasks) for tasks in names.VTAB_GROUPS.values()] == [7, 4, 8]
