"""``metrics.jsonl``: one JSON line per finished epoch."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gift_vit.files import write_text, writing


class MetricsFile:
    """Observer that appends each epoch's record; resuming, it starts from the checkpoint's history: no line lost or doubled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def resumed(self, history: list[dict[str, float]]) -> None:
        """Write the records of the epochs that are done."""
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in history))

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Nothing to write yet."""

    def step_done(self, loss: Tensor, lr: float, images: int) -> None:
        """Steps are not recorded."""

    def epoch_done(self, record: Mapping[str, float]) -> None:
        """Append one line."""
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")
