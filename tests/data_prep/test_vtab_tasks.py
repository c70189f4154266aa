import pytest

from data_prep.vtab.tasks import BUILDERS, GROUPS, TASKS, Cut
from gift_vit.errors import ConfigError

# task: title, group, builder/config:version, classes, the three cuts, size of the test split, height and width
EXPECTED = {
    "cifar100": "CIFAR-100 natural cifar100:3.0.2 100 train[:800] train[45000:45200] test 10000 (32, 32)",
    "caltech101": "Caltech101 natural caltech101:3.0.2 102 train[:800] train[2754:2954] test 6084 None",
    "dtd": "DTD natural dtd:3.0.1 47 train[:800] validation[:200] test 1880 None",
    "flowers102": "Flowers102 natural oxford_flowers102:2.1.1 102 train[:800] validation[:200] test 6149 None",
    "pets": "Pets natural oxford_iiit_pet:4.0.0 37 train[:800] train[2944:3144] test 3669 None",
    "svhn": "SVHN natural svhn_cropped:3.1.0 10 train[:800] train[65931:66131] test 26032 (32, 32)",
    "sun397": "Sun397 natural sun397/tfds:4.0.0 397 train[:800] validation[:200] test 21750 None",
    "patch_camelyon": "Patch Camelyon specialized patch_camelyon:2.0.0 2 train[:800] validation[:200] test 32768 (96, 96)",
    "eurosat": "EuroSAT specialized eurosat/rgb:2.0.0 10 train[:800] train[16200:16400] train[21600:] 5400 (64, 64)",
    "resisc45": "Resisc45 specialized resisc45:3.0.0 45 train[:800] train[18900:19100] train[25200:] 6300 (256, 256)",
    "retinopathy": "Retinopathy specialized diabetic_retinopathy_detection/btgraham-300:3.0.0 5 train[:800] validation[:200] "
    "test 42670 None",
    "clevr_count": "Clevr/count structured clevr:3.1.0 8 train[:800] train[63000:63200] validation 15000 (320, 480)",
    "clevr_distance": "Clevr/distance structured clevr:3.1.0 6 train[:800] train[63000:63200] validation 15000 (320, 480)",
    "dmlab": "DMLab structured dmlab:2.0.1 6 train[:800] validation[:200] test 22735 (360, 480)",
    "kitti_distance": "KITTI/distance structured kitti:3.3.0 4 train[:800] validation[:200] test 711 None",
    "dsprites_location": "dSprites/loc structured dsprites:2.1.0 16 train[:800] train[589824:590024] train[663552:] "
    "73728 (64, 64)",
    "dsprites_orientation": "dSprites/ori structured dsprites:2.1.0 16 train[:800] train[589824:590024] train[663552:] "
    "73728 (64, 64)",
    "smallnorb_azimuth": "SmallNORB/azi structured smallnorb:2.1.0 18 train[:800] test[:200] test[12150:] 12150 (96, 96)",
    "smallnorb_elevation": "SmallNORB/ele structured smallnorb:2.1.0 9 train[:800] test[:200] test[12150:] 12150 (96, 96)",
}


def test_there_are_19_tasks_of_16_builders_in_groups_of_7_4_and_8() -> None:
    assert list(TASKS) == list(EXPECTED)
    assert len(EXPECTED) == 19
    assert len(BUILDERS) == 16
    assert {task.builder.name for task in TASKS.values()} == set(BUILDERS)
    assert {group: len(names) for group, names in GROUPS.items()} == {"natural": 7, "specialized": 4, "structured": 8}
    assert [name for names in GROUPS.values() for name in names] == list(TASKS)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_task_is_what_the_benchmark_says(name: str) -> None:
    task = TASKS[name]
    builder = "/".join(filter(None, [task.builder.name, task.builder.config])) + ":" + task.builder.version
    counts = task.builder.counts
    cuts = " ".join(cut.expression(counts[cut.split]) for cut in task.cuts.values())
    test = len(task.cuts["test"].positions(counts[task.cuts["test"].split]))
    assert f"{task.title} {task.group} {builder} {task.num_classes} {cuts} {test} {task.size}" == EXPECTED[name]
    assert list(task.cuts) == ["train800", "val200", "test"]
    assert [len(task.cuts[split].positions(counts[task.cuts[split].split])) for split in ("train800", "val200")] == [800, 200]


def test_starts_are_rounded_down() -> None:
    assert Cut("train", 60, 200).positions(1031) == range(618, 818)  # 618.6
    assert Cut("train", 80).positions(1031) == range(824, 1031)  # 824.8
    assert Cut("test").positions(7) == range(7)


def test_only_a_label_of_the_builder_has_its_class_names() -> None:
    without = {name for name, task in TASKS.items() if not task.label_is_builders}
    pairs = {f"{builder}_{kind}" for builder, kinds in {"clevr": ("count", "distance")}.items() for kind in kinds}
    pairs |= {"dsprites_location", "dsprites_orientation", "smallnorb_azimuth", "smallnorb_elevation"}
    assert without == {*pairs, "kitti_distance"}


@pytest.mark.parametrize("cut", [Cut("train", 0, 800), Cut("train", 90, 200), Cut("train", 100)])
def test_a_split_that_ends_too_early_is_an_error(cut: Cut) -> None:
    with pytest.raises(ConfigError, match=r"train\[.*needs more examples than the split's 799"):
        cut.positions(799)
