"""Small datasets in the original files' formats, written by the formats' own libraries, with what is in them."""

import gzip
import io
import json
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import google_crc32c
import h5py
import numpy as np
import scipy.io
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.vtab.original import names
from data_prep.vtab.records import Key
from tests.data_prep.archive_trees import tar_of, zip_of
from tests.data_prep.vtab_origins import encode

# split → key → (stored image: a file's bytes, or the pixels of an array's row; features that label rules read)
Rows: TypeAlias = dict[Key, tuple[bytes | np.ndarray, dict[str, Any]]]
Content: TypeAlias = dict[str, Rows]

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


def cifar100(folder: Path) -> Content:
    rng = np.random.default_rng(1)
    content: Content = {}
    members = {
        f"cifar-100-binary/{kind}_label_names.txt": "".join(f"{kind} {index}\n" for index in range(count)).encode()
        for kind, count in {"fine": 100, "coarse": 20}.items()
    }
    for split, size in {"train": 40, "test": 15}.items():
        images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
        coarse, fine = rng.integers(0, 20, size), rng.integers(0, 100, size)
        planes = [images[..., colour].reshape(size, -1) for colour in range(3)]
        members[f"cifar-100-binary/{split}.bin"] = np.column_stack([coarse, fine, *planes]).astype(np.uint8).tobytes()
        content[split] = {i: (images[i], {"label": int(fine[i])}) for i in range(size)}
    (folder / "cifar-100-binary.tar.gz").write_bytes(tar_of(members))
    return content


def svhn_cropped(folder: Path) -> Content:
    rng = np.random.default_rng(2)
    content: Content = {}
    for split, size in {"train": 30, "test": 12, "extra": 2}.items():
        images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
        digits = np.append(rng.integers(1, 11, size - 1), 10)
        arrays = {"X": np.moveaxis(images, 0, -1), "y": digits[:, None].astype(np.uint8)}
        scipy.io.savemat(folder / f"{split}_32x32.mat", arrays, do_compression=True)
        content[split] = {i: (images[i], {"label": {10: 0}.get(digits[i], int(digits[i]))}) for i in range(size)}
    del content["extra"]  # no task reads it
    return content


def dtd(folder: Path) -> Content:
    labels = {"banded": 0, "blotchy": 1, "polka-dotted": 30, "zigzagged": 46}
    members, content = {}, {}
    for number, (part, split) in enumerate({"train": "train", "val": "validation", "test": "test"}.items()):
        rows = content[split] = {}
        for name, index in product(labels, (2, 5, 7)):
            image = picture(1000 * number + len(rows))
            rows[f"{name}/{name}_{100 * number + index:04d}.jpg"] = (image, {"label": labels[name]})
        members |= {f"dtd/images/{name}": image for name, (image, _) in rows.items()}
        members[f"dtd/labels/{part}1.txt"] = "".join(f"{name}\n" for name in rows).encode()
        members[f"dtd/labels/{part}2.txt"] = b"banded/banded_0002.jpg\n"  # another fold
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(tar_of(members, "w"))  # the real one is not compressed either
    return content


def oxford_flowers102(folder: Path) -> Content:
    rng = np.random.default_rng(3)
    labels = np.append(rng.integers(1, 103, 38), [1, 102])  # from 1
    images = {number: picture(number) for number in range(1, 41)}
    order = rng.permutation(np.arange(1, 41))
    parts = {"trnid": order[:12], "valid": order[12:24], "tstid": order[24:]}
    (folder / "102flowers.tgz").write_bytes(tar_of({f"jpg/image_{number:05d}.jpg": data for number, data in images.items()}))
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    scipy.io.savemat(folder / "setid.mat", {part: numbers[None].astype(np.uint16) for part, numbers in parts.items()})
    return {
        split: {f"image_{i:05d}.jpg": (images[i], {"label": int(labels[i - 1]) - 1}) for i in parts[part].tolist()}
        for split, part in {"train": "trnid", "validation": "valid", "test": "tstid"}.items()
    }


