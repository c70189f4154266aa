"""What is known of each FGVC dataset: its files with URL, size and SHA-256, its splits, its layout. Facts only.

The archives' checksums stand in public dataset registries; the paper's split lists are those in the authors' repository,
https://github.com/savadikarc/gift at the commit below (Savadikar et al., arXiv 2312.00700).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_prep.download import RemoteFile

_LISTS = "https://raw.githubusercontent.com/savadikarc/gift/f0cb80cb4db413ecd108dd7e74fef27105eb6b97/data"
_CALTECH = "https://data.caltech.edu/records"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
_STANFORD = "http://vision.stanford.edu/aditya86/ImageNetDogs"


@dataclass(frozen=True)
class Archive:
    """An archive that can be downloaded, and the top-level folders in it that are unpacked into the dataset's folder."""

    file: RemoteFile
    folders: tuple[str, ...]


@dataclass(frozen=True)
class HandArchive:
    """An archive that a person must fetch: the names it may have, and the steps up to putting it where it is looked for."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset.

    Attributes:
        name: Its name in ``conf/dataset/``.
        title: Its name in sentences.
        classes: How many there are in train, val and test together.
        paper: Images per split of the paper's lists.
        official: Images per official split; where it has no ``val``, ours is a part of ``train``.
        image_root: What listed paths are relative to, below the dataset's folder.
        images: Where the images come from.
        lists_folder: The folder of the paper's lists in the authors' repository.
        lists: The paper's list of each split.
        extras: Further files, by name: labels, official lists, boxes.
        segmentations: Masks, where the dataset has some.
        missing_boxes: How a person gets bounding boxes that cannot be downloaded; None where they come with the files above.
    """

    name: str
    title: str
    classes: int
    paper: Mapping[str, int]
    official: Mapping[str, int]
    image_root: str
    images: Archive | HandArchive
    lists_folder: str
    lists: Mapping[str, RemoteFile]
    extras: Mapping[str, RemoteFile] = field(default_factory=dict)
    segmentations: Archive | None = None
    missing_boxes: str | None = None


def _lists(folder: str, *sha256: str) -> dict[str, RemoteFile]:
    """The paper's lists, with the SHA-256 of train, val and test."""
    return {
        split: RemoteFile(f"{_LISTS}/{folder}/{split}.json", f"{split}.json", sha256=digest)
        for split, digest in zip(("train", "val", "test"), sha256, strict=True)
    }


def _file(url: str, size: int, sha256: str) -> RemoteFile:
    """The file under the name that its URL ends in."""
    return RemoteFile(url, url.partition("?")[0].rpartition("/")[2], size, sha256)


def _extras(*files: RemoteFile) -> dict[str, RemoteFile]:
    return {file.name: file for file in files}


