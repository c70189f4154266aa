"""Adapter files: what they hold, what does not fit them, and what a failed write leaves behind."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import gift_vit
from gift_vit.errors import ConfigError, RunError
from gift_vit.files import atomic_path, write_json, write_text
from gift_vit.methods import (
    GiftConfig,
    LinearConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    read_adapter,
    save_adapter,
)

CONFIG = GiftConfig(rank=4, target_modules=["attn.proj", "attn.v"], blocks=[0, 2])


@pytest.fixture
def trained(tiny_vit: nn.Module) -> nn.Module:
    """tiny_vit with an adapter and a head away from their start; tiny_vit itself stays plain."""
    torch.manual_seed(1)
    model = apply_method(deepcopy(tiny_vit), CONFIG)
    with torch.no_grad():
        for tensor in adapter_state_dict(model).values():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return model


@pytest.fixture
def path(trained: nn.Module, tmp_path: Path) -> Path:
    save_adapter(trained, tmp_path / "adapter.safetensors", dataset="cub", class_names=["Übervogel", "gull"])
    return tmp_path / "adapter.safetensors"


def rewrite(path: Path, metadata: dict[str, str | None], tensors: dict[str, Tensor | None] | None = None) -> None:
    """Change a file's metadata and tensors; None removes an entry."""
    with safe_open(path, framework="pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = {**file.metadata(), **metadata}
    new = {**old, **(tensors or {})}
    save_file(
        {name: tensor for name, tensor in new.items() if tensor is not None},
        path,
        metadata={key: value for key, value in facts.items() if value is not None},
    )


def test_a_file_holds_the_tensors_and_their_story(trained: nn.Module, path: Path) -> None:
    file = read_adapter(path)
    assert file.path == path
    assert list(file.tensors) == sorted(adapter_state_dict(trained))
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in adapter_state_dict(trained).items())
    fingerprint = file.metadata["backbone"].pop("weights_sha256")
    assert len(bytes.fromhex(fingerprint)) == 32
    assert file.metadata == {
        "format": "gift_vit adapter 1",
        "version": gift_vit.__version__,
        "method": {
            "kind": "gift",
            "rank": 4,
            "target_modules": ["attn.proj", "attn.v"],
            "blocks": [0, 2],
            "share": False,
            "schema": "linear",
            "phi_bias": False,
            "psi_bias": False,
            "num_blocks": 1,
            "norm": "l2",
            "pos_embed": "none",
            "num_heads": 1,
            "mlp_ratio": 2,
            "num_clusters": 64,
            "cluster_activation": "sigmoid",
            "channel_ratio": 2,
            "num_mixed_tokens": 64,
        },
        "backbone": {
            "architecture": "test_vit",
            "tag": "r160_in1k",
            "input_size": [3, 160, 160],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
        },
        "dataset": "cub",
        "class_names": ["Übervogel", "gull"],
    }


def test_a_file_is_small(trained: nn.Module, path: Path) -> None:
    count = count_parameters(trained)
    assert (count.adapter, count.head) == (2 * 2 * 64 * 4, 650)
    assert path.stat().st_size < 4 * (count.adapter + count.head) + 2048


def test_a_new_folder_is_made(trained: nn.Module, tmp_path: Path) -> None:
    save_adapter(trained, str(tmp_path / "new" / "folder" / "a.safetensors"))
    assert "dataset" not in read_adapter(tmp_path / "new" / "folder" / "a.safetensors").metadata


def test_the_fingerprint_follows_the_backbone_s_weights_only(tiny_vit: nn.Module, trained: nn.Module, tmp_path: Path) -> None:
    def fingerprint(model: nn.Module) -> str:
        save_adapter(model, tmp_path / "f.safetensors")
        return read_adapter(tmp_path / "f.safetensors").metadata["backbone"]["weights_sha256"]

    other_head = apply_method(deepcopy(tiny_vit), LinearConfig())
    with torch.no_grad():
        other_head.get_parameter("head.weight").zero_()
    assert fingerprint(trained) == fingerprint(other_head)
    with torch.no_grad():
        tiny_vit.get_parameter("blocks.3.norm1.bias").add_(0.01)
    assert fingerprint(apply_method(tiny_vit, LinearConfig())) != fingerprint(trained)


def test_loading_into_a_plain_model_applies_the_method(tiny_vit: nn.Module, trained: nn.Module, path: Path) -> None:
    images = torch.randn(1, 3, 160, 160)
    assert load_adapter(tiny_vit, str(path)) is tiny_vit
    assert torch.equal(tiny_vit(images), trained(images))
    assert {n for n, p in tiny_vit.named_parameters() if p.requires_grad} == set(adapter_state_dict(trained))
    assert merge_method(tiny_vit).get_submodule("blocks.0.attn.proj").__class__ is nn.Linear


