"""Contact sheets: images × clusters of one layer, and layers × clusters of one image, as PNG or PDF."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.common.checks import one_of
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import save_figure
from gift_vit.explain.config import COLOURS, FORMATS
from gift_vit.explain.drawing.overlay import overlay, scale_colours
from gift_vit.explain.samples import Pictures

DPI = 150
_CELL = 1.7  # inches per image
_WIDTH = 12.6  # inches that a sheet has at most: as many pixels as a screen, where its text can be read; cells are smaller then
_LEAST = 0.6  # inches per image, so that a cluster's name fits above it
_LINE = 0.17  # inches per line of text
_GAP = 0.03  # inches around an image
_BAR = 0.43  # inches for the colour bar and its ticks
_WRONG = "#c00000"


@dataclass(frozen=True)
class Style:
    """How a sheet is drawn: one of ``COLOURS``, and what is written above it."""

    colours: str = COLOURS[0]
    title: str = ""

    def __post_init__(self) -> None:
        one_of(COLOURS)("colours", self.colours)


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
    """One row per layer, one column per cluster, of one image.

    ``maps`` are (L, K, H, W), ``names`` those of the L layers and of the K clusters; the rest as in :func:`draw_layer_sheet`.
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
    sheet = _Sheet(len(clusters), height / width, [row.label for row in rows], style.title)
    for number, row in enumerate(rows):
        sheet.label(number, row)
        for column, cluster in enumerate(clusters):
            sheet.show(number, 1 + column, overlay(row.image, row.heat[column], style.colours))
            if number == 0:
                sheet.above(0, 1 + column, f"cluster {cluster}", fontsize=9 if len(clusters) < 12 else 7.5)
    sheet.colour_bar(style.colours)
    save_figure(sheet.figure, paths)


class _Sheet:
    """A figure with room for the cells, their labels, the title and the colour bar; places are in inches from the top left.

    All cells lie in one axes: one for each, and a layout engine to place them, take several times as long as the drawing.
    """

    def __init__(self, clusters: int, height_to_width: float, labels: Sequence[str], title: str) -> None:
        self._cell = min(_CELL, max((_WIDTH - _CELL) / clusters, _LEAST))
        cell_height, used = self._cell * height_to_width, _CELL + clusters * self._cell
        width = max(used, 3.6)
        heading = textwrap.fill(title, int(width * 11))
        top = _LINE * 1.5 * len(heading.splitlines())
        self._tops: list[float] = []
        for label in labels:
            top += _LINE * (1.5 + label.count("\n"))
            self._tops.append(top)
            top += cell_height
        self._left, self._bottom, self._cell_height = (width - used) / 2, top, cell_height
        self._scale = textwrap.fill("cluster response, scaled to 0–1 per map; the lower half is not shown", int(width * 12))
        height = top + _BAR + _LINE * (1 + self._scale.count("\n"))
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        self.figure.suppressComposite = True  # a PDF keeps an image for every cell
        self._ax = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._ax.set_axis_off()
        if heading:
            self._ax.text(width / 2, 0.05, heading, fontsize=10, ha="center", va="top", parse_math=False)

    def label(self, number: int, row: _Row) -> None:
        """A row's image with its caption above, or its name in the image's place."""
        if row.shows_image:
            self.show(number, 0, row.image)
            self.above(number, 0, row.label, fontsize=8, color=_WRONG if row.wrong else "black")
        else:
            x, y = self._left + 0.95 * _CELL, self._tops[number] + self._cell_height / 2
            self._ax.text(x, y, row.label, fontsize=8, ha="right", va="center", parse_math=False)

    def above(self, row: int, column: int, text: str, **style: Any) -> None:
        """Text above a cell, in the middle."""
        x, y = self._middle(column), self._tops[row] - 0.05
        self._ax.text(x, y, text, ha="center", va="bottom", parse_math=False, **style)

    def _middle(self, column: int) -> float:
        """Of a column; the first one, of images or names, has its width whatever that of the clusters is."""
        return self._left + (_CELL / 2 if column == 0 else _CELL + self._cell * (column - 0.5))

    def show(self, row: int, column: int, image: NDArray[np.floating]) -> None:
        """An image in a cell."""
        left, top = self._middle(column) - self._cell / 2 + _GAP, self._tops[row]
        part = 1 - 2 * _GAP / self._cell  # of the cell, along both sides
        extent = (left, left + part * self._cell, top + part * self._cell_height, top)
        placed = AxesImage(self._ax, extent=extent, origin="upper", interpolation="nearest")
        placed.set_data(image)
        self._ax.add_image(placed)

    def colour_bar(self, colours: str) -> None:
        """The scale of the overlays, below all cells."""
        table, low = scale_colours(colours)
        height = self.figure.get_figheight()
        ax = self.figure.add_axes((0.15, 1 - (self._bottom + 0.2) / height, 0.7, 0.07 / height))
        bar = self.figure.colorbar(ScalarMappable(norm=Normalize(low, 1), cmap=table), cax=ax, orientation="horizontal")
        bar.set_ticks([tick for tick in (0, 0.5, 0.75, 1) if tick >= low])
        bar.ax.tick_params(labelsize=8)
        bar.set_label(self._scale, fontsize=8)


def _checked(maps: Tensor, expected: tuple[int, int], pictures: Pictures) -> NDArray[np.floating]:
    """The maps as an array, of ``expected`` rows and clusters and of the images' size."""
    shape = (*expected, *pictures.images.shape[1:3])
    if tuple(maps.shape) != shape:
        raise ConfigError(f"maps have shape {tuple(maps.shape)}; these images, rows and clusters need {shape}")
    return maps.detach().cpu().numpy()
