"""The original files of each builder: where they are served, under which name, how large, with which SHA-256.

Sizes and hashes are those that TFDS 4.9.10 records, so both routes start from the same bytes.
"""

from data_prep.download import RemoteFile
from data_prep.fgvc.facts import FLOWERS_IMAGES, FLOWERS_LISTS

_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_DTD = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/"
_PETS = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"
_CAMELYON = "https://zenodo.org/record/2546921/files/"
_SMALLNORB = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"
_KITTI = "https://s3.eu-central-1.amazonaws.com/avg-kitti/"
# The first home's certificate has expired; this is the same archive, byte for byte.
_EUROSAT = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"
_KAGGLE = "https://storage.googleapis.com/kaggle-forum-message-attachments/90528/2877/"
_CLEVR = "https://dl.fbaipublicfiles.com/clevr/"
_DMLAB = "https://storage.googleapis.com/dmlab-vtab/"
_DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5"
_TRAINING, _TESTING = "5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing"


def _at(base: str, name: str, size: int, sha256: str) -> RemoteFile:
    return RemoteFile(base + name, name, size, sha256)


def _patches(part: str, size: int, sha256: str) -> RemoteFile:
    return _at(_CAMELYON, f"camelyonpatch_level_2_split_{part}.h5.gz", size, sha256)


def _norb(examples: str, part: str, size: int, sha256: str) -> RemoteFile:
    return _at(_SMALLNORB, f"smallnorb-{examples}-{part}.mat.gz", size, sha256)


FILES: dict[str, list[RemoteFile]] = {
    "cifar100": [
        _at(_CIFAR, "cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec")
    ],
    "svhn_cropped": [
        _at(_SVHN, "train_32x32.mat", 182040794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        _at(_SVHN, "test_32x32.mat", 64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    ],
    "dtd": [_at(_DTD, "dtd-r1.0.1.tar.gz", 625239812, "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205")],
    "oxford_flowers102": [FLOWERS_IMAGES, *FLOWERS_LISTS],
    "oxford_iiit_pet": [
        _at(_PETS, "images.tar.gz", 791918971, "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"),
        _at(_PETS, "annotations.tar.gz", 19173078, "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"),
    ],
    "eurosat": [_at(_EUROSAT, "EuroSAT.zip", 94280567, "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd")],
    "resisc45": [],
    "patch_camelyon": [
        _patches("train_x", 6421353462, "d619e741468a7ab35c7e4a75e6821b7e7e6c9411705d45708f2a0efc8960656c"),
        _patches("train_y", 21378, "b74126d2c01b20d3661f9b46765d29cf4e4fba6faba29c8e0d09d406331ab75a"),
        _patches("valid_x", 805965320, "f82ee1670d027b4ec388048d9eabc2186b77c009655dae76d624c0ecb053ccb2"),
        _patches("valid_y", 3038, "ce1ae30f08feb468447971cfd0472e7becd0ad96d877c64120c72571439ae48c"),
        _patches("test_x", 800875929, "79174c2201ad521602a5888be8f36ee10875f37403dd3f2086caf2182ef87245"),
        _patches("test_y", 3040, "0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef"),
    ],
    "diabetic_retinopathy_detection": [
        _at(_KAGGLE, "retinopathy_solution.csv", 1181257, "a6af3d66804e81887da89b9261bcfb7da4f5bacedb070f1b5db83fa879ab60c9")
    ],
    "clevr": [_at(_CLEVR, "CLEVR_v1.0.zip", 19021600724, "5cd61cf1096ed20944df93c9adb31e74d189b8459a94f54ba00090e5c59936d1")],
    "dmlab": [_at(_DMLAB, "dmlab.tar.gz", 3017022789, "638b18fa69a5d61bbc310cd0b87ac603a39f41de0fdb07b6e77de274a24480a4")],
    "dsprites": [
        RemoteFile(
            f"https://github.com/deepmind/dsprites-dataset/blob/master/{_DSPRITES}?raw=true",
            _DSPRITES,
            28024106,
            "729fa22e884c9c500e1f17415d580746b4c5894fbbb780a1319bbcfa39a745bb",
        )
    ],
    "smallnorb": [
        _norb(_TRAINING, "dat", 131896188, "5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873"),
        _norb(_TRAINING, "cat", 348, "2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa"),
        _norb(_TRAINING, "info", 71052, "de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32"),
        _norb(_TESTING, "dat", 130799817, "cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474"),
        _norb(_TESTING, "cat", 347, "ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff"),
        _norb(_TESTING, "info", 10428, "16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2"),
    ],
    "kitti": [
        _at(_KITTI, "data_object_image_2.zip", 12569945557, "351c5a2aa0cd9238b50174a3a62b846bc5855da256b82a196431d60ff8d43617"),
        _at(_KITTI, "data_object_label_2.zip", 5601213, "4efc76220d867e1c31bb980bbf8cbc02599f02a9cb4350effa98dbb04aaed880"),
        _at(_KITTI, "devkit_object.zip", 63794, "ce0b76b69c0c5f89690a0d65b7302bbbdb962a0c7e8aba6efc7050d1b04b4cf1"),
    ],
}
