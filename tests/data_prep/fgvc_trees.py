"""Small FGVC datasets in the archives' own formats: a few classes, JPEGs of one colour each, and what must come out."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from data_prep.download import RemoteFile
from data_prep.fgvc.facts import FACTS, Archive, DatasetFacts
from tests.data.conftest import encode
from tests.data_prep.archive_trees import tar_of, zip_of
from tests.data_prep.download_case import sha

TRAIN, VAL, TEST = 8, 2, 3  # images per class; the official train holds the first two

Lists = dict[str, dict[str, Any]]


@dataclass
class Small:
    """One dataset.

    Attributes:
        files: Archives and further files, by name.
        lists: The paper's lists.
        boxes: What must stand in ``boxes.parquet``; ``parts`` likewise.
        colours: The red value of each image.
    """

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    lists: Lists = field(default_factory=dict)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    colours: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, Any]:
        """The class ids of all images."""
        return {path: label for listed in self.lists.values() for path, label in listed.items()}

    @property
    def official(self) -> Lists:
        """Train with val, and test; Flowers has a val of its own."""
        if self.name == "flowers":
            return self.lists
        return {"train": self.lists["train"] | self.lists["val"], "test": self.lists["test"]}

    def list_bytes(self, split: str) -> bytes:
        return json.dumps(self.lists[split]).encode()

    def facts(self, serve: Callable[[str, bytes], str]) -> DatasetFacts:
        """The real facts, with the counts, sizes, checksums and URLs of these files; ``serve(name, body)`` gives a URL."""
        real = FACTS[self.name]

        def remote(file: RemoteFile) -> RemoteFile:
            body = self.files[file.name]
            return RemoteFile(serve(f"{self.name}/{file.name}", body), file.name, len(body), sha(body))

        def archive(real_one: Any) -> Any:
            return replace(real_one, file=remote(real_one.file)) if isinstance(real_one, Archive) else real_one

        bodies = {split: self.list_bytes(split) for split in self.lists}
        return replace(
            real,
            classes=len(set(self.labels.values())),
            paper={split: len(listed) for split, listed in self.lists.items()},
            official={split: len(listed) for split, listed in self.official.items()},
            images=archive(real.images),
            lists={
                split: RemoteFile(serve(f"{self.name}/{split}.json", body), f"{split}.json", sha256=sha(body))
                for split, body in bodies.items()
            },
            extras={name: remote(file) for name, file in real.extras.items()},
            segmentations=archive(real.segmentations),
        )


def jpeg(colour: int) -> bytes:
    return encode(Image.new("RGB", (24, 16), (colour, 0, 0)), "JPEG", quality=95)


def mat_of(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def _text(rows: list[tuple[Any, ...]]) -> bytes:
    return "".join(" ".join(str(value) for value in row) + "\n" for row in rows).encode()


def _draw_images(small: Small, class_ids: list[Any], path_of: Callable[[int, int, str], str]) -> dict[str, bytes]:
    """Fill lists and colours; returns the JPEGs by listed path: ``path_of(class index, running number, split)``."""
    splits = ["train"] * TRAIN + ["val"] * VAL + ["test"] * TEST
    small.lists = {"train": {}, "val": {}, "test": {}}
    for number, (which, split) in enumerate(product(range(len(class_ids)), splits), 1):
        path = path_of(which, number, split)
        small.lists[split][path] = class_ids[which]
        small.colours[path] = number * 5
    return {path: jpeg(colour) for path, colour in small.colours.items()}


def _birds(name: str, top: str, class_ids: list[Any], folders: list[str], image_ids: Callable[[int], str]) -> tuple[Small, Any]:
    """The text files and images of CUB and NABirds, below ``top``."""
    small = Small(name)
    compact = [image_ids(number).replace("-", "") for number in range(len(folders) * (TRAIN + VAL + TEST) + 1)]
    images = _draw_images(small, class_ids, lambda which, number, _: f"{folders[which]}/{compact[number]}.jpg")
    ids = {path: image_ids(number) for number, path in enumerate(images, 1)}
    names = {"1": "back", "2": "left eye"}
    boxes, parts = [], []
    for number, (path, image_id) in enumerate(ids.items()):
        boxes.append((image_id, number + 0.5, 2.0, 10.0, 11.25))
        small.boxes.append({"path": path, "x": number + 0.5, "y": 2.0, "width": 10.0, "height": 11.25})
        for part_id, part in names.items():
            visible = (number + int(part_id)) % 2
            parts.append((image_id, part_id, 3.0 * visible, 1.5 * visible, visible))
            found = {"path": path, "part": part, "x": 3.0 * visible, "y": 1.5 * visible, "visible": bool(visible)}
            small.parts.append(found)
    files = {
        "images.txt": _text([(image_id, path) for path, image_id in ids.items()]),
        "image_class_labels.txt": _text([(ids[path], int(label)) for path, label in small.labels.items()]),
        "train_test_split.txt": _text([(image_id, int(path not in small.lists["test"])) for path, image_id in ids.items()]),
        "bounding_boxes.txt": _text(boxes),
        "parts/parts.txt": _text(list(names.items())),
        "parts/part_locs.txt": _text(parts),
        **{f"images/{path}": body for path, body in images.items()},
    }
    return small, {f"{top}/{file}": body for file, body in files.items()}


def cub() -> Small:
    folders = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    small, members = _birds("cub", "CUB_200_2011", ["001", "002"], folders, str)
    small.files["CUB_200_2011.tgz"] = tar_of({"attributes.txt": b"1 has_bill_shape::curved\n", **members})
    masks = {f"segmentations/{path.replace('.jpg', '.png')}": b"mask" for path in small.colours}
    small.files["segmentations.tgz"] = tar_of(masks)
    return small


def nabirds() -> Small:
    """Its class ids are not contiguous, and val lacks one of them."""

    def uuid(number: int) -> str:
        return f"{number:08x}-21dc-4d0c-bfe1-4cae3c85c829"

    small, members = _birds("nabirds", "nabirds", [9, 295, 1010], ["0009", "0295", "1010"], uuid)
    moved = [path for path, label in small.lists["val"].items() if label == 295]
    small.lists["train"] |= {path: small.lists["val"].pop(path) for path in moved}
    small.files["nabirds.tar.gz"] = tar_of(members)
    return small


def flowers() -> Small:
    small = Small("flowers")
    images = _draw_images(small, [1, 2], lambda _, number, __: f"jpg/image_{number:05d}.jpg")
    numbers = {split: [int(path[-9:-4]) for path in listed] for split, listed in small.lists.items()}
    small.files["102flowers.tgz"] = tar_of(images)
    small.files["imagelabels.mat"] = mat_of(labels=np.array([[small.labels[path] for path in images]], dtype=np.uint8))
    sets = {"trnid": numbers["train"], "valid": numbers["val"], "tstid": numbers["test"]}
    small.files["setid.mat"] = mat_of(**{name: np.array([ids], dtype=np.uint16) for name, ids in sets.items()})
    return small


def dogs() -> Small:
    small = Small("dogs")
    folders = ["n02085620-Chihuahua", "n02105855-Shetland_sheepdog"]
    images = _draw_images(small, [1, 2], lambda which, number, _: f"{folders[which]}/{folders[which][:9]}_{number}.jpg")
    annotations = {}
    for number, path in enumerate(images):
        boxes = [(number, 2, number + 7, 12), *([(1, 1, 4, 9)] if number % 5 == 0 else [])]
        objects = "".join(
            f"<object><name>dog</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{u}</xmax><ymax>{v}</ymax></bndbox></object>"
            for x, y, u, v in boxes
        )
        annotations[f"Annotation/{path.removesuffix('.jpg')}"] = f"<annotation>{objects}</annotation>".encode()
        small.boxes += [{"path": path, "x": x, "y": y, "width": u - x, "height": v - y} for x, y, u, v in boxes]
    lists = {}
    for split, listed in small.official.items():
        files = np.array([[path] for path in listed], dtype=object)
        lists[f"{split}_list.mat"] = mat_of(file_list=files, labels=np.array([[label] for label in listed.values()], np.uint8))
    small.files["images.tar"] = tar_of({f"Images/{path}": body for path, body in images.items()}, "w")
    small.files["annotation.tar"] = tar_of(annotations, "w")
    small.files["lists.tar"] = tar_of(lists, "w")
    return small


def cars() -> Small:
    """Its files number the images of train and of test from 1 each."""
    small = Small("cars")
    folders = {"train": "cars_train", "val": "cars_train", "test": "cars_test"}
    images = _draw_images(small, [1, 2], lambda _, number, split: f"{folders[split]}/{folders[split]}/{number:05d}.jpg")
    small.files["archive.zip"] = zip_of(images)
    kind = np.dtype([(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")])
    for split, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = []
        for path, label in small.official[split].items():
            number = int(path[-9:-4])
            rows.append((number, 3, number + 5, 9, label, path.rpartition("/")[2]))
            small.boxes.append({"path": path, "x": number, "y": 3, "width": 5, "height": 6})
        small.files[file] = mat_of(annotations=np.array([rows], dtype=kind) if rows else [])
    return small


SMALL: dict[str, Callable[[], Small]] = {"cub": cub, "nabirds": nabirds, "flowers": flowers, "cars": cars, "dogs": dogs}
