"""What is done with a finished run: scored again, or merged into a plain timm checkpoint."""

from pathlib import Path

import torch

from gift_vit.acceleration.accelerate import accelerate
from gift_vit.common.files import atomic_path
from gift_vit.common.tensors import check_finite, write_tensors
from gift_vit.engine.fit import Evaluation
from gift_vit.methods.adapter import merge_method
from gift_vit.runs.build import resolve_device, score
from gift_vit.runs.run import Run


def evaluate_split(run: Run, split: str, device: str = "auto") -> Evaluation:
    """Top-1 and loss of a finished run's model on one split of its data, computed as in training.

    Raises:
        ConfigError: If the run is not finished, its data or weights are no longer what they were, or there is no such split.
    """
    where, cfg = resolve_device(device), run.config
    model = run.model().to(where)
    accelerate(model, cfg.compute, cfg.trainer)
    return score(cfg, model, run.data(), split, where)


def write_merged(run: Run, out: Path) -> str:
    """Merge a finished run's adapter into its backbone and write the state dict; returns how to load it, for a person.

    Raises:
        ConfigError: If the run is not finished, or its method cannot be merged.
        RunError: If a merged weight is NaN or infinite, or the disk is full.
    """
    backbone = run.config.backbone
    model = merge_method(run.model())
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    check_finite(f"{out} is not written", **{f"the weights of {name}": tensor for name, tensor in state.items()})
    if out.suffix == ".safetensors":
        write_tensors(out, state, {"format": "pt"})
    else:
        with atomic_path(out) as partial, partial.open("wb") as file:
            torch.save(state, file)  # by name, it would put the temporary one into the file
    size = f", img_size={backbone.img_size}" if backbone.img_size else ""
    classes = len(state["head.bias"]) if "head.bias" in state else 0
    lines = [f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB); load it with"]
    if backbone.model.startswith("vit_mini"):
        lines.append("    import gift_vit.backbones.vit_mini  # registers vit_mini with timm")
    lines.append(f'    timm.create_model("{backbone.model}", num_classes={classes}{size}, checkpoint_path="{out}")')
    return "\n".join(lines)
