"""One HTML file in which a person turns through layers and clusters; it needs no network.

The page holds every image once, as PNG, and the maps on their patch grid with 8 bits each; a script draws the overlays as
:mod:`gift_vit.explain.drawing.overlay` does.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gift_vit.common.files import write_text
from gift_vit.explain.config import COLOURS
from gift_vit.explain.drawing.overlay import ALPHA
from gift_vit.explain.maps import THRESHOLD, ClusterMaps, normalise_maps
from gift_vit.explain.samples import Pictures

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class GalleryText:
    """The page's heading, and names and texts of what describes it."""

    title: str
    facts: dict[str, str]


def write_gallery(
    path: Path, pictures: Pictures, maps: ClusterMaps, start: Sequence[int], text: GalleryText, colours: str = COLOURS[0]
) -> None:
    """Write the gallery.

    Args:
        path: The .html file; an existing one is replaced.
        pictures: N images.
        maps: Of these images.
        start: Position of the layer and of the cluster that are shown first.
        text: What the page says about them.
        colours: The colour map it starts with; a menu has the others.
    """
    loader = FileSystemLoader(_ASSETS)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    data = json.dumps(_page_data(pictures, maps, start, colours)).replace("<", "\\u003c")  # no name ends the script element
    style, script = (Markup((_ASSETS / name).read_text("utf-8")) for name in ("gallery.css", "gallery.js"))
    template = environment.get_template("gallery.html")
    write_text(path, template.render(text=text, colours=COLOURS, data=Markup(data), style=style, script=script))


def _page_data(pictures: Pictures, maps: ClusterMaps, start: Sequence[int], colours: str) -> dict[str, Any]:
    grid = cast("tuple[int, int]", tuple(maps.post.shape[-2:]))
    post, pre = (_grids(maps.raw(response), grid) for response in ("post", "pre"))
    return {
        "layers": [str(layer) for layer in maps.layers],
        "clusters": list(maps.clusters),
        "grid": grid,
        "size": maps.size,
        "layer": start[0],
        "cluster": start[1],
        "colours": colours,
        "tables": {name: _base64(_table(name)) for name in COLOURS},
        "threshold": THRESHOLD,
        "alpha": ALPHA,
        "images": [
            {
                "source": f"data:image/png;base64,{_png(image)}",
                "caption": pictures.caption(index),
                "wrong": pictures.is_wrong(index),
                "post": _base64(post[index]),
                "pre": _base64(pre[index]),
            }
            for index, image in enumerate(pictures.images)
        ],
    }


def _grids(raw: Tensor, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The maps on their own grid, each scaled to 0..255; a constant map is 0."""
    return (normalise_maps(raw, grid) * 255).round().byte().cpu().numpy()


def _table(colours: str) -> NDArray[np.uint8]:
    return np.asarray(colormaps[colours](np.arange(256), bytes=True))[:, :3]


def _png(image: NDArray[np.floating]) -> str:
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _base64(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
