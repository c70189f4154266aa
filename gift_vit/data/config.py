"""What data is told: the options of every kind of dataset, and how it is loaded. Imports no torch."""

import glob
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from gift_vit.common.checks import Options, at_least, fulfils, matches, one_of, random_seed, split_off
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.common.kinds import Kinds
from gift_vit.data.layout import CLASS_FOLDERS, SPLITS, check_series, is_table, table_files
from gift_vit.data.trees import read_trees

if TYPE_CHECKING:
    from gift_vit.data.base import VisionDataset

BENCHMARKS = ("fgvc", "vtab1k", "mini", "own", "glue", "commonsense")
METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "exact": "exact answers",
}
TASK_METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")  # of one output for each text
SIGNED = ("matthews", "pearson", "spearman")  # may be below zero
OF_NUMBERS = ("pearson", "spearman")  # metrics of labels that are numbers, not classes
COMMONSENSE_SETS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
PUBLISHED = ("fgvc", "vtab1k")  # benchmarks whose pixels stay those that published numbers rest on
RESIZES = ("bilinear", "bicubic", "tf1_bilinear")
CACHES = ("auto", "ram", "disk", "off")
CACHES_OF_FEATURES = ("auto", "on", "off")
JPEG_DECODERS = ("auto", "simplejpeg", "pillow")
_crop_ratio = fulfils(lambda ratio: 0 < ratio <= 1, "a number above 0 and up to 1, or null to squash")
_NAME_TRAIN = "name train, and if there are any val and test"
_folder_name = matches(
    r"[a-z0-9][a-z0-9._-]{0,149}", "lower-case letters, digits and . _ - only, for it names folders; 150 at most, no dot first"
)


def score_name(metric: str, thing: str) -> str:
    """What a score is called in a sentence: a metric of ``dataset.metric``, and accuracy on images is top-1."""
    return "top-1" if (metric, thing) == ("accuracy", "image") else METRIC_NAMES.get(metric, metric)


def colour_of(value: Any) -> tuple[int, int, int] | None:
    """Red, green and blue (0..255) of a colour as people write it: ``white``, ``#rrggbb``, ``[r, g, b]``, a grey level.

    None for ``drop``.

    Raises:
        ValueError: If it is none of these.
    """
    if value == "drop":
        return None
    if isinstance(value, str):
        from PIL import ImageColor

        red, green, blue, *_ = ImageColor.getrgb(value)
        return red, green, blue
    red, green, blue = [value] * 3 if isinstance(value, int) else value
    if not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{value} is no colour")
    return red, green, blue


