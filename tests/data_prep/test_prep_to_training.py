"""From an exported VTAB-1k task to a finished run: what data_prep writes is what gift_vit reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vtab_origins import png, small_origin

from data_prep.vtab.export import export
from data_prep.vtab.tasks import TASKS, Task
from gift_vit.compose import compose_config
from gift_vit.config import RunConfig, load_config
from gift_vit.data import build_dataset
from gift_vit.record import Call
from gift_vit.run import execute


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_is_read_as_it_was_written(tmp_path: Path, task: Task) -> None:
    origin = small_origin(task)
    export(task, origin, tmp_path / "vtab1k" / task.name, official=False)
    words = [f"dataset=vtab_{task.name}", f"paths.data_root={tmp_path}"]
    data = build_dataset(load_config(compose_config(words)).dataset)
    assert (data.num_classes, data.source) == (task.num_classes, "original")
    for split, name in (("train", "train800"), ("val", "val200"), ("test", "test")):
        cut = task.cuts[name]
        keys = origin.keys(cut.split)
        positions = cut.positions(len(keys))
        source = data.splits[split]
        assert len(source) == len(positions)
        records = list(origin.records(cut.split, positions))
        assert source.labels.tolist() == [task.label(record.features) for record in records]
        image, _ = source[len(positions) - 1]
        number = int(str(records[-1].key).split("_")[1].removesuffix(".png"))
        colour = (255 * (number % 2),) * 3 if task.builder.name == "dsprites" else (number % 256, number // 256, 7)
        assert np.asarray(image)[0, 0].tolist() == list(colour)


def test_a_run_on_an_exported_task(tmp_path: Path, configure: Callable[..., RunConfig]) -> None:
    task = TASKS["eurosat"]
    origin = small_origin(task)
    origin.image = lambda _, key: png(size=(9, 7), colour=(len(str(key)) * 11, 3, 7))
    export(task, origin, tmp_path / "data/vtab1k/eurosat", official=False)
    results = []
    for cache in ("off", "ram", "disk"):
        words = ["dataset=vtab_eurosat", f"paths.data_root={tmp_path / 'data'}", f"dataset.cache={cache}", f"run_name={cache}"]
        results.append(execute(configure(*words, "phase=final", "trainer.epochs=2"), Call("python", [])))
    assert results[0].data.source == "original"
    assert results[0].data.decoder is not None
    assert (results[0].data.train_split, results[0].data.train_images, results[0].data.test_images) == ("trainval", 1000, 300)
    assert results[0].metrics == results[1].metrics == results[2].metrics
    # train, val and test: on disk even what is read once, since other runs will read it too
    assert len(list((tmp_path / "data/cache").glob("vtab_eurosat-*.arrow"))) == 3
