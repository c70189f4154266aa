"""Everything that is written about explained images: raw maps, overlays, sheets, the gallery."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from gift_vit.errors import ConfigError
from gift_vit.explain.gallery import GalleryText, write_gallery
from gift_vit.explain.inputs import Explained
from gift_vit.explain.maps import ClusterMaps, Response
from gift_vit.explain.overlay import COLOURS, check_colours, overlay
from gift_vit.explain.select import telling_clusters
from gift_vit.explain.sheets import FORMATS, Pictures, Style, draw_image_sheet, draw_layer_sheet
from gift_vit.files import atomic_path

_COLUMNS = 16  # clusters that a sheet of one image shows side by side


@dataclass(frozen=True)
class OutputChoice:
    """How the maps are shown.

    Attributes:
        response: ``post`` or ``pre``; the gallery has both.
        show: How many clusters a sheet of images shows where none are named.
        colours: One of :data:`gift_vit.explain.overlay.COLOURS`.
        formats: Of the sheets: ``png``, ``pdf``.
        overlays: Whether to write every overlay as a file of its own too.
        title: Of sheets and gallery.
        facts: What the gallery says about the maps.
    """

    response: Response = "post"
    show: int = 6
    colours: str = COLOURS[0]
    formats: Sequence[str] = FORMATS
    overlays: bool = True
    title: str = "Cluster maps"
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_colours(self.colours)
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise ConfigError(f"unknown format {unknown[0]!r} (known: {', '.join(FORMATS)})")
        if self.show < 1:
            raise ConfigError(f"show={self.show}: give a positive number of clusters")


def write_explained(out: Path, explained: Explained, choice: OutputChoice, named_clusters: bool) -> dict[str, list[int]]:
    """Write ``maps.npz``, ``layers_<image>``, ``images_<layer>``, ``overlays/`` and ``index.html`` below ``out``.

    Args:
        out: A folder; files of the same names are replaced.
        explained: Images and maps.
        choice: How to show them.
        named_clusters: Whether a person chose the clusters, so that all are shown; otherwise the most telling ones are.

    Returns:
        The clusters that each layer's sheet shows, by the layer's name.
    """
    maps = explained.maps
    shown = [_shown_clusters(maps, index, choice, named_clusters) for index in range(len(maps.layers))]
    _write_raw(out / "maps.npz", explained)
    for index in range(len(maps.layers)):
        _write_layer(out, explained, index, shown[index], choice)
    for index in range(len(explained.names)):
        _write_image(out, explained, index, shown[-1], choice)
    text = GalleryText(choice.title, choice.facts)
    write_gallery(out / "index.html", explained.pictures, maps, (len(shown) - 1, shown[-1][0]), text, choice.colours)
    return {
        str(layer): [maps.clusters[position] for position in chosen] for layer, chosen in zip(maps.layers, shown, strict=True)
    }


def slug(name: object) -> str:
    """A name in the letters that may stand in a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(name)).strip("_")


def _shown_clusters(maps: ClusterMaps, layer: int, choice: OutputChoice, named: bool) -> list[int]:
    """Positions in ``maps.clusters``."""
    return list(range(len(maps.clusters))) if named else telling_clusters(maps.raw(choice.response)[:, layer], choice.show)


def _write_raw(path: Path, explained: Explained) -> None:
    maps = explained.maps
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            post=maps.post.numpy(),
            pre=maps.pre.numpy(),
            targets=np.array([layer.target for layer in maps.layers]),
            blocks=np.array([layer.block for layer in maps.layers]),
            clusters=np.array(maps.clusters),
            logits=maps.logits.numpy(),
            images=np.array(explained.names),
            true=np.array(explained.pictures.true),
            predicted=np.array(explained.pictures.predicted),
        )


def _write_layer(out: Path, explained: Explained, index: int, shown: list[int], choice: OutputChoice) -> None:
    maps, layer = explained.maps, explained.maps.layers[index]
    heat = maps.layer(index).thresholded(choice.response)[:, 0, shown]
    names = [maps.clusters[position] for position in shown]
    style = Style(choice.colours, f"{choice.title}: {layer}, {_when(choice)}")
    paths = [out / f"images_{layer.target}_block{layer.block}.{suffix}" for suffix in choice.formats]
    draw_layer_sheet(explained.pictures, heat, names, style, paths)
    if choice.overlays:
        for number, image in enumerate(explained.pictures.images):
            for position, name in enumerate(names):
                picture = overlay(image, heat[number, position].numpy(), choice.colours)
                file = f"{layer.target}_block{layer.block}_cluster{name}_{choice.response}.png"
                _save(out / "overlays" / slug(explained.names[number]) / file, picture)


def _write_image(out: Path, explained: Explained, index: int, telling: list[int], choice: OutputChoice) -> None:
    maps, pictures = explained.maps.images([index]), explained.pictures
    shown = list(range(len(maps.clusters))) if len(maps.clusters) <= _COLUMNS else telling
    one = Pictures(pictures.images[index : index + 1], pictures.true[index : index + 1], pictures.predicted[index : index + 1])
    names = [str(layer) for layer in maps.layers], [maps.clusters[position] for position in shown]
    paths = [out / f"layers_{slug(explained.names[index])}.{suffix}" for suffix in choice.formats]
    style = Style(choice.colours, f"{choice.title}: {explained.names[index]}, {_when(choice)}")
    draw_image_sheet(one, maps.thresholded(choice.response)[0][:, shown], names, style, paths)


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as partial:
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(partial, "PNG")


def _when(choice: OutputChoice) -> str:
    return "after the update" if choice.response == "post" else "before the update"
