"""Show what the clusters of a finished run's adapter respond to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from gift_vit import cli

if TYPE_CHECKING:
    from gift_vit.config import RunConfig
    from gift_vit.data import VisionDataset
    from gift_vit.explain.inputs import Explained, Explainer

USAGE = """
Draw the cluster maps of a finished run's GIFT adapter: where in an image each column of W phi responds.

    python -m gift_vit.explain run=<folder> [images=<file or folder> | split=test class=47 correct_only=true]

    run            the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or one of gift_vit.import_gift
    images         an image file, or a folder of them; otherwise a split of the run's dataset:
    split          train, val, trainval or test (default: test; val for a run of the search phase)
    class          a class by index (from 0) or name (default: all classes)
    correct_only   true: only images that the model gets right (default: false)
    count          how many images, the first ones (default: 4; of a folder all)

    layers         blocks, such as [0,5,-1]; negative: from the end (default: all that are adapted)
    targets        such as [attn.proj] (default: all that are adapted)
    clusters       such as [4,10] (default: all; sheets of images show the most telling ones)
    show           how many telling clusters a sheet shows (default: 6)
    basis          trained, canonical, assignment or random (default: trained); assignment: of a PaCa schema
    schema_block   with basis=assignment: which block of the schema (default: 0)
    response       post or pre: after or before the update (default: post)
    colours        viridis, plasma, inferno, magma, cividis, or jet as in the paper (default: viridis)
    formats        of the sheets (default: [png,pdf])
    overlays       true: every overlay as a file of its own too (default: false)

    out            the folder to write (default: explain/ in the run's folder)
    dataset_root   the dataset.root of now, if the data is not where it was during training
    device         auto, cpu, cuda, cuda:1 … (default: auto)
    batch_size     images per forward pass (default: 32)

Writes maps.npz (raw maps), one sheet per layer and per image, and index.html, a gallery that opens without a network.
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    images: str | None = None
    split: str | None = None
    class_: str | None = None
    correct_only: bool = False
    count: int | None = None
    layers: list[int] | None = None
    targets: list[str] | None = None
    clusters: list[int] | None = None
    show: int = 6
    basis: str = "trained"
    schema_block: int = 0
    response: str = "post"
    colours: str = "viridis"
    formats: list[str] = field(default_factory=lambda: ["png", "pdf"])
    overlays: bool = False
    out: str | None = None
    dataset_root: str | None = None
    device: str = "auto"
    batch_size: int = 32


def explain_run(arguments: Arguments) -> None:
    """Rebuild the run's model, compute the maps of the chosen images, and write them."""
    from gift_vit.explain.maps import check_response
    from gift_vit.explain.output import OutputChoice, write_explained
    from gift_vit.run import load_run

    folder = Path(arguments.run)
    cfg = load_run(folder, arguments.dataset_root)
    choice = OutputChoice(
        check_response(arguments.response),
        arguments.show,
        arguments.colours,
        arguments.formats,
        arguments.overlays,
        title=f"{cfg.method_name} on {cfg.dataset.name}, {cfg.backbone.name}",
        facts={"Run": cfg.run_name, "Basis": arguments.basis},
    )
    explainer = build_explainer(arguments, cfg, folder)
    explained = explain_images(arguments, cfg, folder, explainer)
    out = Path(arguments.out) if arguments.out else folder / "explain"
    shown = write_explained(out, explained, choice, arguments.clusters is not None)
    for layer, clusters in shown.items():
        print(f"{layer}: clusters {', '.join(map(str, clusters))}")
    print(f"wrote the maps of {len(explained.names)} images to {out}; open {out / 'index.html'}")


def load_final_run(folder: Path, dataset_root: str | None) -> "RunConfig":
    """The config of a run whose test split may be looked at."""
    from gift_vit.run import choose_split, load_run

    cfg = load_run(folder, dataset_root)
    choose_split(cfg, folder, "test")
    return cfg


def load_data(cfg: "RunConfig", *folders: Path) -> "VisionDataset":
    """The dataset of runs' folders, of which ``cfg`` is one's; one that is not as it was during training is an error."""
    from gift_vit.data import build_dataset
    from gift_vit.results import read_result
    from gift_vit.run import RESULT, check_fingerprint, is_imported

    data = build_dataset(cfg.dataset)
    for folder in folders:
        if not is_imported(folder):
            check_fingerprint(folder, data, read_result(folder / RESULT))
    return data


def model_words(arguments: Any) -> Arguments:
    """Those of another command's arguments that :func:`build_explainer` reads."""
    same = ("run", "layers", "targets", "clusters", "basis", "device", "batch_size")
    return Arguments(**{name: getattr(arguments, name) for name in same if hasattr(arguments, name)})


def build_explainer(arguments: Arguments, cfg: "RunConfig", folder: Path) -> "Explainer":
    """The run's model on the chosen device, and what it needs to explain images."""
    from gift_vit.backbones import input_statistics
    from gift_vit.data import build_eval_transform
    from gift_vit.errors import ConfigError
    from gift_vit.explain.inputs import Explainer
    from gift_vit.explain.layers import MapChoice
    from gift_vit.layout import ADAPTER
    from gift_vit.methods.adapter import read_adapter
    from gift_vit.methods.gift import GiftConfig
    from gift_vit.run import load_finished_model, resolve_device

    if not isinstance(cfg.method, GiftConfig):
        raise ConfigError(f"cluster maps explain GIFT; {folder} was trained with method={cfg.method_name}")
    if arguments.batch_size < 1:
        raise ConfigError(f"batch_size={arguments.batch_size}: give a positive number")
    choice = MapChoice(
        *(arguments.targets, arguments.layers, arguments.clusters, arguments.basis, arguments.schema_block), seed=cfg.seed
    )
    model = load_finished_model(cfg, folder).to(resolve_device(arguments.device))
    classes = model.get_classifier().out_features  # pyright: ignore[reportCallIssue]
    names = read_adapter(folder / ADAPTER).metadata.get("class_names") or [str(index) for index in range(classes)]
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
    return Explainer(model, transform, names, choice, arguments.batch_size)


def explain_images(arguments: Arguments, cfg: "RunConfig", folder: Path, explainer: "Explainer") -> "Explained":
    """The maps of the images that the arguments name."""
    from gift_vit.errors import ConfigError
    from gift_vit.explain.inputs import find_class, image_files, read_samples, split_samples
    from gift_vit.run import choose_split

    if arguments.images is not None:
        if arguments.split is not None or arguments.class_ is not None or arguments.correct_only:
            raise ConfigError("images=… names files, which have no split or label; drop split, class and correct_only")
        return explainer.explain(read_samples(image_files(arguments.images)), arguments.count)
    split = choose_split(cfg, folder, arguments.split)
    label = None if arguments.class_ is None else find_class(arguments.class_, explainer.class_names)
    data = load_data(cfg, folder)
    count = 4 if arguments.count is None else arguments.count
    return explainer.explain(split_samples(data, split, label), count, arguments.correct_only)


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: explain_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
