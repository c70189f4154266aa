"""Kinds are known without their files, which are imported when the kind is used."""

import sys
from importlib import import_module
from multiprocessing import get_context

import pytest
import timm

from gift_vit.methods.config import CONFIGS, GiftConfig, get_method, register_method

ROOM = "gift_vit.methods"


def loaded_by(kind: str) -> set[str]:
    """The files of the room that applying a kind imports; in a process of its own, where none is imported yet."""
    for name in [name for name in sys.modules if name.startswith(ROOM)]:
        del sys.modules[name]
    methods = import_module(ROOM)
    config = import_module(f"{ROOM}.config").CONFIGS[kind]
    assert f"{ROOM}.adapter" not in sys.modules, "options need neither torch nor any method"
    methods.apply_method(timm.create_model("test_vit", depth=1, num_classes=2), config())
    return {name.removeprefix(f"{ROOM}.") for name in sys.modules if name.startswith(f"{ROOM}.")}


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("gift", {"gift", "gift_schemas", "targets"}),
        ("bitfit", {"bitfit", "targets"}),
        ("lora", {"lora", "hf_peft", "targets"}),
    ],
)
def test_a_kind_imports_its_own_files(kind: str, files: set[str]) -> None:
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(loaded_by, [kind]) == {"adapter", "config", *files}


def test_a_kind_is_registered_once() -> None:
    get_method("gift")  # imports its file, which registers it
    for kind in ("gift", "more"):
        with pytest.raises(ValueError, match=f"'{kind}' or its GiftConfig is registered already"):
            register_method(kind, GiftConfig, merge=None)(lambda *_: None)
    assert "more" not in CONFIGS