_CUB = DatasetFacts(
    name="cub",
    title="CUB-200-2011",
    classes=200,
    paper={"train": 5394, "val": 600, "test": 5794},
    official={"train": 5994, "test": 5794},
    image_root="CUB_200_2011/images",
    images=Archive(
        _file(
            f"{_CALTECH}/65de6-vp158/files/CUB_200_2011.tgz?download=1",
            1_150_585_339,
            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        ),
        ("CUB_200_2011",),
    ),
    lists_folder="cub",
    lists=_lists(
        "cub",
        "2c8e8a0e70795ab5a992b51d3ab09aa2621b75bb7b34bb46fef0f910b3261f2d",
        "d2bdc9030fe8682bb8a44fca9d44b7255f641195ac1a77d5f7431ed14d343f81",
        "1fcf560553e94b5e56681a3981d90462de91ab4ba2dd6a2a99e1e3ff71993b6e",
    ),
    segmentations=Archive(
        _file(
            f"{_CALTECH}/w9d68-gec53/files/segmentations.tgz?download=1",
            39_272_883,
            "dc77f6cffea0cbe2e41d4201115c8f29a6320ecb04fffd2444f51b8066e4b84f",
        ),
        ("segmentations",),
    ),
)
_NABIRDS = DatasetFacts(
    name="nabirds",
    title="NABirds",
    classes=555,
    paper={"train": 21536, "val": 2393, "test": 24633},
    official={"train": 23929, "test": 24633},
    image_root="nabirds/images",
    images=HandArchive(
        ("nabirds.tar.gz", "nabirds.tgz", "nabirds.tar"),
        ("nabirds",),
        ("open https://dl.allaboutbirds.org/nabirds and accept the terms of use", "download nabirds.tar.gz"),
    ),
    lists_folder="nabirds",
    lists=_lists(
        "nabirds",
        "3dd8255ee2fdfa21b453585b106bf52bce2245aed5fbef1329f85cbd48f5b1ea",
        "5827a289857766c2e60d77c76190555affacdc9f91cad0a851357721396f514b",
        "ef6e55ec7c5e1b4cad6cabd790c595553e875dd2f7b5938694a328d4b948c69d",
    ),
)
FLOWERS_IMAGES = _file(
    f"{_VGG}/102flowers.tgz", 344_862_509, "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"
)
FLOWERS_LISTS = (
    _file(f"{_VGG}/imagelabels.mat", 502, "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"),
    _file(f"{_VGG}/setid.mat", 14_989, "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
)
_FLOWERS = DatasetFacts(
    name="flowers",
    title="Oxford Flowers 102",
    classes=102,
    paper={"train": 1020, "val": 1020, "test": 6149},
    official={"train": 1020, "val": 1020, "test": 6149},
    image_root=".",
    images=Archive(FLOWERS_IMAGES, ("jpg",)),
    lists_folder="oxfordflowers",
    lists=_lists(
        "oxfordflowers",
        "045ea598b0de30d57a543e04d42f3f4852249fd523503eae10a7d685f91b93d1",
        "bc77a0c0ddbba21338bc481ae9fca5a67a3b3660d0ad6e7829c2e56240bcf985",
        "da9fc987debf0617d5093462b9d18bdce01faf76e4bc5fd66a52c74c94fbd7bf",
    ),
    extras=_extras(*FLOWERS_LISTS),
)
_CARS = DatasetFacts(
    name="cars",
    title="Stanford Cars",
    classes=196,
    paper={"train": 7329, "val": 815, "test": 8041},
    official={"train": 8144, "test": 8041},
    image_root=".",
    images=HandArchive(
        ("archive.zip", "stanford-cars-dataset.zip"),
        ("cars_train", "cars_test"),
        (
            "log in at kaggle.com and open https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset",
            "press Download, then 'Download dataset as zip': archive.zip",
        ),
    ),
    lists_folder="stanfordcars",
    lists=_lists(
        "stanfordcars",
        "abcbb724f857a73aa9b367dd809f04bfdf52324426de15c376abb459cb6784e7",
        "2ec20bb97f1ceb2a92a0073126ff8ca3ed83212661bd1362448acbad59cedd2e",
        "161f18a664fa690cd24538864816bc0fb10854ab92beec17be25c4eef7ffb434",
    ),
    missing_boxes="put devkit/cars_train_annos.mat and devkit/cars_test_annos.mat (from car_devkit.tgz) or "
    "cars_test_annos_withlabels.mat into {folder} and start again",
)
_DOGS = DatasetFacts(
    name="dogs",
    title="Stanford Dogs",
    classes=120,
    paper={"train": 10800, "val": 1200, "test": 8580},
    official={"train": 12000, "test": 8580},
    image_root="Images",
    images=Archive(
        _file(f"{_STANFORD}/images.tar", 793_579_520, "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58"),
        ("Images",),
    ),
    lists_folder="stanforddogs",
    lists=_lists(
        "stanforddogs",
        "d9bfb65dc50f8e164d2b0d5195baf495c2f2fb184e42d9d774dbf90f4f76e836",
        "d9a1ebbbc6299bc80d2570c9171ba1d9ab7c8ff869f6dc54232288a6b49b97c1",
        "aed81b99b13be6ef9196bdb100c66eec0f277bc715bc9f015a2648e3fd9eb42d",
    ),
    extras=_extras(
        _file(f"{_STANFORD}/annotation.tar", 21_852_160, "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd"),
        _file(f"{_STANFORD}/lists.tar", 481_280, "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"),
    ),
)

FACTS = {facts.name: facts for facts in (_CUB, _NABIRDS, _FLOWERS, _CARS, _DOGS)}