def _is_colour(value: Any) -> bool:
    try:
        colour_of(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_range(ends: list[float]) -> bool:
    return len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf


@dataclass
class TransformConfig(Options, section="dataset.transform"):
    """From an image of any size to the backbone's square input.

    ``crop_ratio`` None squashes the image to the input size. Otherwise its shorter side is resized to input size over
    ``crop_ratio`` (0.875: 256 for 224) and a square is cropped: at the centre, or in training with ``random_crop`` anywhere.
    ``hflip`` is the probability of a horizontal flip in training. ``resize`` is Pillow's ``bilinear`` or ``bicubic``, or
    ``tf1_bilinear``, with which VTAB-1k's published numbers were made; None takes the backbone weights' own.

    Before that the image is decoded. ``exif`` turns it upright as its EXIF orientation says. ``background`` lies under what is
    transparent, a colour as :func:`colour_of` reads it; ``drop`` leaves alpha out. None is true and white, but for FGVC and
    VTAB-1k, which stay as published: false and ``drop``. ``value_range`` are the values that become black and white in images
    of more than 8 bits; None: the range of the file's format. ``max_pixels`` is the largest image; None: Pillow's limit.
    """

    crop_ratio: Annotated[float | None, _crop_ratio] = 0.875
    random_crop: bool = True
    hflip: Annotated[float, fulfils(lambda chance: 0 <= chance <= 1, "a probability from 0 to 1")] = 0.5
    resize: Annotated[str | None, one_of(RESIZES)] = None
    exif: bool | None = None
    background: Annotated[Any, fulfils(_is_colour, "a colour such as white, '#7f7f7f' or [255,255,255], or drop")] = None
    value_range: Annotated[list[float] | None, fulfils(_is_range, "two finite numbers, the lower first")] = None
    max_pixels: Annotated[int | None, at_least(1)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_crop and self.crop_ratio is None:
            raise ConfigError("dataset.transform.random_crop=true has nothing to crop; give a crop_ratio, or random_crop=false")
        if self.resize == "tf1_bilinear" and self.crop_ratio is not None:
            raise ConfigError("dataset.transform.resize=tf1_bilinear squashes to the input size; give crop_ratio=null with it")

    def shorter_side(self, size: int) -> int | None:
        """Pixels to which the shorter side is resized before ``size`` of them are cropped; None: the image is squashed."""
        return None if self.crop_ratio is None else round(size / self.crop_ratio)


@dataclass
class LoadingConfig(Options, section="trainer"):
    """How images reach training and evaluation; without influence on results but for rounding. Keys of ``trainer``.

    Attributes:
        workers: Processes that decode images, for each process that trains.
        eval_batch_size: Images per batch and process in evaluation.
    """

    workers: Annotated[int, at_least(0)]
    eval_batch_size: Annotated[int, at_least(1)]


@dataclass(frozen=True)
class CacheSettings:
    """Where prepared pixels are kept.

    Attributes:
        mode: ``off``; ``ram``: in memory, for one run; ``disk``: in a file, for all runs; ``auto``: in memory where they are
            few, on disk beyond, and nowhere if the disk has no room.
        folder: The folder of the files.
        workers: Processes that decode while a cache is built.
    """

    mode: str
    folder: Path
    workers: int


@dataclass(kw_only=True)
class DatasetConfig(Options, section="dataset"):
    """What every kind of dataset is told; the options without a default are what a dataset's YAML must say.

    Attributes:
        name: Names the dataset in run folders and tables.
        benchmark: Whose rules of the protocol hold for it.
        transform: From an image to the backbone's input.
        num_classes: None: as found in the data.
        cache: Where decoded images are kept between epochs, as :mod:`gift_vit.data.cache` explains.
        cache_features: ``auto`` and ``on``: the output of a method's frozen first blocks is computed once and kept, where
            training images are not augmented, as :mod:`gift_vit.runs.prefix` explains. ``auto`` does so for methods that are
            given ``blocks``, on a CPU; ``on`` refuses a run where it is not possible.
        check_duplicates: Whether every run looks for pictures that stand in more than one split. That reads the files of equal
            size, which takes long for very large sets.
        prepare: The sentence a person reads when the data is not there.
    """

    thing: ClassVar[str] = "image"  # what an example is called
    name: Annotated[str, _folder_name]
    benchmark: Annotated[str, one_of(BENCHMARKS)] = "own"
    transform: TransformConfig = field(default_factory=TransformConfig)
    num_classes: Annotated[int | None, fulfils(lambda count: count >= 1, "1 or more, or null for what is found")] = None
    cache: Annotated[str, one_of(CACHES)] = "auto"
    cache_features: Annotated[str, one_of(CACHES_OF_FEATURES)] = "auto"
    check_duplicates: bool = True
    prepare: str | None = None

    @property
    def as_published(self) -> bool:
        """Whether images are decoded as those behind published numbers, where ``transform`` does not say otherwise."""
        return self.benchmark in PUBLISHED

    @property
    def scores(self) -> tuple[str, ...]:
        """What runs are scored by, of :data:`METRIC_NAMES`; the first one counts."""
        return ("accuracy",)

    @property
    def score_name(self) -> str:
        """What the score that counts is called in a sentence."""
        return score_name(self.scores[0], self.thing)

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers, which the model's one output predicts."""
        return self.scores[0] in OF_NUMBERS

    def how_to_prepare(self) -> str:
        """``; `` and the sentence that tells how to get the data, for the end of an error line."""
        return f"; {self.prepare}" if self.prepare else ""

    def needed(self) -> list[Path]:
        """Folders and files without which there is no data, the outermost first."""
        return []

    def check_present(self) -> None:
        """Refuse data that is not there; a look at :meth:`needed` alone, so that nobody waits for torch to be told."""
        for path in self.needed():
            if not os.path.exists(path):  # a name that is too long is none either
                kind = "file" if is_table(path.name) else "folder"
                raise ConfigError(f"dataset {self.name}: there is no {kind} {path}{self.how_to_prepare()}")


@dataclass(kw_only=True)
class SplitListsConfig(DatasetConfig):
    """``image_root`` (what the listed paths are relative to) and ``splits_dir`` (the lists) are relative to ``root``."""

    root: str
    image_root: str = "."
    splits_dir: str = "."

    def needed(self) -> list[Path]:
        """The folders, and the three lists."""
        root = expanded(self.root)
        return [root, root / self.image_root, *(root / self.splits_dir / f"{split}.json" for split in SPLITS)]


@dataclass(kw_only=True)
class OwnConfig(DatasetConfig):
    """A person's own data, whose splits are known by their names (:mod:`gift_vit.data.layout`).

    An absent val is split off train. Where there are no splits at all, test is split off everything first. The name of the kind
    becomes ``<kind>_<last part of root>``, so that two people's data do not share one run folder.

    Attributes:
        root: The folder, or a single file.
        val_fraction: The part of train that becomes val, stratified.
        test_fraction: The part of everything that becomes test, stratified; None: as ``val_fraction``.
        split_seed: Both are drawn from it.
    """

    kind: ClassVar[str]

    root: str
    val_fraction: Annotated[float, split_off] = 0.2
    test_fraction: Annotated[float | None, split_off] = None
    split_seed: Annotated[int, random_seed] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == self.kind:
            self.name = _name_after_root(self.kind, self.root)

    def needed(self) -> list[Path]:
        """The root."""
        return [self.root_path]

    @property
    def root_path(self) -> Path:
        """The root as a path."""
        return expanded(self.root)


@dataclass(kw_only=True)
class FolderConfig(OwnConfig):
    """Class folders: ``root/train/<class>/*.jpg`` and so on, or without splits ``root/<class>/*.jpg``."""

    kind: ClassVar[str] = "folder"

    def how_to_prepare(self) -> str:
        """As for every dataset, after the layout that is expected."""
        return f"; {CLASS_FOLDERS}{super().how_to_prepare()}"

    def check_present(self) -> None:
        """Also that the folders are splits, or classes, with images in them."""
        super().check_present()
        read_trees(self.root_path)


@dataclass
class ColumnsConfig(Options, section="dataset.columns"):
    """Names of the columns; None: one of the usual names (:mod:`gift_vit.data.columns`).

    In a CSV file without a line of names they are ``"1"``, ``"2"`` and so on. ``split`` is looked at where the files have no
    splits by their names.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(kw_only=True)
class FilesConfig(OwnConfig):
    """Files with a row for each example.

    Attributes:
        files: Files or glob patterns per split, relative to root. A file that is named must be there; a pattern of val or test
            that matches nothing means that the split is absent. None for all: by the usual names; for some: these are absent.
    """

    files: dict[str, list[str] | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [split for split, patterns in self.files.items() if patterns is not None]
        if set(self.files) - set(SPLITS) or ((given or not self.files) and not self.files.get("train")):
            raise ConfigError(f"dataset.files names {', '.join(given or self.files) or 'nothing'}: {_NAME_TRAIN}")

    def check_present(self) -> None:
        """Also that each split has its files."""
        super().check_present()
        self.found()

    def found(self) -> dict[str, list[Path]]:
        """The files of each split that is there, in their order; one file of no split as :data:`gift_vit.data.layout.ALL`.

        Raises:
            ConfigError: If a file that is named is not there, or those that are there are not one set of splits.
        """
        given = {split: self.files[split] or [] for split in SPLITS if self.files.get(split)}
        if not given:
            return table_files(self.root_path, self.kind)
        found = {split: {file for word in words for file in self._matching(split, word)} for split, words in given.items()}
        return {split: sorted(files, key=str) for split, files in found.items() if files}

    def _matching(self, split: str, pattern: str) -> list[Path]:
        root = self.root_path
        if (root / pattern).is_file():
            return [root / pattern]
        matches = [root / name for name in glob.glob(pattern, root_dir=root, recursive=True)]
        if not matches and (split == "train" or not glob.has_magic(pattern)):
            raise ConfigError(f"dataset {self.name}: there is no file {root / pattern} for {split}{self.how_to_prepare()}")
        check_series(matches)
        return matches


@dataclass(kw_only=True)
class TableConfig(FilesConfig):
    """Files with a column of images and one of labels.

    Attributes:
        columns: Which columns are read.
    """

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(kw_only=True)
class ParquetConfig(TableConfig):
    """Parquet files of encoded images, as Hugging Face ``datasets`` writes them."""

    kind: ClassVar[str] = "parquet"


@dataclass(kw_only=True)
class CsvConfig(TableConfig):
    """CSV files that list image files, whose paths are relative to the file that lists them."""

    kind: ClassVar[str] = "csv"


@dataclass
class TextColumnsConfig(Options, section="dataset.columns"):
    """Names of the columns; None: one of the usual names (:mod:`gift_vit.data.columns`).

    ``pair`` is the second text, where each example has two. In a CSV or TSV file without a line of names the columns are
    ``"1"``, ``"2"`` and so on.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(kw_only=True)
class TextsConfig(DatasetConfig):
    """Texts, for a model of transformers.

    Attributes:
        max_length: Tokens that a text, or a pair of them, is cut to; less where the model takes less.
    """

    thing: ClassVar[str] = "text"

    max_length: Annotated[int, at_least(3)] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transform != TransformConfig():
            raise ConfigError(f"dataset.transform is for images; dataset {self.name} holds texts: leave it out")

    def length_for(self, most: int | None) -> int:
        """Tokens that an example is cut to, for a model that takes at most ``most``; None: it does not say."""
        return min(self.max_length, most or self.max_length)


@dataclass(kw_only=True)
class TextTaskConfig(TextsConfig):
    """A task on texts that is answered by one output each: a class or a number.

    Attributes:
        columns: Which columns are read.
        metric: What runs are scored by: ``accuracy``, ``f1`` or ``matthews`` of classes; ``pearson`` or ``spearman`` of
            numbers, which the model learns to predict with one output, by their squared error.
        further_metrics: Scores that are recorded beside it.
    """

    columns: TextColumnsConfig = field(default_factory=TextColumnsConfig)
    metric: Annotated[str, one_of(TASK_METRICS)] = "accuracy"
    further_metrics: Annotated[list[str], one_of(TASK_METRICS)] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.further_metrics:
            if name == self.metric or (name in OF_NUMBERS) != self.is_regression:
                raise ConfigError(
                    f"dataset.further_metrics=[{name}] does not go with dataset.metric={self.metric}; "
                    f"{' and '.join(OF_NUMBERS)} are of numbers, the others of classes"
                )

    @property
    def scores(self) -> tuple[str, ...]:
        """The metric, and the further ones."""
        return (self.metric, *self.further_metrics)


@dataclass(kw_only=True)
class TextConfig(TextTaskConfig, FilesConfig):
    """Texts in TSV, CSV, JSON or Parquet files."""

    kind: ClassVar[str] = "text"


@dataclass
class ScheduleConfig(Options, section="dataset.schedule"):
    """What protocols take of the task where it is not the same for all: keys of ``trainer`` and ``optim``."""

    epochs: int = 10
    batch_size: int = 64
    warmup_epochs: int = 0
    warmup_ratio: float | None = 0.06
    decay: str = "linear"


@dataclass(kw_only=True)
class GlueConfig(TextTaskConfig):
    """A task of GLUE, as ``python -m data_prep.glue`` prepares it: train, dev, and test without labels.

    Attributes:
        root: The task's folder.
        classes: The classes' names in the order of their numbers; none for numbers.
        dev: What dev is: ``test``, and val is then split off train; or ``val``, and there is no test with labels.
        train_size: Texts of train that are used, drawn and stratified; None: all.
        split_seed: They are drawn from it, and then val: a tenth of train, at least 100 and at most 2,000 texts, stratified.
        schedule: What protocols take of the task.
        answers: How the server wants predictions: ``numbers`` or ``names`` of classes.
    """

    root: str
    classes: list[str] = field(default_factory=list)
    dev: Annotated[str, one_of(("test", "val"))] = "test"
    train_size: Annotated[int | None, at_least(2)] = None
    split_seed: Annotated[int, random_seed] = 0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    answers: Annotated[str, one_of(("numbers", "names"))] = "numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.classes) == self.is_regression:
            raise ConfigError(f"dataset.classes={self.classes}: name the classes, and none where dataset.metric is of numbers")

    def needed(self) -> list[Path]:
        """The record of the task's preparation, written last."""
        return [expanded(self.root) / "glue.json"]


@dataclass(kw_only=True)
class CommonsenseConfig(TextsConfig):
    """Commonsense170k: questions with options, which a language model answers in words.

    Attributes:
        root: The folder that ``python -m data_prep.commonsense`` has made.
        train: Files of training questions, relative to root.
        sets: The test sets, each ``<set>/test.json`` below root. The score is the mean of theirs.
        val_fraction: The part of the training questions that becomes val, stratified by answer.
        split_seed: It is drawn from that.
        max_length: Tokens of a question with its answer; the beginning of a longer question is cut off.
        max_new_tokens: The most tokens that an answer is given to.
        schedule: What the protocol clean takes of the benchmark.
    """

    root: str
    train: list[str] = field(default_factory=lambda: ["commonsense_170k.json"])
    sets: Annotated[list[str], one_of(COMMONSENSE_SETS)] = field(default_factory=lambda: list(COMMONSENSE_SETS))
    val_fraction: Annotated[float, split_off] = 0.01
    split_seed: Annotated[int, random_seed] = 0
    max_length: Annotated[int, at_least(16)] = 512
    max_new_tokens: Annotated[int, at_least(1)] = 32
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(epochs=3, batch_size=32, warmup_ratio=0.1))

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("train", "sets"):
            given = getattr(self, key)
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"dataset.{key}={given}: expected one or several names, each once")
        if self.max_new_tokens >= self.max_length:
            raise ConfigError(
                f"dataset.max_new_tokens={self.max_new_tokens} leaves nothing of dataset.max_length={self.max_length} for the "
                "question; lower it"
            )

    @property
    def scores(self) -> tuple[str, ...]:
        """Answers that are right to the letter."""
        return ("exact",)

    def train_files(self) -> list[Path]:
        """Those of the training questions."""
        return [expanded(self.root) / name for name in self.train]

    def test_files(self) -> dict[str, Path]:
        """Those of the test sets."""
        return {name: expanded(self.root) / name / "test.json" for name in self.sets}

    def needed(self) -> list[Path]:
        """The folder, and every file."""
        return [expanded(self.root), *self.train_files(), *self.test_files().values()]


