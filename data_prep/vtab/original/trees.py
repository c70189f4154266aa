"""Builders whose images are JPEG files in folders: DTD, Oxford Flowers 102, Oxford-IIIT Pet, EuroSAT, RESISC45.

Every record holds the file's bytes as they are, as TFDS stores them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_prep.vtab.original import names
from data_prep.vtab.original.arrays import read_mat
from data_prep.vtab.original.origin import Entry, OriginalOrigin, Table, file_table
from data_prep.vtab.original.places import Files, FolderFiles, Place, ZipFiles
from gift_vit.common.errors import ConfigError

_RESISC45 = "NWPU-RESISC45"


def dtd(place: Place) -> OriginalOrigin:
    """DTD, fold 1; the key is ``banded/banded_0002.jpg``, the label its folder."""
    files = FolderFiles(place.unpacked("dtd-r1.0.1.tar.gz", "dtd", "labels/train1.txt"))
    parts = {"train": "train", "validation": "val", "test": "test"}
    tables = {split: partial(_listed_table, files, f"labels/{part}1.txt", files, _dtd_entry) for split, part in parts.items()}
    return OriginalOrigin(place, tables, names.DTD)


def _dtd_entry(line: str, listing: str) -> Entry:
    name, classes = line.partition("/")[0], names.DTD
    if name not in classes:
        known = f"one of the {len(classes)} from {classes[0]} to {classes[-1]}"
        raise ConfigError(f"{listing} names the class {name!r}; expected {known}")
    return Entry(line, f"images/{line}", {"label": classes.index(name)})


def pets(place: Place) -> OriginalOrigin:
    """Oxford-IIIT Pet; the key is ``Abyssinian_1.jpg``, the label the breed's number less 1.

    All files are taken as they are, as in TFDS's version 3.2.0, which the benchmark's reference used. Version 4.0.0 re-encodes
    twelve of them (two with damaged JPEG data, ten PNG or GIF files named .jpg), with other pixels for the same examples.
    """
    lists = FolderFiles(place.unpacked("annotations.tar.gz", "annotations", "trainval.txt"))
    images = FolderFiles(place.unpacked("images.tar.gz", "", "images/*.jpg"))
    parts = {"train": "trainval.txt", "test": "test.txt"}
    tables = {split: partial(_listed_table, lists, listing, images, _pets_entry) for split, listing in parts.items()}
    return OriginalOrigin(place, tables, names.PETS)


def _pets_entry(line: str, listing: str) -> Entry:
    """From ``Abyssinian_1 1 1 1``: image, breed, species, number within the species."""
    words = line.split()
    if len(words) != 4 or not words[1].isdigit():
        raise ConfigError(f"{listing}: got the line {line!r}, expected '<image> <breed> <species> <number>'; unpack it again")
    name = f"{words[0]}.jpg"
    return Entry(name, f"images/{name}", {"label": int(words[1]) - 1})


def _listed_table(lists: Files, listing: str, images: Files, entry: Callable[[str, str], Entry]) -> Table:
    """The images that a list names, a line each; empty lines and comments are passed over."""
    where = lists.where(listing)
    lines = (line.strip() for line in lists.read(listing).decode().splitlines())
    return file_table(images, [entry(line, where) for line in lines if line and not line.startswith("#")], where)


def flowers102(place: Place) -> OriginalOrigin:
    """Oxford Flowers 102; the key is ``image_00001.jpg``, the label the official one less 1."""
    images = FolderFiles(place.unpacked("102flowers.tgz", "", "jpg/image_*.jpg"))
    labels, numbers = place.file("imagelabels.mat"), place.file("setid.mat")
    parts = {"train": "trnid", "validation": "valid", "test": "tstid"}
    tables = {split: partial(_flowers_table, images, labels, numbers, part) for split, part in parts.items()}
    return OriginalOrigin(place, tables, names.FLOWERS102)


def _flowers_table(images: Files, labels_path: Path, parts_path: Path, part: str) -> Table:
    labels, numbers = _row(labels_path, "labels"), _row(parts_path, part)
    entries = []
    for number in numbers:
        name = f"image_{number:05d}.jpg"
        if not 1 <= number <= len(labels):
            raise ConfigError(f"{parts_path} lists {name}, but {labels_path} has {len(labels)} labels; fetch both again")
        entries.append(Entry(name, f"jpg/{name}", {"label": labels[number - 1] - 1}))
    return file_table(images, entries, f"{parts_path} ({part})")


def _row(path: Path, variable: str) -> list[int]:
    """A MATLAB row vector of integers."""
    return [int(value) for value in read_mat(path, variable)[variable].reshape(-1)]


def eurosat(place: Place) -> OriginalOrigin:
    """EuroSAT RGB; the key is ``Forest_Forest_687.jpg``: class, underscore, file name."""
    files = place.zipped("EuroSAT.zip", "2750", names.EUROSAT[0])
    return OriginalOrigin(place, {"train": partial(_class_table, files, names.EUROSAT)}, names.EUROSAT)


def resisc45(place: Place) -> OriginalOrigin:
    """NWPU-RESISC45, put there by hand; the key is ``palace_palace_207.jpg``: class, underscore, file name.

    Accepted: the folder ``NWPU-RESISC45`` with one folder per class, in the folder pointed at or in ``downloads``, or being it;
    the file ``NWPU-RESISC45.zip`` in its place, with that folder or those of the classes at its top.

    Raises:
        ConfigError: If none of them is there, or the class folders are not where they are expected.
    """
    first = names.RESISC45[0]
    roots = (root for base in place.folders for root in (base / _RESISC45, base) if (root / first).is_dir())
    archives = (archive for base in place.folders if (archive := base / f"{_RESISC45}.zip").is_file())
    if root := next(roots, None):
        files, used = FolderFiles(root), f"{_RESISC45}/ (by hand)"
    elif archive := next(archives, None):
        files, used = ZipFiles(archive, _RESISC45), archive.name
        if not files.names(first):
            files = ZipFiles(archive)
    else:
        raise _resisc45_missing(place.folders[0])
    place.used.append(used)
    return OriginalOrigin(place, {"train": partial(_resisc45_table, files)}, names.RESISC45)


def _resisc45_table(files: Files) -> Table:
    table = _class_table(files, names.RESISC45)
    counts = {name: len(files.names(name)) for name in names.RESISC45}
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[least] != counts[most]:
        raise ConfigError(
            f"{files.where(least)} holds {counts[least]} images, but {most} {counts[most]}; "
            "every class has 700: unpack the archive again"
        )
    return table


def _resisc45_missing(base: Path) -> ConfigError:
    nested = next((path.parent for path in base.glob(f"*/*/{names.RESISC45[0]}") if path.is_dir()), None)
    if nested is not None:
        return ConfigError(
            f"the class folders of RESISC45 are nested too deeply in {nested}, expected in {base / _RESISC45}; "
            f"move them there, or point at them with archives={nested}"
        )
    archive = base / f"{_RESISC45}.rar"
    got = f"found {archive}, which has to be unpacked by hand" if archive.is_file() else "it has to be fetched by hand"
    return ConfigError(
        f"RESISC45 is not at {base / _RESISC45}: {got}. Get NWPU-RESISC45.rar (https://gcheng-nwpu.github.io) or its copy at "
        f"https://huggingface.co/datasets/torchgeo/resisc45, unpack it (unar NWPU-RESISC45.rar) so that "
        f"{base / _RESISC45 / names.RESISC45[0]}/airplane_001.jpg exists, or point at its folder with archives=<folder>"
    )


def _class_table(files: Files, classes: list[str]) -> Table:
    """One folder per class, or else a ConfigError; the label is the class's place in ``classes``."""
    entries = []
    for label, name in enumerate(classes):
        images = [image for image in files.names(name) if image.endswith(".jpg")]
        if not images:
            raise ConfigError(
                f"{files.where(name)} holds no .jpg files, expected one folder for each of {len(classes)} classes"
            )
        entries += [Entry(f"{name}_{image}", f"{name}/{image}", {"label": label}) for image in images]
    return file_table(files, entries, files.where(""))
