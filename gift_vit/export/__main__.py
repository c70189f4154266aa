"""Write a finished run's model as ONNX or as a torch program."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.checks import Options, one_of, writable_file
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.common.packages import require
from gift_vit.runs.run import Run, no_runs_file

SUFFIXES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
"""Endings of file names, and the packages that write and check such a file."""
PRECISIONS = ("fp32", "fp16")


@dataclass
class Arguments(Options):
    """Write a finished run's model as one file, run that file, and compare its logits with the model's.

        python -m gift_vit.export run=<folder> out=<model.onnx | model.pt2>

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or one of gift_vit.import_gift
        out: the file to write: .onnx, or .pt2 for torch.export.load
        precision: fp32 or fp16: of the weights and inside; images and logits stay fp32
        preprocessing: true: the file takes pixels (B, S, S, 3) of 0 to 255, and normalises them itself; false: it takes
            normalised images (B, 3, S, S)
        adapter_inputs: true: adapter and head are inputs, so that one file serves many runs; those of this run are written
            beside it, as .safetensors
        dataset_root: the dataset.root of now, if the data is not where it was during training

    The adapter is merged where the method allows it. Class names, mean, std and size are in the file. Images of the run's own
    split are compared, or drawn ones where the data is not there.
    """

    run: str = MISSING
    out: Annotated[str, writable_file, no_runs_file] = MISSING
    precision: Annotated[str, one_of(PRECISIONS)] = "fp32"
    preprocessing: bool = False
    adapter_inputs: bool = False
    dataset_root: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix not in SUFFIXES:
            raise ConfigError(f"out={self.out}: expected a name that ends in {' or '.join(SUFFIXES)}")


def export(arguments: Arguments) -> None:
    """Write the file, and say how it compares."""
    out = expanded(arguments.out)
    run = Run.open(arguments.run, arguments.dataset_root)
    run.check_takes_images("ONNX files and torch programs")
    require(f"out={out}", *SUFFIXES[out.suffix], install="gift-vit[export]")
    from gift_vit.export.write import export_run  # torch: what is missing is told without it

    print(export_run(run, out, arguments.precision, arguments.preprocessing, arguments.adapter_inputs))


def main() -> None:
    """Entry point."""
    cli.main(Arguments, export)


if __name__ == "__main__":
    main()
