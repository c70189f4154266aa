"""Display names against the configurations they are names of."""

from data_prep.vtab.tasks import TASKS
from gift_vit.paths import conf_dir
from gift_vit.results import names


def stems(folder: str) -> set[str]:
    return {path.stem for path in (conf_dir() / folder).glob("*.yaml")}


def test_every_method_has_a_name() -> None:
    assert set(names.METHOD_NAMES) == stems("method")
    assert len(set(names.METHOD_NAMES.values())) == len(names.METHOD_NAMES) >= 39


def test_every_dataset_has_a_name_except_those_the_user_names() -> None:
    assert set(names.DATASET_NAMES) == stems("dataset") - {"folder", "parquet"}
    assert len(set(names.DATASET_NAMES.values())) == len(names.DATASET_NAMES) == 5 + 5 + 19


def test_benchmarks_are_those_of_the_configurations() -> None:
    for benchmark, datasets in (("fgvc", names.FGVC), ("vtab1k", names.VTAB), ("mini", names.MINI)):
        texts = {path.stem: path.read_text().splitlines() for path in (conf_dir() / "dataset").glob("*.yaml")}
        assert set(datasets) == {stem for stem, lines in texts.items() if f"benchmark: {benchmark}" in lines}


def test_vtab_has_the_groups_names_and_order_of_its_preparation() -> None:
    given = [(group, label, title) for group, tasks in names.VTAB_GROUPS.items() for label, title in tasks.items()]
    assert given == [(task.group.capitalize(), f"vtab_{task.name}", task.title) for task in TASKS.values()]
    assert [len(tasks) for tasks in names.VTAB_GROUPS.values()] == [7, 4, 8]


def test_what_has_no_name_keeps_its_label_and_comes_last() -> None:
    assert (names.method_name("mine"), names.dataset_name("mine")) == ("mine", "mine")
    assert names.ordered(["b", "gift", "a", "linear"], names.METHOD_NAMES) == ["linear", "gift", "b", "a"]