def oxford_iiit_pet(folder: Path) -> Content:
    breeds = {"Abyssinian": 1, "american_bulldog": 2, "yorkshire_terrier": 37}
    content: Content = {"train": {}, "test": {}}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    masks = {}
    for number, (split, name, index) in enumerate(product(content, breeds, (1, 2, 10))):
        image = f"{name}_{index + 100 * (split == 'test')}"
        content[split][f"{image}.jpg"] = (picture(number), {"label": breeds[name] - 1})
        lines[split].append(f"{image} {breeds[name]} {1 if name[0].isupper() else 2} {index}\n")
        masks[f"annotations/trimaps/{image}.png"] = picture(number, "PNG", (12, 16))
    names = {"train": "trainval", "test": "test"}
    lists = {f"annotations/{names[split]}.txt": "".join(rows).encode() for split, rows in lines.items()}
    images = {f"images/{key}": image for rows in content.values() for key, (image, _) in rows.items()}
    (folder / "annotations.tar.gz").write_bytes(tar_of({**lists, **masks}))
    (folder / "images.tar.gz").write_bytes(tar_of({**images, "images/Abyssinian_101.mat": b"stray"}, "w"))
    return content


def eurosat(folder: Path) -> Content:
    members, rows = {}, {}
    for (label, name), index in product(enumerate(names.EUROSAT), (1, 2, 10)):
        image = members[f"2750/{name}/{name}_{index}.jpg"] = picture(10 * label + index, shape=(64, 64, 3))
        rows[f"{name}_{name}_{index}.jpg"] = (image, {"label": label})
    (folder / "EuroSAT.zip").write_bytes(zip_of(members))
    return {"train": rows}


def resisc45(folder: Path) -> Content:
    """Unpacked by hand: the archive is a RAR."""
    rows: Rows = {}
    for label, name in enumerate(names.RESISC45):
        (folder / "NWPU-RESISC45" / name).mkdir(parents=True)
        for index in (1, 700):
            image = picture(1000 * label + index, shape=(16, 16, 3))
            (folder / "NWPU-RESISC45" / name / f"{name}_{index:03d}.jpg").write_bytes(image)
            rows[f"{name}_{name}_{index:03d}.jpg"] = (image, {"label": label})
    return {"train": rows}


def patch_camelyon(folder: Path) -> Content:
    rng = np.random.default_rng(4)
    content: Content = {}
    for part, split, size in [("train", "train", 150), ("valid", "validation", 9), ("test", "test", 8)]:
        images, labels = rng.integers(0, 256, (size, 96, 96, 3), np.uint8), rng.integers(0, 2, (size, 1, 1, 1), np.uint8)
        for axis, array in {"x": images, "y": labels}.items():
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                file.create_dataset(axis, data=array, chunks=(40, 96, 48, 3) if split == "train" and axis == "x" else None)
            (folder / f"camelyonpatch_level_2_split_{part}_{axis}.h5.gz").write_bytes(gzip.compress(buffer.getvalue(), 1))
        content[split] = {f"{part}_{i}": (images[i], {"label": int(labels[i, 0, 0, 0])}) for i in range(size)}
    return content


