"""Tensors before they are used or written: finite, and in a file the same bytes whenever they are the same."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gift_vit.common.errors import RunError
from gift_vit.common.files import atomic_path

log = logging.getLogger(__name__)
IGNORED = -100  # the label of an example that does not count, which F.cross_entropy ignores unless told otherwise

Made = TypeVar("Made")

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


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """A tensor's values as a buffer of bytes, for a hash."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def read_made(
    path: Path, make: Callable[[dict[str, Tensor], dict[str, str]], Made], device: torch.device | str = "cpu"
) -> Made | None:
    """What ``make`` makes of a safetensors file's tensors and metadata; None, with a warning, of one that cannot be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return make(tensors, file.metadata() or {})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        log.warning("making %s anew: %s", path, " ".join(str(error).split()))
        return None


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
