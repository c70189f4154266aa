"""What is known about the benchmark's images from elsewhere, against which an export is checked.

The hashes were computed offline from the keys alone: row numbers, the file numbering, TFDS's split lists. The class counts are
published ones or computed with the hashes; the byte counts are those that TFDS itself records for the datasets it has built.
"""

# builder → split of the task → SHA-256 of the ids, joined by newlines
ID_HASHES: dict[str, dict[str, str]] = {
    "cifar100": {
        "train800": "5b25ee0661c3bc4a0f08116d4015d6f10127fe5ae74ac4fd72ca6f044fc0dd4c",
        "val200": "93377e439662509b3af8a1e05deab26ef04521fc4e3123b9745627c03adf8b15",
        "test": "aa6d3ee41c0a810ee03e281aa17c5d81bbabd0eaa4e514f0304563ef3b08f0d2",
    },
    "svhn_cropped": {
        "train800": "901fe4f6d4f65bc865589bb7c52a3778c3d35755573b0c1850b8499236a9d6de",
        "val200": "36ae944d2e322a4f2d28ad7c0ff0e2a851bd3574ee88d1753f262089f6ea706f",
        "test": "40b99c89fb133426871c32c8a64c60cc31c651052e641f6bc22dcad07b5e6640",
    },
    "patch_camelyon": {
        "train800": "c1122cb7e413b8b3f625651d39d3f49faa66eef4a7a545dc7a68ecd30f56f9dd",
        "val200": "b3998b44bc8423a136fb3dbc4ecd2d3e8d8011f15ba922d83f0ca1615a26a06e",
        "test": "57bf9b06b6104a9fa1ea33294f37a69a6fbed06cd8661e81d45602239b81531a",
    },
    "eurosat": {
        "train800": "7dac90dec1b730631fee7361833db02241d4ed8f0b7a150fd07c65adac0ebb90",
        "val200": "5c9a3ab3702faf2076b229d18dc42459b03651716021c58778b447188aeee7d1",
        "test": "244a530e55bd9aff04b483be85f0dce696ff31267ba2d7008683bb0f0cce0efc",
    },
    "sun397": {
        "train800": "bbfe318c912bf27829cb49d1a32e2cd8c017ff4cd1ed2d6c810c55f7e4633be2",
        "val200": "ed3f4079a4f342a7cb67dc40ca6e4dc88f525012b98c79822afba984580b5aa2",
        "test": "e6ff58577ca493eb2d6d03316452e5e057357a6b210cfea042486c1bd3e3679b",
    },
    "dsprites": {
        "train800": "54130b46ffd225790c81835e4e9bd2e2633ecfe2f2bf81153be3dc4266ea3cbc",
        "val200": "86005e8c04783edc67c31e382b961c77cf7ef9e18a3c4f1a8dfc4f1661e4818e",
        "test": "047f98bb94c6f871024670465fccadf7bf82e15cb5cdf98f0644e6f5ba7991f8",
    },
}

# task → split, or train800val200 for both, → how many classes occur there
CLASS_COUNTS: dict[str, dict[str, int]] = {
    "cifar100": {"val200": 90},
    "caltech101": {"val200": 86},  # of the canonical split only
    "flowers102": {"val200": 90},
    "sun397": {"train800": 309, "val200": 136, "train800val200": 325},
    "eurosat": {"train800": 10, "val200": 10, "train800val200": 10},
    "dsprites_location": {"train800": 16, "val200": 16, "train800val200": 16},
    "dsprites_orientation": {"train800": 16, "val200": 16, "train800val200": 16},
}

# task → images of each class in train800 and val200 together
HISTOGRAMS: dict[str, list[int]] = {
    "eurosat": [107, 116, 119, 96, 95, 58, 92, 118, 94, 105],
    "dsprites_location": [68, 53, 57, 54, 60, 62, 62, 63, 69, 65, 63, 68, 66, 60, 69, 61],
    "dsprites_orientation": [74, 56, 75, 58, 68, 55, 73, 51, 79, 48, 75, 50, 67, 40, 78, 53],
}

# builder → source split → bytes of its examples, for the builders that store the images' files as they are
NUM_BYTES: dict[str, dict[str, int]] = {
    "caltech101": {"train": 44_481_158, "test": 94_837_659},
    "oxford_flowers102": {"train": 43_474_584, "validation": 43_180_278, "test": 260_784_877},
    "eurosat": {"train": 93_851_790},
    "dmlab": {"train": 1_986_861_731, "validation": 684_019_714, "test": 686_878_633},
}

# builder → source split → sizes that are right besides the official one: TFDS 4.9.10 leaves out an image that cannot be decoded
OTHER_COUNTS: dict[str, dict[str, set[int]]] = {"sun397": {"train": {76_127}}}

# builders whose keys are not known to differ between the source splits
LOCAL_KEYS = frozenset({"dmlab"})
