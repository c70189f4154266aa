"""The paper's split lists: fetched or copied, and taken only with the right SHA-256."""

import json
from pathlib import Path

from data_prep.download import fetch, verify
from data_prep.fgvc.workspace import Lists, Workspace
from gift_vit.errors import ConfigError


def paper_files(work: Workspace) -> dict[str, Path]:
    """A verified copy of each split's list: in ``splits_from`` where that is given, else fetched into the archives' folder."""
    given, folder = work.request.splits_from, work.facts.lists_folder
    if given is None:
        return {split: fetch(file, work.archives / "fgvc_splits" / folder) for split, file in work.facts.lists.items()}
    found = {split: given.expanduser() / folder / f"{split}.json" for split in work.facts.lists}
    for split, path in found.items():
        if not path.is_file():
            raise ConfigError(
                f"splits_from={given}: there is no file {path}; "
                "give a folder like data/ of the repository github.com/savadikarc/gift"
            )
        verify(path, work.facts.lists[split])
    return found


def paper_lists(work: Workspace) -> Lists:
    """The paper's lists themselves."""
    return {split: json.loads(path.read_bytes()) for split, path in paper_files(work).items()}
