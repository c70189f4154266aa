"""Files of tensors that are the same bytes whenever they hold the same."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from gift_vit.common.files import atomic_path

_ALIGNMENT = 8  # bytes, of the header


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
