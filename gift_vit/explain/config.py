"""What the commands of this room are told, and which maps can be asked for. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common.checks import Options, at_least, device_name, fraction, one_of, positive, writable_folder, writable_stem
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.common.hub import is_reference

RESPONSES = ("post", "pre")
"""Of the adapted layer, after the update, and of the frozen one, before it."""
BASES = ("trained", "canonical", "assignment", "random")
COLOURS = ("viridis", "plasma", "inferno", "magma", "cividis", "jet")
"""The perceptually uniform colour maps of matplotlib, and the paper's."""
FORMATS = ("png", "pdf")
TRUTHS = ("boxes", "segmentations", "parts")


@dataclass(frozen=True)
class MapChoice(Options):
    """Which maps to compute.

    Attributes:
        targets: Of the adapter's ``target_modules``; a slice such as ``attn.q`` has its own rows of the fused layer. None: all.
        blocks: Indices of transformer blocks; negative: from the end. None: all that are adapted.
        clusters: Indices of clusters. None: all.
        basis: What a cluster is, see :mod:`gift_vit.explain.layers`.
        schema_block: With ``assignment``: which block of the schema.
        seed: With ``random``: of the draw.
    """

    targets: Sequence[str] | None = None
    blocks: Sequence[int] | None = None
    clusters: Sequence[int] | None = None
    basis: Annotated[str, one_of(BASES)] = "trained"
    schema_block: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("targets", "blocks", "clusters"):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise ConfigError(f"{name}={list(given)}: give distinct values, at least one")