def clevr(folder: Path) -> Content:
    rng = np.random.default_rng(5)
    content: Content = {}
    members: dict[str, bytes] = {}
    for part, split, size in [("train", "train", 14), ("val", "validation", 9), ("test", "test", 3)]:
        rows, scenes, questions = {}, [], []
        for index in range(size):
            name = f"CLEVR_{part}_{index:06d}.png"
            depths = rng.choice([7.5, 8.0, 8.5, 8.500000001, 9.2, 10.0, 11.25], 3 + index % 8)
            coords = np.column_stack([rng.integers(0, 300, (len(depths), 2)), depths]).tolist()
            image = members[f"CLEVR_v1.0/images/{part}/{name}"] = picture(index, "PNG", (20, 30, 3))
            rows[name] = (image, {"objects": {"pixel_coords": np.array(coords, np.float32)}})
            other = {"color": "red", "material": "metal", "shape": "cube", "size": "small", "rotation": 1.5}
            objects = [{**other, "3d_coords": [1, 2, 3], "pixel_coords": place} for place in coords]
            scene = {"image_filename": name, "image_index": index, "objects": objects}
            scenes.append({**scene, "relationships": {"left": [[1], []]}})
            questions.append({"image_filename": name, "question": "How many?", "answer": "3"})
        members[f"CLEVR_v1.0/questions/CLEVR_{part}_questions.json"] = json.dumps({"questions": questions}).encode()
        if split != "test":  # published without scenes; no task reads it
            members[f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json"] = json.dumps({"scenes": scenes}).encode()
            content[split] = rows
    (folder / "CLEVR_v1.0.zip").write_bytes(zip_of(members))
    return content


KITTI_TYPES = {"Car": 0, "Van": 1, "Truck": 2, "Pedestrian": 3, "Person_sitting": 4, "Cyclist": 5, "Tram": 6, "Misc": 7}


def kitti(folder: Path) -> Content:
    """60 images of 25 videos; which video is in which split is computed by TFDS's steps on numpy's global generator."""
    rng = np.random.default_rng(6)
    videos = [f"2011_09_26_drive_{number:04d}_sync" for number in rng.permutation(25)]
    mapping = [f"2011_09_26 {videos[line % 25]} {line:010d}" for line in range(60)]
    lines = rng.permutation(60)
    images, labels, rows = {}, {}, {}
    for number in range(60):
        images[f"training/image_2/{number:06d}.png"] = picture(number, "PNG", (10, 33, 3))
        images[f"testing/image_2/{number:06d}.png"] = picture(1000 + number, "PNG")
        text, types, places = "", [], []
        for kind in rng.choice([*KITTI_TYPES, "DontCare", "DontCare"], int(rng.integers(0, 6))).tolist():
            place = [-1000.0] * 3 if kind == "DontCare" else [1.5, -2.25, float(rng.choice([7.99, 8.0, 8.01, 20.0, 21.5]))]
            text += f"{kind} 0.00 0 -1.57 10.00 2.00 30.00 9.00 1.50 1.60 4.00 {' '.join(map(str, place))} -1.62\n"
            if kind != "DontCare":
                types.append(KITTI_TYPES[kind])
                places.append(place)
        labels[f"training/label_2/{number:06d}.txt"] = text.encode()
        objects = {"type": np.array(types, int), "location": np.array(places, np.float32).reshape(-1, 3)}
        rows[number] = (images[f"training/image_2/{number:06d}.png"], {"objects": objects})
    (folder / "data_object_image_2.zip").write_bytes(zip_of(images))
    (folder / "data_object_label_2.zip").write_bytes(zip_of(labels))
    kit = {"mapping/train_rand.txt": ",".join(str(line + 1) for line in lines).encode(), "readme.txt": b"devkit"}
    (folder / "devkit_object.zip").write_bytes(zip_of({**kit, "mapping/train_mapping.txt": "\n".join(mapping).encode()}))
    video_of = [videos[line % 25] for line in lines]
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(123)  # noqa: NPY002
    test = list(np.random.choice(sorted(videos), 2, replace=False))  # noqa: NPY002
    validation = list(np.random.choice([video for video in sorted(videos) if video not in test], 2, replace=False))  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    content: Content = {"train": {}, "validation": {}, "test": {}}
    for number, row in rows.items():
        split = "test" if video_of[number] in test else "validation" if video_of[number] in validation else "train"
        content[split][f"{number:06d}.png"] = row
    return content


def dsprites(folder: Path) -> Content:
    rng, size = np.random.default_rng(7), 330
    images = rng.integers(0, 2, (size, 64, 64), np.uint8)
    classes = np.stack([rng.integers(0, count, size) for count in (1, 3, 6, 40, 32, 32)], axis=1)
    with h5py.File(folder / DSPRITES, "w") as file:
        file.create_dataset("imgs", data=images, chunks=(100, 8, 16), compression="gzip")
        file.create_dataset("latents/classes", data=classes)
        file.create_dataset("latents/values", data=classes / 40)
    names = ["label_shape", "label_scale", "label_orientation", "label_x_position", "label_y_position"]
    return {"train": {i: (images[i], dict(zip(names, classes[i, 1:].tolist(), strict=True))) for i in range(size)}}


def binary_matrix(array: np.ndarray) -> bytes:
    """The format of https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/."""
    magic = {"uint8": b"\x55\x4c\x3d\x1e", "int32": b"\x54\x4c\x3d\x1e"}[array.dtype.name]
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return magic + struct.pack(f"<i{len(sizes)}i", array.ndim, *sizes) + array.tobytes()


def smallnorb(folder: Path) -> Content:
    rng = np.random.default_rng(8)
    content: Content = {}
    for prefix, split, size in [(NORB_TRAIN, "train", 25), (NORB_TEST, "test", 21)]:
        pairs = rng.integers(0, 256, (size, 2, 96, 96), np.uint8)
        category = rng.integers(0, 5, size, np.int32)
        info = np.stack([rng.integers(0, count, size) for count in (10, 9, 18, 6)], axis=1).astype(np.int32)
        content[split] = {}
        for i in range(size):
            elevation, azimuth, lighting = info[i, 1:].tolist()
            features = {"label_elevation": elevation, "label_azimuth": azimuth, "label_lighting": lighting}
            content[split][i] = (pairs[i, 0], {**features, "label_category": int(category[i])})
        info[:, 2] *= 2  # the files hold 0, 2, …, 34
        for part, array in {"dat": pairs, "cat": category, "info": info}.items():
            (folder / f"{prefix}-{part}.mat.gz").write_bytes(gzip.compress(binary_matrix(array), 1))
    return content


def eye(number: int) -> bytes:
    """A bright disc with structure on black, as a JPEG."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: (height := 120 + 10 * number), : (width := 170)]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (50 + 4 * number) ** 2
    pixels = disc[..., None] * rng.integers(60, 220, (height, width, 3))
    return encode(pixels.astype(np.uint8), "JPEG")


def diabetic_retinopathy_detection(folder: Path) -> Content:
    """The images as put there by hand; what becomes of them is tested apart."""
    rows = {"train": ["10_left", "10_right", "13_left"], "validation": ["1_left", "2_right"], "test": ["1_right", "2_left"]}
    tables = {"train": "image,level\n", "test": "image,level,Usage\n"}
    parts = {"train": ("train", ""), "validation": ("test", ",Public"), "test": ("test", ",Private")}
    content: Content = {split: {} for split in rows}
    for number, (split, name) in enumerate((split, name) for split, keys in rows.items() for name in keys):
        (part, usage), data, level = parts[split], eye(number), number % 5
        (folder / part).mkdir(exist_ok=True)
        (folder / part / f"{name}.jpeg").write_bytes(data)
        content[split][name] = (data, {"label": level})
        tables[part] += f"{name},{level}{usage}\n"
    (folder / "sample").mkdir()
    (folder / "sample" / "10_left.jpeg").write_bytes(eye(0))  # TFDS has a split of it, which no task reads
    (folder / "trainLabels.csv").write_text(tables["train"])
    (folder / "retinopathy_solution.csv").write_text(tables["test"])
    return content


def dmlab(folder: Path) -> Content:
    content: Content = {}
    members: dict[str, bytes] = {}
    for offset, (split, size) in enumerate({"train": 13, "validation": 7, "test": 6}.items()):
        content[split] = {}
        shards: dict[str, bytes] = {f"dmlab-{split}.tfrecord-{shard:05d}-of-00002": b"" for shard in range(2)}
        for index in range(size):
            key, image, label = f"{split}_{index}.png", picture(100 * offset + index, shape=(36, 48, 3)), index % 6
            example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["filename"].bytes_list.value.append(key.encode())
            example.features.feature["label"].int64_list.value.append(label)
            shards[list(shards)[index % 2]] += framed(example.SerializeToString())
            content[split][key] = (image, {"label": label})
        members |= shards
    (folder / "dmlab.tar.gz").write_bytes(tar_of(members))
    return content


ARRAYS = [cifar100, svhn_cropped, patch_camelyon, dsprites, smallnorb]
TREES = [dtd, oxford_flowers102, oxford_iiit_pet, eurosat, resisc45, diabetic_retinopathy_detection]
OTHERS = [clevr, kitti, dmlab]
WRITERS: dict[str, Callable[[Path], Content]] = {write.__name__: write for write in ARRAYS + TREES + OTHERS}
