"""Tensors before they are used or written: finite, and in a file the same bytes whenever they are the same."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from gift_vit.common.errors import RunError
from gift_vit.common.files import atomic_path

_ALIGNMENT = 8  # bytes, of the header


def check_finite(what: str, **tensors: Tensor) -> None:
    """Refuse tensors that hold NaN or infinities; ``what`` says in an error what they are of.

    Raises:
        RunError: Names the first one.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            remedy = "the training diverged, repeat it with a lower optim.lr"
            raise RunError(f"{what}: {name} are NaN or infinite in places; {remedy}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors on the CPU as safetensors, atomically; equal content gives equal bytes.

    The library writes the metadata in a random order, a new one each time; here it is sorted.

    Raises:
        ConfigError: If the file cannot be written there.
        RunError: If the disk is full.
    """
    content = save(dict(tensors), dict(metadata) or None)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[end:])
