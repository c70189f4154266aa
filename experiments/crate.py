"""Describe finished runs so that an archive understands them: ``python -m experiments.crate``."""

import mimetypes
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gift_vit.common import cli
from gift_vit.common.checks import Options
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import sha256_of, write_json
from gift_vit.results.names import method_name
from gift_vit.runs.result import PREDICTIONS, Result
from gift_vit.runs.run import ADAPTER, CONFIG, LOG, METRICS, RESULT, Run, file_hashes, finished_below

CRATE = "ro-crate-metadata.json"
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"
PAPER = "https://arxiv.org/abs/2312.00700"
SOFTWARE = f"{PAPER}#gift-vit"  # the profile wants an absolute address, and the software has none of its own
_WRITTEN = {
    CONFIG: "Configuration",
    ADAPTER: "Adapter and classification head",
    RESULT: "Record of the run",
    PREDICTIONS: "Predictions",
    METRICS: "Metrics of each epoch",
    LOG: "Log",
}


@dataclass
class Arguments(Options):
    """Write ro-crate-metadata.json (RO-Crate 1.1, Process Run Crate 0.5) into the folders of finished runs.

        python -m experiments.crate run=<folder>
        python -m experiments.crate runs=<root>

    Attributes:
        run: a run's folder
        runs: a folder with runs; every finished one below it is described
        license: an address that says under which licence the runs are given, such as https://spdx.org/licenses/CC-BY-4.0

    A folder that is described so can be given to an archive, such as Zenodo or WorkflowHub, as it is. What is in it is not
    changed: config.yaml, result.json and train.log have the paths of the machine that the run was made on.
    """

    run: str | None = None
    runs: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.run is None) == (self.runs is None):
            raise ConfigError("give run=<a run's folder> or runs=<a folder with runs>, one of them")
        if self.license is not None and not self.license.startswith(("https://", "http://")):
            raise ConfigError(f"license={self.license}: expected an address, such as https://spdx.org/licenses/CC-BY-4.0")


def crate(run: Run, licence: str | None = None) -> dict[str, Any]:
    """The metadata of a finished run's folder as JSON-LD.

    Raises:
        ConfigError: If the run is not finished, or is an imported adapter.
    """
    result = run.record("that says how it was made")
    files = [name for name in dict.fromkeys((*_WRITTEN, *file_hashes(run.folder))) if (run.folder / name).is_file()]
    ended = _ended(result)
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{method_name(result.run.method)} on {result.data.name}, seed {result.run.seed}",
        "description": f"A run of gift-vit: {result.run.command}",
        "datePublished": ended,
        "license": {"@id": licence} if licence else "Not stated",
        "conformsTo": {"@id": PROFILE},
        "hasPart": [{"@id": name} for name in files],
        "mentions": {"@id": "#training"},
    }
    about = {"@id": CRATE, "@type": "CreativeWork", "conformsTo": {"@id": SPECIFICATION}, "about": {"@id": "./"}}
    stated = [{"@id": licence, "@type": "CreativeWork", "name": "Licence of the run"}] if licence else []
    entities = [about, root, *_process(result, files, ended), *(_file(run.folder, name) for name in files), *stated]
    return {"@context": [f"{SPECIFICATION}/context", {"sha256": SHA256}], "@graph": entities}


def _ended(result: Result) -> str:
    """When the run was done, to the second: ISO 8601."""
    ended = datetime.fromisoformat(result.run.started_at) + timedelta(seconds=result.cost.total_seconds)
    return ended.isoformat(timespec="seconds")


def _process(result: Result, files: list[str], ended: str) -> list[dict[str, Any]]:
    """What was done, by what, with what, and what came of it."""
    data, backbone = result.data, result.backbone
    return [
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {
            "@id": "#training",
            "@type": "CreateAction",
            "name": result.run.command,
            "instrument": {"@id": SOFTWARE},
            "object": [{"@id": name} for name in (CONFIG, "#data", "#backbone") if name.startswith("#") or name in files],
            "result": [{"@id": name} for name in files if name != CONFIG],
            "startTime": result.run.started_at,
            "endTime": ended,
            "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        },
        {
            "@id": SOFTWARE,
            "@type": "SoftwareApplication",
            "name": "gift-vit",
            "url": PAPER,
            "softwareVersion": f"{result.run.gift_vit_version} ({result.run.git_sha or 'no checkout'})",
        },
        {
            "@id": "#data",
            "@type": "Dataset",
            "name": data.name,
            "identifier": data.fingerprint,
            "description": f"{data.num_classes} classes; trained on {data.train_split}, {data.train_images} {result.thing}s",
        },
        {
            "@id": "#backbone",
            "@type": "CreativeWork",
            "name": str(backbone["architecture"]),
            "identifier": str(backbone["weights_sha256"]),
            "description": f"Pretrained weights: {backbone['weights']}",
        },
    ]


def _file(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    kind = {".safetensors": "application/octet-stream", ".parquet": "application/vnd.apache.parquet"}.get(file.suffix)
    kind = kind or {".yaml": "application/yaml", ".jsonl": "application/jsonl"}.get(file.suffix)
    return {
        "@id": name,
        "@type": "File",
        "name": _WRITTEN.get(name, name),
        "encodingFormat": kind or mimetypes.guess_type(name)[0] or "text/plain",
        "contentSize": str(file.stat().st_size),
        "sha256": sha256_of(file),
    }


def write_crates(arguments: Arguments) -> None:
    """Write, and say where."""
    runs = [Run.open(arguments.run)] if arguments.run else finished_below(str(arguments.runs))
    failed: list[ConfigError | RunError] = []
    for run in runs:
        try:
            write_json(run.folder / CRATE, crate(run, arguments.license))
            print(run.folder / CRATE)
        except (ConfigError, RunError) as error:  # noqa: PERF203 - one run is not the next one's matter
            failed.append(error)
    if failed:
        others = f" ({len(failed)} of {len(runs)} runs have no crate)" if len(runs) > 1 else ""
        raise type(failed[0])(f"{failed[0]}{others}")


def main() -> None:
    cli.main(Arguments, write_crates)


if __name__ == "__main__":
    main()
