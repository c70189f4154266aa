"""Everything that is written about explained images: raw maps, overlays, sheets, the gallery."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path, writing
from gift_vit.data.decode import Decoder
from gift_vit.explain.config import FORMATS, RESPONSES, ShowArguments
from gift_vit.explain.drawing.gallery import GalleryText, write_gallery
from gift_vit.explain.drawing.overlay import overlay
from gift_vit.explain.drawing.sheets import Style, draw_image_sheet, draw_layer_sheet
from gift_vit.explain.explainer import Explained, Explainer, build_explainer
from gift_vit.explain.layers import LayerName
from gift_vit.explain.maps import ClusterMaps
from gift_vit.explain.samples import file_stems, find_class, read_samples, split_samples
from gift_vit.explain.select import telling_clusters
from gift_vit.runs.run import Run

SHEET_ROWS = 24  # images that a sheet of one layer shows
_COLUMNS = 16  # clusters that a sheet of one image shows side by side
_RAW, _OVERLAYS, _PAGE = "maps.npz", "overlays", "index.html"


def show_run(run: Run, arguments: ShowArguments, files: Sequence[Path] | None) -> None:
    """Compute the maps of the files, or of images of the run's dataset, write them, and say what was written.

    Raises:
        ConfigError: If the folder holds a page that no earlier call has written, before anything is computed.
        RunError: At the end, if some of the files could not be read.
    """
    out = arguments.folder
    if (out / _PAGE).exists() and not (out / _RAW).exists():
        raise ConfigError(f"{out} holds an {_PAGE} of something else; give out=<another folder>")
    explainer, cfg = build_explainer(run, arguments), run.config
    unread: list[str] = []
    if files is None:
        explained = _explain_split(run, explainer, arguments)
    else:
        explained = explainer.explain(read_samples(files, Decoder.of_dataset(cfg.dataset), unread), arguments.count)
    facts = {"Run": cfg.run_name, "Basis": arguments.basis}
    text = GalleryText(f"{cfg.method_name} on {cfg.dataset.name}, {cfg.backbone.name}", facts)
    for layer, clusters in write_explained(out, explained, arguments, text).items():
        print(f"{layer}: clusters {', '.join(map(str, clusters))}")
    count, several = len(explained.names), f", in sheets of {SHEET_ROWS}" if len(explained.names) > SHEET_ROWS else ""
    print(f"wrote the maps of {count} image{'s' * (count > 1)}{several} to {out}; open {out / _PAGE}")
    if unread:
        raise RunError(f"{len(unread)} of {len(unread) + count} pictures could not be read")


def write_explained(out: Path, explained: Explained, shown_as: ShowArguments, text: GalleryText) -> dict[str, list[int]]:
    """Write ``maps.npz``, ``layers_<image>``, ``images_<layer>``, ``overlays/`` and ``index.html`` below ``out``.

    Args:
        out: A folder; what an earlier call has written there is replaced, and other files stay.
        explained: Images and maps.
        shown_as: How to show them: the response (the gallery has both), which clusters, colours, formats and overlays.
        text: The title of sheets and gallery, and what the gallery says about the maps.

    Returns:
        The clusters that each layer's sheet shows, by the layer's name.
    """
    maps = explained.maps
    shown = [_shown_clusters(maps, index, shown_as) for index in range(len(maps.layers))]
    _remove_earlier(out)
    _write_raw(out / _RAW, explained)
    for index, own in enumerate(shown):
        _write_layer(out, explained, index, own, shown_as, text.title)
    for index in range(len(explained.names)):
        _write_image(out, explained, index, shown[-1], shown_as, text.title)
    write_gallery(out / _PAGE, explained.pictures, maps, (len(shown) - 1, shown[-1][0]), text, shown_as.colours)
    return {str(layer): [maps.clusters[position] for position in own] for layer, own in zip(maps.layers, shown, strict=True)}


def _explain_split(run: Run, explainer: Explainer, arguments: ShowArguments) -> Explained:
    label = None if arguments.class_ is None else find_class(arguments.class_, explainer.class_names)
    samples = split_samples(run.data(), run.split(arguments.split), label)
    return explainer.explain(samples, 4 if arguments.count is None else arguments.count, arguments.correct_only)


def _shown_clusters(maps: ClusterMaps, layer: int, shown_as: ShowArguments) -> list[int]:
    """Positions in ``maps.clusters``: of all that a person named, otherwise of the most telling ones."""
    if shown_as.clusters is not None:
        return list(range(len(maps.clusters)))
    return telling_clusters(maps.raw(shown_as.response)[:, layer], shown_as.show)


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


def _write_layer(out: Path, explained: Explained, index: int, shown: list[int], shown_as: ShowArguments, title: str) -> None:
    """Sheets of at most :data:`SHEET_ROWS` images each, so that none takes more memory, or is higher, than can be looked at."""
    maps, layer = explained.maps.layer(index).of_clusters(shown), explained.maps.layers[index]
    style = Style(shown_as.colours, f"{title}: {layer}, {_when(shown_as.response)}")
    for part, first in enumerate(range(0, len(maps), SHEET_ROWS)):
        rows = slice(first, first + SHEET_ROWS)
        pictures, stems = explained.pictures.some(rows), explained.stems[rows]
        heat = maps.images(range(len(maps))[rows]).thresholded(shown_as.response)[:, 0]
        paths = [out / f"{_layer_sheet(layer, part)}.{suffix}" for suffix in shown_as.formats]
        draw_layer_sheet(pictures, heat, maps.clusters, style, paths)
        for stem, image, own in zip(stems, pictures.images, heat, strict=True) if shown_as.overlays else ():
            for cluster, values in zip(maps.clusters, own, strict=True):
                file = _overlay(layer, cluster, shown_as.response)
                _save(out / _OVERLAYS / stem / file, overlay(image, values.numpy(), shown_as.colours))


def _write_image(out: Path, explained: Explained, index: int, telling: list[int], shown_as: ShowArguments, title: str) -> None:
    maps, name = explained.maps.images([index]), explained.names[index]
    maps = maps if len(maps.clusters) <= _COLUMNS else maps.of_clusters(telling)
    paths = [out / f"{_image_sheet(explained.stems[index])}.{suffix}" for suffix in shown_as.formats]
    style = Style(shown_as.colours, f"{title}: {name}, {_when(shown_as.response)}")
    heat, picture = maps.thresholded(shown_as.response)[0], explained.pictures.some(slice(index, index + 1))
    draw_image_sheet(picture, heat, ([str(layer) for layer in maps.layers], maps.clusters), style, paths)


def _layer_sheet(layer: LayerName, part: int) -> str:
    return f"images_{layer.target}_block{layer.block}" + (f"_{part + 1}" if part else "")


def _image_sheet(stem: str) -> str:
    return f"layers_{stem}"


def _overlay(layer: LayerName, cluster: int, response: str) -> str:
    return f"{layer.target}_block{layer.block}_cluster{cluster}_{response}.png"


def _remove_earlier(out: Path) -> None:
    """Remove the sheets and overlays that an earlier call has left: those of the layers and images of its ``maps.npz``."""
    try:
        with np.load(out / _RAW) as raw:
            stems, clusters = file_stems(raw["images"].tolist()), raw["clusters"].tolist()
            layers = [LayerName(*names) for names in zip(raw["targets"].tolist(), raw["blocks"].tolist(), strict=True)]
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, BadZipFile):
        return  # there is none, or it is another file
    parts = range(math.ceil(len(stems) / SHEET_ROWS))
    sheets = [*(_layer_sheet(layer, part) for layer in layers for part in parts), *map(_image_sheet, stems)]
    overlays = {_overlay(layer, cluster, response) for layer in layers for cluster in clusters for response in RESPONSES}
    folders = [out / _OVERLAYS / stem for stem in stems]
    with writing(out):
        for file in (out / f"{sheet}.{suffix}" for sheet in sheets for suffix in FORMATS):
            file.unlink(missing_ok=True)
        for file in (file for folder in folders for file in folder.glob("*.png") if file.name in overlays):
            file.unlink()
    for folder in (*folders, out / _OVERLAYS):
        with suppress(OSError):  # it is not there, or holds what is another's
            folder.rmdir()


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as partial:
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(partial, "PNG")


def _when(response: str) -> str:
    return "after the update" if response == "post" else "before the update"
