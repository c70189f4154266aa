"""Cluster maps as a picture: one row per image, one column per cluster."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.errors import ConfigError
from gift_vit.files import atomic_path

DPI = 150
_CELL = 1.7  # inches per image
_LINE = 0.17  # inches per line of text
_NAME = 22  # characters of a class name that fit beside the mark
_WRONG = "#c00000"
_JET = colormaps["jet"]


def overlay(rgb: NDArray[np.floating], heat: NDArray[np.floating], alpha: float = 0.6) -> NDArray[np.floating]:
    """An image with a map in the "jet" colours laid over it, shape (H, W, 3), scaled to use all of 0..1.

    Args:
        rgb: (H, W, 3) in 0..1.
        heat: (H, W) in 0..1; 0 is dark blue, 1 dark red.
        alpha: Weight of the map's colours; the image has the rest.
    """
    colours = _min_max(np.asarray(_JET(np.uint8(255 * heat)))[..., :3])
    return _min_max(alpha * colours + (1 - alpha) * rgb)


def choose_clusters(maps: Tensor | NDArray[np.floating], count: int = 6) -> list[int]:
    """A few clusters whose maps (N, r, H, W) are unlike each other, in the order of their indices.

    The first is the one whose maps vary most; then, again and again, the one that is farthest, in mean square over images and
    pixels, from the nearest of those chosen already, so that near-duplicates are not drawn side by side.
    """
    values = _array(maps).swapaxes(0, 1)
    values = values.reshape(len(values), -1)
    chosen = [int(values.var(axis=1).argmax())]
    distance = np.full(len(values), np.inf)
    while len(chosen) < min(count, len(values)):
        distance = np.minimum(distance, np.square(values - values[chosen[-1]]).mean(axis=1))
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return sorted(chosen)


def plot_cluster_maps(
    images: NDArray[np.floating],
    true: Sequence[str],
    predicted: Sequence[str],
    maps: Tensor | NDArray[np.floating],
    path: str | Path,
    clusters: Sequence[int] | None = None,
    title: str = "",
) -> None:
    """Draw images beside the overlays of some clusters and save them as a PNG.

    Args:
        images: (N, H, W, 3) in 0..1.
        true: The N class names.
        predicted: The N names the model answered; a wrong one is marked.
        maps: (N, r, H, W) as :func:`gift_vit.explain.cluster_maps.normalise_maps` gives them.
        path: Where the PNG is written; an existing file is replaced.
        clusters: Which clusters to draw; None: :func:`choose_clusters`.
        title: Written above the figure.

    Raises:
        ConfigError: If the numbers of images, names and maps or their sizes differ, or a cluster does not exist.
    """
    heat = _array(maps)
    _check_sizes(images, true, predicted, heat)
    chosen = choose_clusters(heat) if clusters is None else list(clusters)
    wrong = [index for index in chosen if not 0 <= index < heat.shape[1]]
    if wrong or not chosen:
        raise ConfigError(f"clusters={chosen}: give indices from 0 to {heat.shape[1] - 1}")
    captions = [_caption(*names) for names in zip(true, predicted, strict=True)]
    figure = _sized_figure(images.shape[1] / images.shape[2], 1 + len(chosen), captions, title)
    axes = figure.subplots(len(images), 1 + len(chosen), squeeze=False)
    for row, (image, row_heat) in enumerate(zip(images, heat, strict=True)):
        _show(axes[row, 0], image)
        colour = "black" if true[row] == predicted[row] else _WRONG
        axes[row, 0].set_title(captions[row], fontsize=8, color=colour, parse_math=False)
        for column, cluster in enumerate(chosen, start=1):
            _show(axes[row, column], overlay(image, row_heat[cluster]))
            if row == 0:
                axes[row, column].set_title(f"cluster {cluster}", fontsize=9)
    _draw_colour_bar(figure, axes)
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, format="png")


def _caption(true: str, predicted: str) -> str:
    """The true and the predicted name and a mark, on two lines where one is too short."""
    first, second = _shortened(true), f"→ {_shortened(predicted)} {'✓' if true == predicted else '✗'}"
    return f"{first} {second}" if len(first) + len(second) < _NAME else f"{first}\n{second}"


def _sized_figure(aspect: float, columns: int, captions: Sequence[str], title: str) -> Figure:
    """An empty figure with room for the cells (``aspect``: height over width), their captions, the title and the colour bar."""
    width = max(_CELL * columns, 3.6)
    heading = textwrap.fill(title, int(width * 11))
    lines = sum(1.5 + caption.count("\n") for caption in captions) + 1.5 * len(heading.splitlines())
    figure = Figure(figsize=(width, len(captions) * _CELL * aspect + lines * _LINE + 0.6), dpi=DPI, layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure


def _draw_colour_bar(figure: Figure, axes: NDArray[np.object_]) -> None:
    """A bar of the colours that occur: everything up to one half is the colour of zero."""
    colours = _JET(np.arange(256))
    colours[:128] = colours[0]
    bar = figure.colorbar(
        ScalarMappable(cmap=ListedColormap(colours)),
        ax=axes.ravel().tolist(),
        orientation="horizontal",
        shrink=0.7,
        aspect=50,
        pad=0.02,
    )
    bar.set_ticks([0, 0.5, 0.75, 1])
    bar.ax.tick_params(labelsize=8)
    label = "cluster response, scaled to 0–1 per map; the lower half is set to 0"
    bar.set_label(textwrap.fill(label, int(figure.get_figwidth() * 12)), fontsize=8)


def _show(ax: Axes, image: NDArray[np.floating]) -> None:
    ax.imshow(image, vmin=0, vmax=1)
    ax.set_axis_off()


def _check_sizes(
    images: NDArray[np.floating], true: Sequence[str], predicted: Sequence[str], heat: NDArray[np.floating]
) -> None:
    if images.ndim != 4 or heat.ndim != 4 or len(images) == 0:
        raise ConfigError(f"expected images (N, H, W, 3) and maps (N, r, H, W), got {images.shape} and {heat.shape}")
    counts = (len(images), len(true), len(predicted), len(heat))
    if len(set(counts)) > 1:
        raise ConfigError("got {} images, {} true and {} predicted names, maps of {} images; expected one each".format(*counts))
    if images.shape[1:] != (*heat.shape[2:], 3):
        raise ConfigError(f"images of {images.shape[1:]} do not fit maps of {heat.shape[2:]}; compute both from the same input")


def _array(maps: Tensor | NDArray[np.floating]) -> NDArray[np.floating]:
    return torch.as_tensor(maps).detach().cpu().numpy()


def _min_max(values: NDArray[np.floating]) -> NDArray[np.floating]:
    low = values.min()
    return (values - low) / max(values.max() - low, 1e-8)


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
