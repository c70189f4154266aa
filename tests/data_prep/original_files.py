"""Small datasets in the original files' formats, written by the formats' own libraries."""

import gzip
import io
import json
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
import scipy.io
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.vtab.original import names, open_original
from data_prep.vtab.tasks import BUILDERS
from tests.data.conftest import encode
from tests.data_prep.archive_trees import tar_of, zip_of

NORB_TRAIN, NORB_TEST = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5"


def picture(number: int, kind: str = "JPEG", shape: tuple[int, ...] = (12, 16, 3)) -> bytes:
    """An encoded random image."""
    return encode(np.random.default_rng(number).integers(0, 256, shape, np.uint8), kind)


def framed(payload: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def _masked(data: bytes) -> bytes:
    checksum = google_crc32c.value(data)
    return struct.pack("<I", ((checksum >> 15) + (checksum << 17) + 0xA282EAD8) % 2**32)


def read_all(name: str, folder: Path | None, downloads: Path) -> dict[str, list[dict[str, Any]]]:
    """Key, image and features of every record, by split."""
    origin = open_original(BUILDERS[name], folder, downloads)
    return {
        split: [vars(record) for record in origin.records(split, range(len(origin.keys(split))))]
        for split in BUILDERS[name].counts
    }


def cifar100(folder: Path) -> None:
    rng = np.random.default_rng(1)
    members = {
        f"cifar-100-binary/{kind}_label_names.txt": "".join(f"{kind} {index}\n" for index in range(count)).encode()
        for kind, count in {"fine": 100, "coarse": 20}.items()
    }
    for split, size in {"train": 40, "test": 15}.items():
        rows = [rng.integers(0, 20, size), rng.integers(0, 100, size), rng.integers(0, 256, (size, 3 * 32 * 32))]
        members[f"cifar-100-binary/{split}.bin"] = np.column_stack(rows).astype(np.uint8).tobytes()
    (folder / "cifar-100-binary.tar.gz").write_bytes(tar_of(members))


def svhn_cropped(folder: Path) -> None:
    rng = np.random.default_rng(2)
    for split, size in {"train": 30, "test": 12, "extra": 2}.items():  # no task reads extra
        digits = np.append(rng.integers(1, 11, size - 1), 10)
        arrays = {"X": rng.integers(0, 256, (32, 32, 3, size), np.uint8), "y": digits[:, None].astype(np.uint8)}
        scipy.io.savemat(folder / f"{split}_32x32.mat", arrays, do_compression=True)


def dtd(folder: Path) -> None:
    members = {}
    for number, part in enumerate(("train", "val", "test")):
        listed = [
            f"{name}/{name}_{100 * number + i:04d}.jpg"
            for name in ("banded", "blotchy", "polka-dotted", "zigzagged")
            for i in (2, 5, 7)
        ]
        members |= {f"dtd/images/{name}": picture(1000 * number + row) for row, name in enumerate(listed)}
        members[f"dtd/labels/{part}1.txt"] = "".join(f"{name}\n" for name in listed).encode()
        members[f"dtd/labels/{part}2.txt"] = b"banded/banded_0002.jpg\n"  # another fold
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(tar_of(members, "w"))  # the real one is not compressed either


def oxford_flowers102(folder: Path) -> None:
    rng = np.random.default_rng(3)
    labels = np.append(rng.integers(1, 103, 38), [1, 102])  # from 1
    parts = dict(zip(("trnid", "valid", "tstid"), np.split(rng.permutation(np.arange(1, 41)), [12, 24]), strict=True))
    (folder / "102flowers.tgz").write_bytes(tar_of({f"jpg/image_{number:05d}.jpg": picture(number) for number in range(1, 41)}))
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    scipy.io.savemat(folder / "setid.mat", {part: numbers[None].astype(np.uint16) for part, numbers in parts.items()})


def oxford_iiit_pet(folder: Path) -> None:
    breeds = {"Abyssinian": 1, "american_bulldog": 2, "yorkshire_terrier": 37}
    images, masks, lists = {}, {}, {}
    for start, part in {0: "trainval", 100: "test"}.items():
        lines = []
        for name, index in product(breeds, (1, 2, 10)):
            image = f"{name}_{index + start}"
            images[f"images/{image}.jpg"] = picture(len(images))
            masks[f"annotations/trimaps/{image}.png"] = picture(len(masks), "PNG", (12, 16))
            lines.append(f"{image} {breeds[name]} {1 if name[0].isupper() else 2} {index}\n")
        lists[f"annotations/{part}.txt"] = "".join(lines).encode()
    (folder / "annotations.tar.gz").write_bytes(tar_of({**lists, **masks}))
    (folder / "images.tar.gz").write_bytes(tar_of({**images, "images/Abyssinian_101.mat": b"stray"}, "w"))


def eurosat(folder: Path) -> None:
    classes = product(enumerate(names.EUROSAT), (1, 2, 10))
    pictures = {f"2750/{name}/{name}_{i}.jpg": picture(10 * label + i, shape=(64, 64, 3)) for (label, name), i in classes}
    (folder / "EuroSAT.zip").write_bytes(zip_of(pictures))


def resisc45(folder: Path) -> None:
    """Unpacked by hand: the archive is a RAR."""
    for label, name in enumerate(names.RESISC45):
        (folder / "NWPU-RESISC45" / name).mkdir(parents=True)
        for index in (1, 700):
            image = picture(1000 * label + index, shape=(16, 16, 3))
            (folder / "NWPU-RESISC45" / name / f"{name}_{index:03d}.jpg").write_bytes(image)


def patch_camelyon(folder: Path) -> None:
    rng = np.random.default_rng(4)
    for part, size in {"train": 150, "valid": 9, "test": 8}.items():
        images, labels = rng.integers(0, 256, (size, 96, 96, 3), np.uint8), rng.integers(0, 2, (size, 1, 1, 1), np.uint8)
        for axis, array in {"x": images, "y": labels}.items():
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                file.create_dataset(axis, data=array, chunks=(40, 96, 48, 3) if part == "train" and axis == "x" else None)
            (folder / f"camelyonpatch_level_2_split_{part}_{axis}.h5.gz").write_bytes(gzip.compress(buffer.getvalue(), 1))


def clevr(folder: Path) -> None:
    rng = np.random.default_rng(5)
    members: dict[str, bytes] = {}
    for part, size in {"train": 14, "val": 9, "test": 3}.items():
        scenes, questions = [], []
        for index in range(size):
            name = f"CLEVR_{part}_{index:06d}.png"
            depths = rng.choice([7.5, 8.0, 8.5, 8.500000001, 9.2, 10.0, 11.25], 3 + index % 8)
            coords = np.column_stack([rng.integers(0, 300, (len(depths), 2)), depths]).tolist()
            members[f"CLEVR_v1.0/images/{part}/{name}"] = picture(index, "PNG", (20, 30, 3))
            other = {"color": "red", "material": "metal", "shape": "cube", "size": "small", "rotation": 1.5}
            objects = [{**other, "3d_coords": [1, 2, 3], "pixel_coords": place} for place in coords]
            scene = {"image_filename": name, "image_index": index, "objects": objects}
            scenes.append({**scene, "relationships": {"left": [[1], []]}})
            questions.append({"image_filename": name, "question": "How many?", "answer": "3"})
        members[f"CLEVR_v1.0/questions/CLEVR_{part}_questions.json"] = json.dumps({"questions": questions}).encode()
        if part != "test":  # published without scenes; no task reads it
            members[f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json"] = json.dumps({"scenes": scenes}).encode()
    (folder / "CLEVR_v1.0.zip").write_bytes(zip_of(members))


KITTI_TYPES = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]


def kitti(folder: Path) -> None:
    """60 images of 25 videos."""
    rng = np.random.default_rng(6)
    videos = [f"2011_09_26_drive_{number:04d}_sync" for number in rng.permutation(25)]
    mapping = [f"2011_09_26 {videos[line % 25]} {line:010d}" for line in range(60)]
    lines = rng.permutation(60)
    images, labels = {}, {}
    for number in range(60):
        images[f"training/image_2/{number:06d}.png"] = picture(number, "PNG", (10, 33, 3))
        images[f"testing/image_2/{number:06d}.png"] = picture(1000 + number, "PNG")
        text = ""
        for kind in rng.choice([*KITTI_TYPES, "DontCare", "DontCare"], int(rng.integers(0, 6))).tolist():
            place = [-1000.0] * 3 if kind == "DontCare" else [1.5, -2.25, float(rng.choice([7.99, 8.0, 8.01, 20.0, 21.5]))]
            text += f"{kind} 0.00 0 -1.57 10.00 2.00 30.00 9.00 1.50 1.60 4.00 {' '.join(map(str, place))} -1.62\n"
        labels[f"training/label_2/{number:06d}.txt"] = text.encode()
    (folder / "data_object_image_2.zip").write_bytes(zip_of(images))
    (folder / "data_object_label_2.zip").write_bytes(zip_of(labels))
    kit = {"mapping/train_rand.txt": ",".join(str(line + 1) for line in lines).encode(), "readme.txt": b"devkit"}
    (folder / "devkit_object.zip").write_bytes(zip_of({**kit, "mapping/train_mapping.txt": "\n".join(mapping).encode()}))


def dsprites(folder: Path) -> None:
    rng, size = np.random.default_rng(7), 330
    images = rng.integers(0, 2, (size, 64, 64), np.uint8)
    classes = np.stack([rng.integers(0, count, size) for count in (1, 3, 6, 40, 32, 32)], axis=1)
    with h5py.File(folder / DSPRITES, "w") as file:
        file.create_dataset("imgs", data=images, chunks=(100, 8, 16), compression="gzip")
        file.create_dataset("latents/classes", data=classes)
        file.create_dataset("latents/values", data=classes / 40)


def binary_matrix(array: np.ndarray) -> bytes:
    """The format of https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/."""
    magic = {"uint8": b"\x55\x4c\x3d\x1e", "int32": b"\x54\x4c\x3d\x1e"}[array.dtype.name]
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return magic + struct.pack(f"<i{len(sizes)}i", array.ndim, *sizes) + array.tobytes()


def smallnorb(folder: Path) -> None:
    rng = np.random.default_rng(8)
    for prefix, size in {NORB_TRAIN: 25, NORB_TEST: 21}.items():
        pairs = rng.integers(0, 256, (size, 2, 96, 96), np.uint8)
        category = rng.integers(0, 5, size, np.int32)
        info = np.stack([rng.integers(0, count, size) for count in (10, 9, 18, 6)], axis=1).astype(np.int32)
        info[:, 2] *= 2  # the files hold 0, 2, …, 34
        for part, array in {"dat": pairs, "cat": category, "info": info}.items():
            (folder / f"{prefix}-{part}.mat.gz").write_bytes(gzip.compress(binary_matrix(array), 1))


def eye(number: int) -> bytes:
    """A bright disc with structure on black, as a JPEG."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: (height := 120 + 10 * number), : (width := 170)]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (50 + 4 * number) ** 2
    pixels = disc[..., None] * rng.integers(60, 220, (height, width, 3))
    return encode(pixels.astype(np.uint8), "JPEG")


def diabetic_retinopathy_detection(folder: Path) -> None:
    """The images as put there by hand."""
    rows = {",Public": ["1_left", "2_right"], ",Private": ["1_right", "2_left"], "": ["10_left", "10_right", "13_left"]}
    tables = {"train": "image,level\n", "test": "image,level,Usage\n"}
    for number, (usage, name) in enumerate((usage, name) for usage, keys in rows.items() for name in keys):
        part = "test" if usage else "train"
        (folder / part).mkdir(exist_ok=True)
        (folder / part / f"{name}.jpeg").write_bytes(eye(number))
        tables[part] += f"{name},{number % 5}{usage}\n"
    (folder / "sample").mkdir()
    (folder / "sample" / "10_left.jpeg").write_bytes(eye(0))  # TFDS has a split of it, which no task reads
    (folder / "trainLabels.csv").write_text(tables["train"])
    (folder / "retinopathy_solution.csv").write_text(tables["test"])


def dmlab(folder: Path) -> dict[str, Any]:
    """Returns the examples, by split, with their keys: TFDS's builder needs TensorFlow to read them."""
    examples: dict[str, Any] = {}
    members: dict[str, bytes] = {}
    for offset, (split, size) in enumerate({"train": 13, "validation": 7, "test": 6}.items()):
        examples[split] = []
        shards: dict[str, bytes] = {f"dmlab-{split}.tfrecord-{shard:05d}-of-00002": b"" for shard in range(2)}
        for index in range(size):
            key, image, label = f"{split}_{index}.png", picture(100 * offset + index, shape=(36, 48, 3)), index % 6
            example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["filename"].bytes_list.value.append(key.encode())
            example.features.feature["label"].int64_list.value.append(label)
            shards[list(shards)[index % 2]] += framed(example.SerializeToString())
            examples[split].append((key, {"filename": key, "image": image, "label": label}))
        members |= shards
    (folder / "dmlab.tar.gz").write_bytes(tar_of(members))
    return examples


FROM_ARRAYS = [cifar100, svhn_cropped, patch_camelyon, dsprites, smallnorb, dmlab]
FROM_FILES = [dtd, oxford_flowers102, oxford_iiit_pet, eurosat, resisc45, diabetic_retinopathy_detection, clevr, kitti]
WRITERS: dict[str, Callable[[Path], Any]] = {write.__name__: write for write in [*FROM_ARRAYS, *FROM_FILES]}
