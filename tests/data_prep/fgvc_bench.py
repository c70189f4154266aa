"""A small FGVC dataset on a server, ready to be prepared."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_prep.fgvc.facts import DatasetFacts
from data_prep.fgvc.prepare import prepare
from data_prep.fgvc.workspace import Arguments
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.config import SplitListsConfig
from tests.conf.files import composed
from tests.data_prep.fgvc_trees import SMALL, Small
from tests.data_prep.http_server import FileServer

BY_HAND = {"nabirds": "nabirds.tar.gz", "cars": "archive.zip"}


class Bench:
    """A small dataset on a server, with its by-hand archives in place, and its data root."""

    def __init__(self, name: str, root: Path, server: FileServer) -> None:
        self.small: Small = SMALL[name]()
        self.facts: DatasetFacts = self.small.facts(server.serve)
        self.server, self.root, self.folder = server, root, root / name
        if name in BY_HAND:
            (root / "downloads").mkdir(parents=True, exist_ok=True)
            (root / "downloads" / BY_HAND[name]).write_bytes(self.small.files[BY_HAND[name]])

    def put_lists(self, folder: Path) -> None:
        """The paper's lists, in a folder as the authors' ``data/`` is."""
        (folder / self.facts.lists_folder).mkdir(parents=True)
        for split in self.small.lists:
            (folder / self.facts.lists_folder / f"{split}.json").write_bytes(self.small.list_bytes(split))

    def prepare(self, facts: DatasetFacts | None = None, **request: Any) -> dict[str, Any]:
        typed: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in request.items()}
        return prepare(facts or self.facts, Arguments(self.facts.name, str(self.root), **typed))

    def read(self, kind: str = "paper") -> VisionDataset:
        """The dataset through its YAML."""
        values = OmegaConf.to_container(composed(f"dataset={self.small.name}").dataset, resolve=True)
        assert isinstance(values, dict)
        values |= {"root": str(self.folder), "splits_dir": f"splits/{kind}", "num_classes": self.facts.classes}
        del values["kind"]
        cfg: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SplitListsConfig), values))
        return build_dataset(cfg)

    def lists(self, kind: str) -> dict[str, dict[str, Any]]:
        return {file.stem: json.loads(file.read_text()) for file in sorted((self.folder / "splits" / kind).iterdir())}

    def record(self) -> dict[str, Any] | None:
        file = self.folder / "prepared.json"
        return json.loads(file.read_text()) if file.exists() else None
