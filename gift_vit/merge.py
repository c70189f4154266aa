"""Merge a finished run's adapter into its backbone: a plain timm checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from gift_vit import cli

USAGE = """
Merge a finished run's adapter into its backbone and write a plain timm checkpoint.

    python -m gift_vit.merge run=<folder> out=<file>

    run    the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or one of gift_vit.import_gift
    out    the file to write: .safetensors or .pth

timm.create_model(<name>, num_classes=<classes>, checkpoint_path=<file>) loads it; it predicts the same as the run's model.
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    out: str = MISSING


def merge_run(arguments: Arguments) -> None:
    """Rebuild the run's model, merge it, and write its state dict."""
    import torch
    from safetensors.torch import save_file

    from gift_vit.errors import ConfigError
    from gift_vit.files import atomic_path
    from gift_vit.methods import merge_method
    from gift_vit.run import load_finished_model, load_run

    folder, out = Path(arguments.run), Path(arguments.out)
    if out.suffix not in {".safetensors", ".pth"}:
        raise ConfigError(f"out={out}: expected a name that ends in .safetensors or .pth")
    cfg = load_run(folder)
    model = merge_method(load_finished_model(cfg, folder))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(out) as partial:
        if out.suffix == ".safetensors":
            save_file(state, partial, metadata={"format": "pt"})
        else:
            torch.save(state, partial)
    size = f", img_size={cfg.backbone.img_size}" if cfg.backbone.img_size else ""
    classes = len(state["head.bias"]) if "head.bias" in state else 0
    print(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB); load it with")
    if cfg.backbone.model.startswith("vit_mini"):
        print("    import gift_vit.backbones  # registers vit_mini with timm")
    print(f'    timm.create_model("{cfg.backbone.model}", num_classes={classes}{size}, checkpoint_path="{out}")')


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: merge_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
