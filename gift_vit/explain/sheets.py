"""Contact sheets: images × clusters of one layer, and layers × clusters of one image, as PNG or PDF."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.errors import ConfigError
from gift_vit.explain.overlay import COLOURS, check_colours, overlay, scale_colours
from gift_vit.files import atomic_path

DPI = 150
FORMATS = ("png", "pdf")
_CELL = 1.7  # inches per image
_LINE = 0.17  # inches per line of text
_NAME = 22  # characters of a class name that fit beside the mark
_WRONG = "#c00000"


@dataclass(frozen=True)
class Pictures:
    """N images as people see them.

    Attributes:
        images: (N, H, W, 3) in 0..1.
        true: The N class names; empty where an image has none.
        predicted: The N names that the model answered.
    """

    images: NDArray[np.floating]
    true: Sequence[str]
    predicted: Sequence[str]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) == 0:
            raise ConfigError(f"expected images (N, H, W, 3), at least one, got {self.images.shape}")
        counts = (len(self.images), len(self.true), len(self.predicted))
        if len(set(counts)) > 1:
            raise ConfigError("got {} images, {} true and {} predicted names; expected one each".format(*counts))

    def is_wrong(self, index: int) -> bool:
        """Whether the model's answer is known to be wrong."""
        return bool(self.true[index]) and self.true[index] != self.predicted[index]

    def caption(self, index: int) -> str:
        """The true and the predicted name and a mark, on two lines where one is too short."""
        answer = _shortened(self.predicted[index])
        if not self.true[index]:
            return f"→ {answer}"
        first, second = _shortened(self.true[index]), f"→ {answer} {'✗' if self.is_wrong(index) else '✓'}"
        return f"{first} {second}" if len(first) + len(second) < _NAME else f"{first}\n{second}"


@dataclass(frozen=True)
class Style:
    """How a sheet is drawn: one of ``COLOURS``, and what is written above it."""

    colours: str = COLOURS[0]
    title: str = ""

    def __post_init__(self) -> None:
        check_colours(self.colours)


@dataclass(frozen=True)
class _Row:
    image: NDArray[np.floating]
    heat: NDArray[np.floating]
    label: str
    wrong: bool
    shows_image: bool


def draw_layer_sheet(
    pictures: Pictures, maps: Tensor, clusters: Sequence[int | str], style: Style, paths: Sequence[Path]
) -> None:
    """One row per image, one column per cluster of one layer.

    Args:
        pictures: N images.
        maps: (N, K, H, W), thresholded, see :class:`gift_vit.explain.maps.ClusterMaps`.
        clusters: The names of the K clusters.
        style: How to draw it.
        paths: The files to write, .png or .pdf; existing ones are replaced.

    Raises:
        ConfigError: If the numbers or sizes of images, maps and names differ.
    """
    heat = _checked(maps, (len(pictures.images), len(clusters)), pictures)
    rows = [
        _Row(image, heat[index], pictures.caption(index), pictures.is_wrong(index), True)
        for index, image in enumerate(pictures.images)
    ]
    _draw(rows, clusters, style, paths)


def draw_image_sheet(
    pictures: Pictures, maps: Tensor, names: tuple[Sequence[str], Sequence[int | str]], style: Style, paths: Sequence[Path]
) -> None:
    """One row per layer, one column per cluster, of one image; arguments as above, with N = 1.

    Args:
        pictures: The image.
        maps: (L, K, H, W), thresholded.
        names: Of the L layers and of the K clusters.
        style: How to draw it.
        paths: The files to write.
    """
    layers, clusters = names
    heat = _checked(maps, (len(layers), len(clusters)), pictures)
    if len(pictures.images) != 1:
        raise ConfigError(f"a sheet of layers is of one image, got {len(pictures.images)}")
    first = pictures.caption(0)
    rows = [
        _Row(pictures.images[0], heat[index], f"{first}\n{layer}" if index == 0 else layer, pictures.is_wrong(0), index == 0)
        for index, layer in enumerate(layers)
    ]
    _draw(rows, clusters, style, paths)


def _draw(rows: Sequence[_Row], clusters: Sequence[int | str], style: Style, paths: Sequence[Path]) -> None:
    wrong = [str(path) for path in paths if path.suffix.removeprefix(".") not in FORMATS]
    if wrong:
        raise ConfigError(f"cannot draw {wrong[0]}: expected a name that ends in .{' or .'.join(FORMATS)}")
    height, width = rows[0].heat.shape[-2:]
    figure = _sized_figure(height / width, 1 + len(clusters), [row.label for row in rows], style.title)
    axes = figure.subplots(len(rows), 1 + len(clusters), squeeze=False)
    for number, row in enumerate(rows):
        _draw_label(axes[number, 0], row)
        for column, cluster in enumerate(clusters):
            _show(axes[number, 1 + column], overlay(row.image, row.heat[column], style.colours))
            if number == 0:
                axes[number, 1 + column].set_title(f"cluster {cluster}", fontsize=9)
    _draw_colour_bar(figure, axes, style.colours)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not again for every file
    for path in paths:
        with atomic_path(path) as partial:
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None  # equal maps give equal files
            figure.savefig(partial, format=path.suffix.removeprefix("."), metadata=metadata)


def _draw_label(ax: Axes, row: _Row) -> None:
    if row.shows_image:
        _show(ax, row.image)
        ax.set_title(row.label, fontsize=8, color=_WRONG if row.wrong else "black", parse_math=False)
    else:
        ax.set_axis_off()
        ax.text(0.95, 0.5, row.label, fontsize=8, ha="right", va="center", transform=ax.transAxes, parse_math=False)


def _sized_figure(aspect: float, columns: int, labels: Sequence[str], title: str) -> Figure:
    """An empty figure with room for the cells (``aspect``: height over width), their labels, the title and the colour bar."""
    width = max(_CELL * columns, 3.6)
    heading = textwrap.fill(title, int(width * 11))
    lines = sum(1.5 + label.count("\n") for label in labels) + 1.5 * len(heading.splitlines())
    figure = Figure(figsize=(width, len(labels) * _CELL * aspect + lines * _LINE + 0.6), dpi=DPI, layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure


def _draw_colour_bar(figure: Figure, axes: NDArray[np.object_], colours: str) -> None:
    table, low = scale_colours(colours)
    bar = figure.colorbar(
        ScalarMappable(norm=Normalize(low, 1), cmap=table),
        ax=axes.ravel().tolist(),
        orientation="horizontal",
        shrink=0.7,
        aspect=50,
        pad=0.02,
    )
    bar.set_ticks([tick for tick in (0, 0.5, 0.75, 1) if tick >= low])
    bar.ax.tick_params(labelsize=8)
    label = "cluster response, scaled to 0–1 per map; the lower half is not shown"
    bar.set_label(textwrap.fill(label, int(figure.get_figwidth() * 12)), fontsize=8)


def _show(ax: Axes, image: NDArray[np.floating]) -> None:
    ax.imshow(image, vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()


def _checked(maps: Tensor, expected: tuple[int, int], pictures: Pictures) -> NDArray[np.floating]:
    """The maps as an array, of ``expected`` rows and clusters and of the images' size."""
    shape = (*expected, *pictures.images.shape[1:3])
    if tuple(maps.shape) != shape:
        raise ConfigError(f"maps have shape {tuple(maps.shape)}; these images, rows and clusters need {shape}")
    return maps.detach().cpu().numpy()


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
