"""Everything that is written about explained images: raw maps, overlays, sheets, the gallery."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gift_vit.common.files import atomic_path
from gift_vit.data.decode import Decoder
from gift_vit.explain.config import ShowArguments
from gift_vit.explain.drawing.gallery import GalleryText, write_gallery
from gift_vit.explain.drawing.overlay import overlay
from gift_vit.explain.drawing.sheets import Style, draw_image_sheet, draw_layer_sheet
from gift_vit.explain.explainer import Explained, Explainer, build_explainer
from gift_vit.explain.maps import ClusterMaps
from gift_vit.explain.samples import find_class, read_samples, split_samples
from gift_vit.explain.select import telling_clusters
from gift_vit.runs.run import Run

_COLUMNS = 16  # clusters that a sheet of one image shows side by side


def show_run(run: Run, arguments: ShowArguments, files: Sequence[Path] | None) -> None:
    """Compute the maps of the files, or of images of the run's dataset, write them, and say what was written."""
    explainer, cfg = build_explainer(run, arguments), run.config
    if files is None:
        explained = _explain_split(run, explainer, arguments)
    else:
        explained = explainer.explain(read_samples(files, Decoder.of_dataset(cfg.dataset)), arguments.count)
    facts = {"Run": cfg.run_name, "Basis": arguments.basis}
    text = GalleryText(f"{cfg.method_name} on {cfg.dataset.name}, {cfg.backbone.name}", facts)
    for layer, clusters in write_explained(arguments.folder, explained, arguments, text).items():
        print(f"{layer}: clusters {', '.join(map(str, clusters))}")
    print(f"wrote the maps of {len(explained.names)} images to {arguments.folder}; open {arguments.folder / 'index.html'}")


def write_explained(out: Path, explained: Explained, shown_as: ShowArguments, text: GalleryText) -> dict[str, list[int]]:
    """Write ``maps.npz``, ``layers_<image>``, ``images_<layer>``, ``overlays/`` and ``index.html`` below ``out``.

    Args:
        out: A folder; files of the same names are replaced.
        explained: Images and maps.
        shown_as: How to show them: the response (the gallery has both), which clusters, colours, formats and overlays.
        text: The title of sheets and gallery, and what the gallery says about the maps.

    Returns:
        The clusters that each layer's sheet shows, by the layer's name.
    """
    maps = explained.maps
    shown = [_shown_clusters(maps, index, shown_as) for index in range(len(maps.layers))]
    _write_raw(out / "maps.npz", explained)
    for index, own in enumerate(shown):
        _write_layer(out, explained, index, own, shown_as, text.title)
    for index in range(len(explained.names)):
        _write_image(out, explained, index, shown[-1], shown_as, text.title)
    write_gallery(out / "index.html", explained.pictures, maps, (len(shown) - 1, shown[-1][0]), text, shown_as.colours)
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
    maps, layer = explained.maps, explained.maps.layers[index]
    heat = maps.layer(index).thresholded(shown_as.response)[:, 0, shown]
    names = [maps.clusters[position] for position in shown]
    style = Style(shown_as.colours, f"{title}: {layer}, {_when(shown_as.response)}")
    paths = [out / f"images_{layer.target}_block{layer.block}.{suffix}" for suffix in shown_as.formats]
    draw_layer_sheet(explained.pictures, heat, names, style, paths)
    if shown_as.overlays:
        for number, image in enumerate(explained.pictures.images):
            for position, name in enumerate(names):
                picture = overlay(image, heat[number, position].numpy(), shown_as.colours)
                file = f"{layer.target}_block{layer.block}_cluster{name}_{shown_as.response}.png"
                _save(out / "overlays" / explained.stems[number] / file, picture)


def _write_image(out: Path, explained: Explained, index: int, telling: list[int], shown_as: ShowArguments, title: str) -> None:
    maps, name = explained.maps.images([index]), explained.names[index]
    shown = list(range(len(maps.clusters))) if len(maps.clusters) <= _COLUMNS else telling
    rows_and_columns = [str(layer) for layer in maps.layers], [maps.clusters[position] for position in shown]
    paths = [out / f"layers_{explained.stems[index]}.{suffix}" for suffix in shown_as.formats]
    style = Style(shown_as.colours, f"{title}: {name}, {_when(shown_as.response)}")
    heat = maps.thresholded(shown_as.response)[0][:, shown]
    draw_image_sheet(explained.pictures.one(index), heat, rows_and_columns, style, paths)


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as partial:
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(partial, "PNG")


def _when(response: str) -> str:
    return "after the update" if response == "post" else "before the update"
