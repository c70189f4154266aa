"""Reading back what W&B wrote of an offline run, and W&B as tests find it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record, RunRecord  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module", autouse=True)
def without_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B as a person without an account has it: no variable of its own, no login, a home folder of its own."""
    wandb.teardown()  # W&B reads its environment once per session
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            patch.delenv(name, raising=False)
        yield
        wandb.teardown()


def read_records(path: Path) -> list[Record]:
    """W&B's file: a header of 7 bytes, then LevelDB's log format (blocks of 32 KiB; per piece a checksum, a length, a type)."""
    data, position, pieces, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, last piece
            records.append(Record.FromString(pieces))
            pieces = b""
    return records


class Recorded(NamedTuple):
    folder: Path
    records: list[Record]

    def of(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self) -> RunRecord:
        (run,) = self.of("run")
        return run

    @property
    def config(self) -> dict[str, object]:
        return {item.key: json.loads(item.value_json) for item in self.run.config.update}

    @property
    def history(self) -> list[dict[str, float]]:
        return [{item.nested_key[0]: json.loads(item.value_json) for item in line.item} for line in self.of("history")]

    @property
    def summary(self) -> dict[str, object]:
        updates = [item for summary in self.of("summary") for item in summary.update]
        return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}

    @property
    def artifacts(self) -> list[ArtifactRecord]:
        return self.of("artifact")

    @property
    def exit_codes(self) -> list[int]:
        return [end.exit_code for end in self.of("exit")]


def recorded(folder: Path) -> Recorded:
    wandb.teardown()  # as at the end of a process: W&B's service writes the last bytes a moment after finish() returns
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return Recorded(folder, read_records(path))
