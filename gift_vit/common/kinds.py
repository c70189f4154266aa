"""Kinds of a thing: the options of each are known at once, and its file is imported when the kind is used."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from gift_vit.common.checks import one_of
from gift_vit.common.errors import ConfigError

Entry = TypeVar("Entry")


class Kinds(Generic[Entry]):
    """What is registered for each kind, in ``entries`` for those that have been used.

    Args:
        thing: What they are kinds of, in a sentence.
        room: The package with a file for each kind.
        configs: The dataclass of each kind's options; those that are registered later are added to it. A kind that it has not
            may be a file of the room that registers options of its own.
        files: The names of files that are not those of their kinds.
    """

    def __init__(self, thing: str, room: str, configs: dict[str, type[Any]], files: Mapping[str, str] | None = None) -> None:
        self._thing, self._room, self._configs, self._files = thing, room, configs, files or {}
        self.entries: dict[str, Entry] = {}

    def config_class(self, kind: str) -> type[Any]:
        """The dataclass of a kind's options; an unknown kind is an error that lists the known ones."""
        if kind not in self._configs and kind.isidentifier() and find_spec(f"{self._room}.{kind}"):
            import_module(f"{self._room}.{kind}")
        one_of(sorted(self._configs))(f"{self._thing} kind", kind)
        return self._configs[kind]

    def register(self, kind: str, config_cls: type[Any], entry: Entry) -> None:
        """Make ``entry`` that of a kind; a kind or a config class is registered once."""
        if kind in self.entries or any((known == kind) != (cls is config_cls) for known, cls in self._configs.items()):
            raise ValueError(f"{self._thing} kind {kind!r} or its {config_cls.__name__} is registered already")
        self._configs[kind] = config_cls
        self.entries[kind] = entry

    def get(self, kind: str) -> Entry:
        """What is registered for a kind; an unknown one is an error that lists the known kinds."""
        self.config_class(kind)
        if kind not in self.entries:
            import_module(f"{self._room}.{self._files.get(kind, kind)}")
        return self.entries[kind]

    def kind_of(self, cfg: object) -> str:
        """The kind whose options ``cfg`` is."""
        for kind, config_cls in self._configs.items():
            if type(cfg) is config_cls:
                return kind
        known = ", ".join(sorted(config_cls.__name__ for config_cls in self._configs.values()))
        raise ConfigError(f"{type(cfg).__module__}.{type(cfg).__name__} is not a {self._thing} config (known: {known})")