@dataclass(kw_only=True)
class Vtab1kConfig(DatasetConfig):
    """``root`` is the task's own folder; ``jpeg_decoder`` is explained at :func:`gift_vit.data.decode.settled_jpeg`."""

    root: str
    jpeg_decoder: Annotated[str, one_of(JPEG_DECODERS)] = "auto"

    @property
    def as_published(self) -> bool:
        """Always."""
        return True

    def needed(self) -> list[Path]:
        """The record of the task's preparation, written last."""
        return [expanded(self.root) / "meta.json"]


@dataclass(kw_only=True)
class DigitsConfig(DatasetConfig):
    """The split into train 800, val 200 and test 797 is drawn, stratified, from ``split_seed``."""

    split_seed: Annotated[int, random_seed] = 0


OWN: dict[str, type[OwnConfig]] = {cls.kind: cls for cls in (FolderConfig, ParquetConfig, CsvConfig, TextConfig)}
CONFIGS: dict[str, type[DatasetConfig]] = {
    **OWN,
    "split_lists": SplitListsConfig,
    "vtab1k": Vtab1kConfig,
    "digits": DigitsConfig,
    "glue": GlueConfig,
    "commonsense": CommonsenseConfig,
}
KINDS: "Kinds[Callable[[Any], VisionDataset]]" = Kinds("dataset", "gift_vit.data.kinds", CONFIGS)


def composed_score(dataset: Mapping[str, Any]) -> str:
    """What the score that counts is called, by the dataset's section of a composed configuration."""
    metric = "exact" if dataset["kind"] == "commonsense" else dataset.get("metric", "accuracy")
    return score_name(metric, KINDS.config_class(dataset["kind"]).thing)


def _name_after_root(kind: str, root: str) -> str:
    """``<kind>_<last part of root>`` in the letters that may name folders."""
    last = os.path.basename(os.path.abspath(expanded(root)))
    if is_table(last):
        last = os.path.splitext(last)[0]
    return f"{kind}_{re.sub('[^a-z0-9]+', '_', last.lower()).strip('_') or 'images'}"
