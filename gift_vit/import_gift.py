"""Turn a checkpoint that the authors of GIFT released into a folder with an adapter of this project."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from gift_vit import cli
from gift_vit.compose import compose_config
from gift_vit.errors import ConfigError, did_you_mean
from gift_vit.paths import conf_dir

if TYPE_CHECKING:
    from gift_vit.config import RunConfig
    from gift_vit.released import Released

USAGE = """
Turn a checkpoint that the authors of GIFT released into a folder that evaluate and merge take for run=.

    python -m gift_vit.import_gift <last.pth.tar> dataset=cub out=<folder>

    dataset   what it was trained on: cub, nabirds, flowers, cars or dogs
    out       the folder to write, such as outputs/final/cub/gift/vit_b16_in21k/released
    weights   a local file with the backbone's pretrained weights (default: timm's source, the hub)

The released files are artifacts/<dataset>/gift/final/final/last.pth.tar of https://github.com/savadikarc/gift.
Nothing in a checkpoint is run: it may hold tensors, plain values and an argparse.Namespace; all else is refused.

The folder holds adapter.safetensors for gift_vit.methods.load_adapter, config.yaml (the authors' protocol), and imported.json:
the file's SHA-256 and the score its authors report. There is no result.json, so no table takes it for a run of this project.
"""

_HEADER = "# Made by gift_vit.import_gift, for evaluate and merge. What is known of the training is in imported.json.\n"


@dataclass
class Arguments:
    """Words of the command line."""

    file: str = MISSING
    dataset: str = MISSING
    out: str = MISSING
    weights: str | None = None


def import_checkpoint(arguments: Arguments) -> None:
    """Read a released checkpoint, check that it fits its backbone and dataset, and write the folder; ``imported.json`` last.

    Raises:
        ConfigError: If the checkpoint cannot be imported, is of another dataset, or the folder is taken.
    """
    from gift_vit.files import write_json, write_text, writing
    from gift_vit.layout import ADAPTER, CONFIG, IMPORTED
    from gift_vit.methods import count_parameters, save_adapter
    from gift_vit.methods.adapter import applied_method, describe_method
    from gift_vit.released import DATASETS, read_released

    if arguments.dataset not in DATASETS.values():
        known = ", ".join(DATASETS.values())
        hint = did_you_mean(arguments.dataset, DATASETS.values())
        raise ConfigError(f"dataset={arguments.dataset} has no released checkpoints{hint} (known: {known})")
    released, folder = read_released(Path(arguments.file)), Path(arguments.out)
    _check_free(folder, released.sha256)
    cfg = _run_config(released, arguments)
    model = _fill_model(released, cfg)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Which weights exactly the authors' code loaded is not known, only their name.
    backbone = applied_method(model).backbone | {"weights_sha256": None}
    save_adapter(model, folder / ADAPTER, dataset=cfg.dataset.name, backbone=backbone)
    write_text(folder / CONFIG, _HEADER + OmegaConf.to_yaml(OmegaConf.create(cfg.values)))
    counts = count_parameters(model)
    write_json(
        folder / IMPORTED,
        {
            "file": released.file.name,
            "sha256": released.sha256,
            "trained_by": "the authors of GIFT (github.com/savadikarc/gift)",
            "dataset": cfg.dataset.name,
            "num_classes": released.num_classes,
            "backbone": backbone,
            "method": describe_method(released.method),
            "params": {**asdict(counts), "percent": counts.percent},
            "epochs": released.epochs,
            "reported": {"split": released.split, "top1": released.top1},
            "arguments": released.arguments,
        },
    )
    print(
        f"wrote {folder}: {counts.adapter:,} adapter parameters and a head of {released.num_classes} classes; "
        f"its authors report {released.split} top-1 {released.top1:.2f} %\n"
        f"    python -m gift_vit.evaluate run={folder}\n"
        f"    python -m gift_vit.merge run={folder} out={cfg.dataset.name}.safetensors"
    )


def _run_config(released: "Released", arguments: Arguments) -> "RunConfig":
    """The config of the run that the authors' code made, as far as it is known."""
    from gift_vit.config import load_config

    if released.dataset != arguments.dataset:
        raise ConfigError(
            f"{released.file} was trained on {released.dataset}, not on {arguments.dataset}; give dataset={released.dataset}"
        )
    words = [f"dataset={released.dataset}", f"backbone={_backbone_label(released)}", "method=gift", "protocol=gift_paper"]
    cfg = compose_config([*words, "phase=final", "run_name=imported"])
    cfg.method.rank, cfg.method.target_modules = released.method.rank, released.method.target_modules
    cfg.backbone.weights = arguments.weights
    for key in ("lr", "weight_decay"):
        cfg.optim[key] = released.arguments.get(key)
    cfg.seed = released.arguments.get("seed")
    checked = load_config(cfg)
    if checked.dataset.num_classes != released.num_classes:
        expected = checked.dataset.num_classes
        raise ConfigError(f"{released.file} has a head of {released.num_classes} classes; {released.dataset} has {expected}")
    return checked


def _backbone_label(released: "Released") -> str:
    """The config of the backbone with the checkpoint's timm name."""
    labels: dict[str, str] = {}
    for file in sorted((conf_dir() / "backbone").glob("*.yaml")):
        values: Any = OmegaConf.to_container(OmegaConf.load(file))
        labels[values["model"]] = file.stem
    if released.backbone not in labels:
        raise ConfigError(
            f"{released.file} has the backbone {released.backbone}, of which there is no config (known: {', '.join(labels)}); "
            "add a file to conf/backbone"
        )
    return labels[released.backbone]


def _fill_model(released: "Released", cfg: "RunConfig") -> Any:
    """The checkpoint's backbone, its weights random, with adapter and head loaded: whatever does not fit is an error."""
    from gift_vit.backbones import build_backbone
    from gift_vit.methods import apply_method, load_adapter_state_dict

    try:
        model = build_backbone(replace(cfg.backbone, pretrained=False, weights=None), released.num_classes)
        load_adapter_state_dict(apply_method(model, released.method), released.tensors)
    except ConfigError as error:
        raise ConfigError(f"{released.file} does not fit {released.backbone}: {error}") from error
    return model


def _check_free(folder: Path, sha256: str) -> None:
    """Refuse a folder that holds a run, or another checkpoint."""
    from gift_vit.layout import CHECKPOINT, IMPORTED, LOG, RESULT

    taken = [name for name in (RESULT, CHECKPOINT, LOG) if (folder / name).exists()]
    if (folder / IMPORTED).is_file() and json.loads((folder / IMPORTED).read_text())["sha256"] != sha256:
        taken.append(IMPORTED)
    if taken:
        raise ConfigError(f"{folder} holds a run or another checkpoint ({taken[0]}); give out=<another folder>")


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: import_checkpoint(cli.parse_arguments(Arguments, USAGE, positional="file"))))


if __name__ == "__main__":
    main()
