"""The matrices of a run as one figure. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gift_vit.common.files import save_figure

if TYPE_CHECKING:
    from torch import Tensor

_CELL = 0.42  # inches
_MOST_NUMBERS = 14  # layers; the numbers of more cannot be read


def draw_matrices(layers: Sequence[str], found: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """STIR in both directions and within each model, CKA, and what random weights give, colours from 0 to 1.

    Args:
        layers: Names of the L layers.
        found: By one estimator, as :mod:`gift_vit.invariance.measuring` makes it: ``stir`` and ``cka``.
        paths: Files to write, by their suffixes.
    """
    stir = found["stir"]
    panels = [
        ("STIR(fine-tuned | pretrained)", stir["tuned_given_pretrained"], "pretrained, inverted", "fine-tuned"),
        ("STIR(pretrained | fine-tuned)", stir["pretrained_given_tuned"].T, "pretrained", "fine-tuned, inverted"),
        ("CKA of the images", found["cka"], "pretrained", "fine-tuned"),
        ("STIR within the pretrained", stir["within_pretrained"], "inverted", "evaluated"),
        ("STIR within the fine-tuned", stir["within_tuned"], "inverted", "evaluated"),
        ("STIR(random weights | pretrained)", stir["random_given_pretrained"], "pretrained, inverted", "random weights"),
    ]
    side = max(2.6, _CELL * len(layers) + 1)
    figure = Figure(figsize=(3 * side, 2 * side), layout="constrained")
    figure.suptitle("Unbiased CKA; about 0 for independent images", fontsize=9)
    for axes, (title, matrix, rows, columns) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        image = axes.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(columns, fontsize=8)
        axes.set_ylabel(rows, fontsize=8)
        axes.set_xticks(range(len(layers)), layers, fontsize=7)
        axes.set_yticks(range(len(layers)), layers, fontsize=7)
        if len(layers) <= _MOST_NUMBERS:
            _write_numbers(axes, matrix)
        figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    save_figure(figure, paths)


def _write_numbers(axes: Axes, matrix: "Tensor") -> None:
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
