"""A run's record as it may be shown to others: what was done and what came of it, and nothing of the machine it was done on."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gift_vit.common.hub import PEFT_CONFIG, PEFT_FOLDER
from gift_vit.config.compose import PATHS
from gift_vit.runs.result import to_json
from gift_vit.runs.run import Run

# in place of the folders of a machine: what conf/paths/default.yaml says
_PLACES = {"output_root": "outputs", "data_root": "data", "cache_root": "data/cache"}
_TRACKER = {"kind": "none", "project": "gift-vit", "entity": None, "mode": "offline", "log_adapter": False}
_NAMED = (*PATHS, ("backbone", "model"))  # a folder, of a model of transformers
_PRIVATE = ("paths", "tracker", "hydra")  # sections of words that say where and for whom
_PATH = re.compile(r"(?<![\w.:/~<>-])~?(?:/[^/\s'\",;:()\[\]{}]+)+/?")  # an absolute path in a text; no address of the web


def shareable(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the record of a finished run, without paths, accounts and names of the machine."""
    result = run.record()
    record = json.loads(to_json(result))
    config = _shareable_config(record["run"]["config"])
    known = _known_paths(record["run"]["config"])
    names = record["data"]["class_names"]
    record = _without_paths(record, known)
    record["data"]["class_names"] = names  # words, though they may look like paths
    overrides = [word for given in result.run.overrides if (word := _shareable_word(given, config, known)) is not None]
    record["run"] |= {
        "config": config,
        "overrides": overrides,
        "command": shlex.join(["python", "-m", "gift_vit.train", *overrides]),
    }
    if "platform" in record["env"]:
        record["env"]["platform"] = str(record["env"]["platform"]).partition("-")[0]  # kernels have names, too
    return config, record


def shareable_peft_config(run: Run) -> dict[str, Any]:
    """What ``adapter/adapter_config.json`` says; of a backbone in a folder of the machine only the folder's name is left."""
    given = json.loads((run.folder / PEFT_FOLDER / PEFT_CONFIG).read_text(encoding="utf-8"))
    return _without_paths(given, _known_paths(run.record().run.config))


def _known_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """What stands for the folders that the configuration, this process and this person have; the longest ones first."""
    places = {str(config.get("paths", {}).get(key)): place for key, place in _PLACES.items()}
    here = {str(Path.cwd()): ".", str(Path.home()): "~"}
    named = {text: Path(text).name for section, key in _NAMED if (text := _absolute(config.get(section, {}), key))}
    below = {
        text: str(Path(place, Path(text).relative_to(root)))
        for text in named
        for root, place in places.items()
        if Path(text).is_relative_to(root)
    }
    known = {**here, **named, **below, **places}
    return {text: known[text] for text in sorted(known, key=len, reverse=True) if text.startswith("/") and len(text) > 1}


def _absolute(section: Any, key: str) -> str | None:
    text = section.get(key) if isinstance(section, dict) else None
    return text if isinstance(text, str) and text.startswith("/") else None


def _shareable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _without_paths(dict(config), _known_paths(config))
    return {**found, "paths": dict(_PLACES), "tracker": dict(_TRACKER)}


def _without_paths(value: Any, known: Mapping[str, str]) -> Any:
    """A value of JSON with each absolute path in it made relative to what everybody has, or reduced to its last part."""
    if isinstance(value, dict):
        return {_without_paths(key, known): _without_paths(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, known) for item in value]
    if not isinstance(value, str):
        return value
    for text, place in known.items():
        value = re.sub(rf"(?<![\w.~>-]){re.escape(text)}(?![\w.-])", lambda _, place=place: place, value)
    if value.startswith(("/", "~/", "../")):
        return Path(value).name
    return _PATH.sub(lambda found: Path(found[0]).name, value)


def _shareable_word(word: str, config: Mapping[str, Any], known: Mapping[str, str]) -> str | None:
    """A word of the command line; None: it says where or for whom the run was made."""
    key, equals, _ = word.lstrip("+~").partition("=")
    section, _, name = key.partition(".")
    if section.partition("@")[0].partition("/")[0] in _PRIVATE:
        return None
    if equals and (section, name) in _NAMED:
        return f"{key}={config.get(section, {}).get(name)}"
    return _without_paths(word, known)
