"""The two kinds of file: how a recorded graph is written to one, and how one is run."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gift_vit.common.errors import ConfigError, RunError

Compute: TypeAlias = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""From images, and the other inputs in order, to logits."""
_MOST_ONNX_BYTES = 2**31
FACTS = "gift_vit.json"  # in a .pt2 file; an .onnx file has them as metadata


def write_onnx(program: ExportedProgram, path: Path, names: Sequence[str], facts: dict[str, Any]) -> None:
    """Write ONNX, the facts as JSON in its metadata.

    Raises:
        RunError: If the batch became a constant.
        ConfigError: If the weights are more than one such file can hold.
    """
    import onnx  # pyright: ignore[reportMissingImports] - of an extra

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size >= _MOST_ONNX_BYTES:
        raise ConfigError(
            f"{size / 2**30:.1f} GiB of weights do not fit into an .onnx file, which holds 2; "
            "give precision=fp16 or out=<model.pt2>"
        )
    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, input_names=list(names), output_names=["logits"], external_data=False, verbose=False
        )
    assert made is not None, "dynamo=True makes one"
    model = made.model_proto
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not batch:
        raise RunError("the size of its batch would be fixed")
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param == batch:
            first.dim_param = "batch"
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, str(path), format="protobuf")


def open_onnx(path: Path) -> Compute:
    """Run an ONNX file on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports] - of an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def compute(images: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, (images, *tensors), strict=True)}
        [logits] = session.run(["logits"], feeds)
        return torch.from_numpy(logits)

    return compute


def write_pt2(program: ExportedProgram, path: Path, names: Sequence[str], facts: dict[str, Any]) -> None:
    """Write torch's own format, the facts as JSON in the file :data:`FACTS` inside."""
    content = io.BytesIO()  # a full disk would end the process in torch's own writer
    with quiet():
        torch.export.save(program, content, extra_files={FACTS: json.dumps({**facts, "inputs": list(names)})})
    path.write_bytes(content.getbuffer())


def open_pt2(path: Path) -> Compute:
    """Run a torch program on the CPU."""
    with quiet(), path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images, tensors: module(images, tuple(tensors)) if tensors else module(images)


FORMATS = {".onnx": (write_onnx, open_onnx), ".pt2": (write_pt2, open_pt2)}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings about their own insides; what is written is run and compared."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # where torch prints what it could not follow
        warnings.simplefilter("ignore")
        for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export", "torch.fx"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
