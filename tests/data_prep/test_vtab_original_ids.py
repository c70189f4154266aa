"""Files of the official size lead to the benchmark's own examples, by ids and labels that were computed elsewhere."""

import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.vtab.facts import HISTOGRAMS, ID_HASHES
from data_prep.vtab.original import arrays, names, open_original
from data_prep.vtab.original.files import FILES
from data_prep.vtab.records import Origin
from data_prep.vtab.tasks import BUILDERS, TASKS
from tests.data_prep.original_files import DSPRITES, accept_small_files

EXPECTED_IDS = Path(__file__).parents[3] / "shared" / "spec" / "vtab1k_expected_ids.json"
KEYS_IN_JSON = {"svhn_cropped": "svhn"}


def cifar100(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "fine_label_names.txt").write_text("apple\n")
    for name, size in {"train.bin": 50000, "test.bin": 10000}.items():
        with (folder / name).open("wb") as file:
            file.truncate(3074 * size)


def svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train_32x32.mat": 73257, "test_32x32.mat": 26032}
    for name in sizes:
        (folder / name).touch()

    def read_mat(path: Path, *variables: str) -> dict[str, np.ndarray]:
        images = np.broadcast_to(np.uint8(0), (32, 32, 3, sizes[path.name]))
        return {"X": images, "y": np.ones((sizes[path.name], 1), np.uint8)}

    monkeypatch.setattr(arrays, "read_mat", read_mat)


def patch_camelyon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, size in {"train": 262144, "valid": 32768, "test": 32768}.items():
        for axis, shape in {"x": (size, 96, 96, 3), "y": (size, 1, 1, 1)}.items():
            with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_{axis}.h5", "w") as file:
                file.create_dataset(axis, shape, "uint8", chunks=(1024, *shape[1:]))  # holds only zeros, which take no room


def eurosat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(zip(names.EUROSAT, [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000], strict=True))
    with zipfile.ZipFile(folder / "EuroSAT.zip", "w") as archive:
        for name, size in sizes.items():
            for number in range(1, size + 1):
                archive.writestr(f"2750/{name}/{name}_{number}.jpg", b"")


def dsprites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.arange(737280)
    latents = [row * 0, row // 245760, row // 40960 % 6, row // 1024 % 40, row // 32 % 32, row % 32]
    with h5py.File(folder / DSPRITES, "w") as file:
        file.create_dataset("imgs", (737280, 64, 64), "uint8", chunks=(23040, 2, 4))
        file.create_dataset("latents/classes", data=np.stack(latents, axis=1).astype(np.uint8))


WRITERS = {
    "cifar100": cifar100,
    "svhn_cropped": svhn,
    "patch_camelyon": patch_camelyon,
    "eurosat": eurosat,
    "dsprites": dsprites,
}


@pytest.fixture(params=sorted(WRITERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def origin(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    accept_small_files(monkeypatch)
    WRITERS[name](tmp_path, monkeypatch)
    return open_original(BUILDERS[name], tmp_path, tmp_path / "downloads")


def test_ids_of_every_split(name: str, origin: Origin) -> None:
    task = next(task for task in TASKS.values() if task.builder.name == name)
    chosen = {}
    for split, cut in task.cuts.items():
        keys = origin.keys(cut.split)
        assert len(keys) == BUILDERS[name].counts[cut.split]
        chosen[split] = [keys[position] for position in cut.positions(len(keys))]
        ids = "\n".join(str(key) for key in chosen[split])
        assert hashlib.sha256(ids.encode()).hexdigest() == ID_HASHES[name][split]
    if not EXPECTED_IDS.is_file():
        pytest.skip(f"{EXPECTED_IDS.name} is not there to compare the first ids with")
    expected = json.loads(EXPECTED_IDS.read_text())[KEYS_IN_JSON.get(name, name)]
    assert {split: keys[:5] for split, keys in chosen.items()} == {split: expected[f"{split}_first5"] for split in chosen}


@pytest.mark.parametrize("builder", ["dsprites", "eurosat"])
def test_labels_of_the_thousand(builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_small_files(monkeypatch)
    WRITERS[builder](tmp_path, monkeypatch)
    origin = open_original(BUILDERS[builder], tmp_path, tmp_path / "downloads")
    tasks = [task for task in TASKS.values() if task.builder.name == builder]
    size = len(origin.keys("train"))
    records = [
        record for split in ("train800", "val200") for record in origin.records("train", tasks[0].cuts[split].positions(size))
    ]
    for task in tasks:
        counts = Counter(task.label(record.features) for record in records)
        assert [counts[label] for label in range(task.num_classes)] == HISTOGRAMS[task.name]


def test_every_table_of_files_names_a_builder() -> None:
    assert FILES.keys() < BUILDERS.keys()