def test_a_config_with_tuples_loads_its_own_file(tiny_vit: nn.Module, tmp_path: Path) -> None:
    model = apply_method(tiny_vit, GiftConfig(rank=4, target_modules=("attn.q", "attn.v")))  # pyright: ignore[reportArgumentType]
    save_adapter(model, tmp_path / "a.safetensors")
    load_adapter(model, tmp_path / "a.safetensors")


def test_missing_and_surplus_tensors(trained: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in adapter_state_dict(trained).items()}
    del state["gift.attn.v.psi"]
    state["gift.attn.k.psi"] = torch.zeros(4, 64)
    message = r"the adapter does not fit this model: 1 missing \(gift.attn.v.psi\), 1 surplus \(gift.attn.k.psi\)"
    with pytest.raises(ConfigError, match=message):
        load_adapter_state_dict(trained, state)


def test_long_lists_of_tensors_are_cut(trained: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"6 missing \(gift.attn.proj.phi, gift.*, gift.attn.v.phi and 3 more\), 0 surplus$"):
        load_adapter_state_dict(trained, {})


@pytest.mark.parametrize("broken", ["missing", "shape"])
def test_a_state_that_does_not_fit_changes_nothing(trained: nn.Module, broken: str) -> None:
    before = {name: tensor.clone() for name, tensor in adapter_state_dict(trained).items()}
    state = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    if broken == "missing":
        del state["head.bias"]
    else:
        state["head.bias"] = torch.ones(11)
    with pytest.raises(ConfigError, match=r"head\.bias"):
        load_adapter_state_dict(trained, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state_dict(trained).items())


def test_another_shape(tiny_vit: nn.Module, path: Path) -> None:
    rewrite(path, {}, {"gift.attn.v.psi": torch.zeros(8, 64)})
    message = r"gift.attn.v.psi has shape \(8, 64\), the model expects \(4, 64\)"
    with pytest.raises(ConfigError, match=message):
        load_adapter(tiny_vit, path)


def test_a_file_with_a_tensor_missing(tiny_vit: nn.Module, path: Path) -> None:
    rewrite(path, {}, {"gift.attn.v.psi": None})
    with pytest.raises(ConfigError, match=r"1 missing \(gift.attn.v.psi\), 0 surplus"):
        load_adapter(tiny_vit, path)


def test_another_config_of_the_same_method(tiny_vit: nn.Module, path: Path) -> None:
    apply_method(tiny_vit, GiftConfig(rank=8))
    with pytest.raises(ConfigError, match=r"adapter.safetensors was trained with .*'rank': 4.*, the model has .*'rank': 8"):
        load_adapter(tiny_vit, path)


def test_a_head_of_other_classes(path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7)
    message = "has a head of 10 classes, the model one of 7; create the model with num_classes=10"
    with pytest.raises(ConfigError, match=message):
        load_adapter(model, path)
    assert "gift.attn.v.phi" not in model.state_dict()


