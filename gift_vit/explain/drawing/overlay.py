"""A map in colours over its image."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from gift_vit.explain.config import COLOURS
from gift_vit.explain.maps import THRESHOLD

ALPHA = 0.6
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def overlay(rgb: NDArray[np.floating], heat: NDArray[np.floating], colours: str = COLOURS[0]) -> NDArray[np.floating]:
    """An image with a thresholded map laid over it, shape (H, W, 3), in 0..1.

    The perceptually uniform colours tint the grey image where the map is above its threshold, and only there: their whole range
    is spread over the threshold to 1. ``jet`` is drawn as the paper's figures are: the colour of zero, a dark blue, lies over
    the rest of the image, and the sum is scaled to use all of 0..1.

    Args:
        rgb: (H, W, 3) in 0..1.
        heat: (H, W), zero or above the threshold and up to 1.
        colours: One of ``COLOURS``.
    """
    if colours == "jet":
        painted = _min_max(np.asarray(colormaps["jet"](np.uint8(255 * heat)))[..., :3])
        return _min_max(ALPHA * painted + (1 - ALPHA) * rgb)
    grey = np.repeat((rgb @ _LUMINANCE)[..., None], 3, axis=-1)
    painted = np.asarray(colormaps[colours]((heat - THRESHOLD) / (1 - THRESHOLD)))[..., :3]
    return np.where(heat[..., None] > 0, ALPHA * painted + (1 - ALPHA) * grey, grey)


def scale_colours(colours: str) -> tuple[ListedColormap, float]:
    """The colours that occur in an overlay, and the value of the lowest: 1 is that of the highest."""
    table = np.asarray(colormaps[colours](np.arange(256)))
    if colours == "jet":
        table[:128] = table[0]  # everything up to one half is the colour of zero
        return ListedColormap(table), 0.0
    return ListedColormap(table), THRESHOLD


def _min_max(values: NDArray[np.floating]) -> NDArray[np.floating]:
    low = values.min()
    return (values - low) / max(values.max() - low, 1e-8)