@dataclass
class RunArguments(Options):
    """What the commands about one run have in common.

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or hf://user/name
        layers: blocks, such as [0,5,-1]; negative: from the end (default: all that are adapted)
        targets: such as [attn.proj] (default: all that are adapted)
        basis: trained, canonical, assignment or random; assignment: of a PaCa schema
        response: post or pre: after or before the update
        out: the folder to write (default: explain/ in the run's folder)
        dataset_root: the dataset.root of now, if the data is not where it was during training
        device: auto, cpu, cuda, cuda:1 …
        batch_size: images per forward pass
    """

    run: str = MISSING
    layers: list[int] | None = None
    targets: list[str] | None = None
    basis: Annotated[str, one_of(BASES)] = "trained"
    response: Annotated[str, one_of(RESPONSES)] = "post"
    out: Annotated[str | None, writable_folder] = None
    dataset_root: str | None = None
    device: Annotated[str, device_name] = "auto"
    batch_size: Annotated[int, at_least(1)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.choice  # checks what it is made of
        if self.out is None and is_reference(self.run):
            raise ConfigError(f"run={self.run} is no folder to write to; give out=<folder>")

    @property
    def choice(self) -> MapChoice:
        """The maps that are asked for."""
        return MapChoice(self.targets, self.layers, basis=self.basis)

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return expanded(self.out or Path(self.run, "explain"))


@dataclass
class ShowArguments(RunArguments):
    """Draw the cluster maps of a finished run's GIFT adapter: where in an image each column of W phi responds.

        python -m gift_vit.explain run=<folder> [images=<file or folder> | split=test class=47 correct_only=true]

    Attributes:
        images: an image file, a folder of them, or a pattern in quotation marks (default: a split of the run's dataset)
        split: train, val, trainval or test (default: test; val for a run of the search phase)
        class_: a class by index (from 0) or name (default: all classes)
        correct_only: only images that the model gets right
        count: how many images, the first ones (default: 4; of a folder all)
        clusters: such as [4,10] (default: all; sheets of images show the most telling ones)
        show: how many telling clusters a sheet shows
        schema_block: with basis=assignment, which block of the schema
        colours: viridis, plasma, inferno, magma, cividis, or jet as in the paper
        formats: of the sheets
        overlays: write every overlay as a file of its own too

    Writes maps.npz (raw maps), one sheet per layer (of 24 images each, if there are more) and per image, and index.html, a
    gallery that opens without a network. What an earlier call has written into the folder is replaced.
    """

    images: str | None = None
    split: str | None = None
    class_: str | None = None
    correct_only: bool = False
    count: Annotated[int | None, at_least(1)] = None
    clusters: list[int] | None = None
    show: Annotated[int, at_least(1)] = 6
    schema_block: int = 0
    colours: Annotated[str, one_of(COLOURS)] = COLOURS[0]
    formats: Annotated[list[str], one_of(FORMATS)] = field(default_factory=lambda: list(FORMATS))
    overlays: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and (self.split is not None or self.class_ is not None or self.correct_only):
            raise ConfigError("images=… names files, which have no split or label; drop split, class and correct_only")

    @property
    def choice(self) -> MapChoice:
        """The maps that are asked for."""
        return replace(super().choice, clusters=self.clusters, schema_block=self.schema_block)


@dataclass
class ScoreArguments(RunArguments):
    """Score a finished run's GIFT maps, and baselines, against what is known of the objects in the images.

        python -m gift_vit.explain.score run=<folder> [truth=boxes|segmentations|parts]

    The run is of the final phase, and its dataset of image files.

    Attributes:
        truth: boxes or segmentations: pointing game, energy inside, intersection over union; parts: how often the best cluster
            for each part hits it, and how often another part
        annotations: the folder that holds boxes.parquet, segmentations/ or parts.parquet (default: the dataset's root, where
            python -m data_prep.fgvc writes them)
        mask_threshold: segmentations: a pixel belongs to the object if more than this share of the annotators say so
        alpha: parts: a hit is at most alpha * max(height, width) of the object's box away, as in PCK
        count: how many images of each split, the first ones (default: all)

    Cluster, sign and threshold are chosen on val and reported on test. Writes scores.json (that, with bootstrap intervals) and
    candidates.csv (the means of every candidate on both splits); segmentations and parts in files of their own.
    """

    batch_size: int = 8
    truth: Annotated[str, one_of(TRUTHS)] = "boxes"
    annotations: str | None = None
    mask_threshold: Annotated[float, fraction] = 0.5
    alpha: Annotated[float, positive] = 0.1
    count: Annotated[int | None, at_least(1)] = None


@dataclass
class FaithfulnessArguments(RunArguments):
    """Measure whether a finished run's GIFT maps show what its model uses.

        python -m gift_vit.explain.faithfulness run=<folder>

    How does the probability of its answer change as patches are shown (insertion) or hidden (deletion) in the order of a map?
    The orders of attention, gradients and chance stand beside it. The run is of the final phase; no annotations are needed.

    Attributes:
        layers: blocks, such as [0,5,-1]; negative: from the end
        clusters: such as [4,10] (default: all)
        count: how many images of test, at equal distances in it
        val_count: how many of val choose
        steps: points of a curve after the first

    Cluster and sign are chosen on val, by the area under insertion minus that under deletion, and reported on test; that takes
    2 · steps forward passes for each cluster of each layer. Writes faithfulness.json, with bootstrap intervals and mean curves.
    """

    layers: list[int] | None = field(default_factory=lambda: [-1])
    clusters: list[int] | None = None
    count: Annotated[int, at_least(1)] = 128
    val_count: Annotated[int, at_least(1)] = 32
    steps: Annotated[int, at_least(1)] = 16

    @property
    def choice(self) -> MapChoice:
        """The maps that are asked for."""
        return replace(super().choice, clusters=self.clusters)


@dataclass
class StabilityArguments(Options):
    """Measure how alike the GIFT maps of several finished runs are: correlations of clusters, after alignments of four kinds.

        python -m gift_vit.explain.stability runs=[<folder>,<folder>,<folder>]

    Attributes:
        runs: folders of finished runs of the final phase: one dataset, backbone and method; different seeds, say
        layers: blocks, such as [0,5,-1]; negative: from the end (default: all that are adapted)
        targets: such as [attn.proj] (default: all that are adapted)
        response: post or pre: after or before the update
        count: how many images of val and of test at most, evenly over the split
        out: the files to write, without their suffixes .json and .md
        dataset_root: the dataset.root of now, if the data is not where it was during training
        device: auto, cpu, cuda, cuda:1 …
        batch_size: images per forward pass

    Alignments are fitted on val and judged on test. The same is done with a random phi in place of the trained one: drawn for
    each run anew it shows the level of chance, and one for all runs how alike the networks' tokens are. Prints the table.
    """

    runs: list[str] = MISSING
    layers: list[int] | None = None
    targets: list[str] | None = None
    response: Annotated[str, one_of(RESPONSES)] = "post"
    count: Annotated[int, at_least(1)] = 500
    out: Annotated[str, writable_stem] = "outputs/stability"
    dataset_root: str | None = None
    device: Annotated[str, device_name] = "auto"
    batch_size: Annotated[int, at_least(1)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.choice  # checks what it is made of
        if len({Path(run).resolve() for run in self.runs}) < max(2, len(self.runs)):
            raise ConfigError(f"runs=[{','.join(self.runs)}]: give at least two folders, each once")

    @property
    def choice(self) -> MapChoice:
        """The maps that are asked for."""
        return MapChoice(self.targets, self.layers)