OTHERS = {
    "architecture": (
        {"model_name": "test_vit2"},
        "was trained on test_vit.r160_in1k with architecture test_vit, this model is test_vit2.r160_in1k with test_vit2",
    ),
    "img_size": (
        {"model_name": "test_vit", "img_size": 96},
        "was trained on test_vit.r160_in1k with input_size [3, 160, 160], this model is test_vit.r160_in1k with [3, 96, 96]",
    ),
    "mean": (
        {"model_name": "test_vit", "pretrained_cfg_overlay": {"mean": (0.485, 0.456, 0.406)}},
        "with mean [0.5, 0.5, 0.5], this model is test_vit.r160_in1k with [0.485, 0.456, 0.406]",
    ),
    "std": ({"model_name": "test_vit", "pretrained_cfg_overlay": {"std": (1, 1, 1)}}, "with std [0.5, 0.5, 0.5]"),
    "interpolation": (
        {"model_name": "test_vit", "pretrained_cfg_overlay": {"interpolation": "bilinear"}},
        "with interpolation bicubic, this model is test_vit.r160_in1k with bilinear",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("applied", [False, True], ids=["plain", "applied"])
def test_another_backbone(path: Path, arguments: dict[str, object], message: str, applied: bool) -> None:
    assert len(OTHERS) == 5
    model = timm.create_model(**arguments, num_classes=10)  # pyright: ignore[reportArgumentType]
    if applied:
        apply_method(model, CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_adapter(model, path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("; build the adapter's own backbone")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_other_weights_are_a_warning(trained: nn.Module, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(9)
    other = timm.create_model("test_vit", num_classes=10)
    with caplog.at_level(logging.WARNING):
        load_adapter(other, path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "was trained on other pretrained weights than this test_vit.r160_in1k holds" in caplog.text
    assert torch.equal(other.get_parameter("gift.attn.v.psi"), trained.get_parameter("gift.attn.v.psi"))


def test_the_same_weights_are_no_warning(tiny_vit: nn.Module, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        load_adapter(load_adapter(tiny_vit, path), path)
    assert caplog.records == []


def test_an_absent_file(tiny_vit: nn.Module, tmp_path: Path) -> None:
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ConfigError, match=f"no adapter file {missing}"):
            load_adapter(tiny_vit, missing)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"this is a text and no adapter", None], ids=["empty", "short", "text", "cut"]
)
def test_a_corrupt_file(tiny_vit: nn.Module, path: Path, content: bytes | None) -> None:
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ConfigError, match=r"adapter.safetensors is not a readable adapter file: \w"):
        load_adapter(tiny_vit, path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"method": "{}", "backbone": "{}"}], ids=["none", "pt", "alike"])
def test_a_file_of_another_project(tiny_vit: nn.Module, tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"base_model.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "peft.safetensors", metadata=metadata)
    with pytest.raises(
        ConfigError, match=r"peft.safetensors is not an adapter of this project: its metadata does not say format"
    ):
        load_adapter(tiny_vit, tmp_path / "peft.safetensors")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kind": "gitf", "rank": 4}, "unknown method kind 'gitf'; did you mean gift?"),
        ({"kind": "gift", "rank": 4, "scale": 2}, "GiftConfig: Key 'scale' not in 'GiftConfig'"),
        ({"kind": "gift", "rank": "four"}, "GiftConfig: Value 'four' of type 'str' could not be converted to Integer"),
        ({"kind": "gift", "rank": 0}, "method.rank=0: expected a whole number"),
    ],
    ids=["kind", "field", "type", "value"],
)
def test_a_method_this_version_does_not_know(tiny_vit: nn.Module, path: Path, method: dict[str, object], message: str) -> None:
    rewrite(path, {"method": json.dumps(method)})
    with pytest.raises(ConfigError) as caught:
        load_adapter(tiny_vit, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_distilled_model_has_two_heads(tmp_path: Path) -> None:
    model = apply_method(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3), GiftConfig())
    assert count_parameters(model).head == 2 * (3 * 192 + 3)
    save_adapter(model, tmp_path / "a.safetensors")
    assert {"head.weight", "head_dist.weight"} < set(read_adapter(tmp_path / "a.safetensors").tensors)
    load_adapter(model, tmp_path / "a.safetensors")


def test_something_that_is_no_timm_model() -> None:
    with pytest.raises(ConfigError, match=r"Linear has no get_classifier\(\); expected a timm model"):
        apply_method(nn.Linear(2, 2), LinearConfig())


def test_something_that_is_no_config(tiny_vit: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"dict is not a method config \(known: .*GiftConfig"):
        apply_method(tiny_vit, {"kind": "gift"})


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(1), SystemExit),
        (ValueError("no fault of the disk"), ValueError),
        (OSError(errno.EIO, "Input/output error"), OSError),
        (OSError(errno.ENOSPC, "No space left on device"), RunError),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), RunError),
        (PermissionError(errno.EACCES, "Permission denied"), ConfigError),
    ],
    ids=["killed", "exit", "value", "io", "full", "full_in_safetensors", "permission"],
)
def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path: Path, error: BaseException, seen: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(seen) as caught:
        write()
    assert caught.value is error or (str(path) in str(caught.value) and "\n" not in str(caught.value))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_nan_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "file.json").read_text()) == {"loss": 1.5}
    assert os.listdir(tmp_path) == ["file.json"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: writing fails in the operating system, as on a full disk."""
    resource = pytest.importorskip("resource", reason="needs a Unix file-size limit")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 1024])
def test_an_adapter_that_cannot_be_written_leaves_the_old_one(trained: nn.Module, path: Path, size: int) -> None:
    old = path.read_bytes()
    with torch.no_grad():
        trained.get_parameter("gift.attn.v.psi").zero_()
    with largest_file(size), pytest.raises((OSError, SafetensorError), match="File too large"):
        save_adapter(trained, path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]
    save_adapter(trained, path)
    assert path.read_bytes() != old


def test_a_full_disk_is_one_line_and_leaves_the_old_adapter(
    trained: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = path.read_bytes()

    def save_half(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(old[:500])
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("gift_vit.methods.adapter.save_file", save_half)
    with pytest.raises(RunError, match=r"no space left on the device while writing .*adapter.safetensors; free some"):
        save_adapter(trained, path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_in_place_of_the_file(trained: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        save_adapter(trained, tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_file_older_than_an_option_has_its_default(trained: nn.Module, path: Path) -> None:
    logged = read_adapter(path).metadata["method"]
    del logged["num_clusters"]
    rewrite(path, {"method": json.dumps(logged)})
    assert load_adapter(trained, path) is trained
