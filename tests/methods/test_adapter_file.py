"""Adapter files: what they hold, what does not fit them, and what a failed write leaves behind."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

import gift_vit
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path, write_json, write_text
from gift_vit.methods import (
    GiftConfig,
    LinearConfig,
    LoraConfig,
    ToastConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    read_adapter,
    save_adapter,
)
from gift_vit.methods.adapter import applied_method
from tests.methods.checks import drawn, randomise, refused

CONFIG = GiftConfig(rank=4, target_modules=["attn.proj", "attn.v"], blocks=[0, 2])
NAMES = ["Übervogel", "gull", *"abcdefgh"]


@pytest.fixture
def trained(tiny_vit: nn.Module) -> nn.Module:
    """tiny_vit with an adapter and a head away from their start; tiny_vit itself stays plain."""
    model = drawn(deepcopy(tiny_vit), CONFIG).float()
    randomise(model.get_submodule("head"))
    return model


@pytest.fixture
def path(trained: nn.Module, tmp_path: Path) -> Path:
    save_adapter(trained, tmp_path / "adapter.safetensors", dataset="cub", class_names=NAMES)
    return tmp_path / "adapter.safetensors"


def rewrite(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Change a file's metadata and tensors."""
    with safe_open(path, framework="pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = {**file.metadata(), **metadata}
    save_file({**old, **tensors}, path, metadata=facts)


def test_a_file_holds_the_tensors_and_their_story(trained: nn.Module, path: Path) -> None:
    file = read_adapter(path)
    assert file.path == path
    assert list(file.tensors) == sorted(adapter_state_dict(trained))
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in adapter_state_dict(trained).items())
    for key in ("weights_sha256", "weights_spread_sha256"):
        assert len(bytes.fromhex(file.metadata["backbone"].pop(key))) == 32
    assert file.metadata == {
        "format": "gift_vit adapter 1",
        "version": gift_vit.__version__,
        "method": {
            **{"kind": "gift", "rank": 4, "target_modules": ["attn.proj", "attn.v"], "blocks": [0, 2], "share": False},
            **{"schema": "linear", "phi_bias": False, "psi_bias": False, "num_blocks": 1, "norm": "l2", "pos_embed": "none"},
            **{"num_heads": 1, "mlp_ratio": 2, "num_clusters": 64, "cluster_activation": "sigmoid", "channel_ratio": 2},
            **{"num_mixed_tokens": 64, "init": "gift", "alpha": None},
        },
        "backbone": {
            **{"architecture": "test_vit", "tag": "r160_in1k", "input_size": [3, 160, 160], "interpolation": "bicubic"},
            **{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "global_pool": "token"},
        },
        "dataset": "cub",
        "class_names": NAMES,
    }
    assert path.stat().st_size < 4 * (2 * 2 * 64 * 4 + 650) + 2048, "the file is small"


def test_the_fingerprint_follows_the_backbone_s_weights_only(tiny_vit: nn.Module, trained: nn.Module, tmp_path: Path) -> None:
    def fingerprint(model: nn.Module) -> list[str]:
        save_adapter(model, tmp_path / "f.safetensors")
        backbone = read_adapter(tmp_path / "f.safetensors").metadata["backbone"]
        return [backbone["weights_sha256"], backbone["weights_spread_sha256"]]

    other_head = apply_method(deepcopy(tiny_vit), LinearConfig())
    with torch.no_grad():
        other_head.get_parameter("head.weight").zero_()
    assert fingerprint(trained) == fingerprint(other_head)
    with torch.no_grad():
        tiny_vit.get_parameter("blocks.3.norm1.bias").add_(0.01)
    pairs = zip(fingerprint(apply_method(tiny_vit, LinearConfig())), fingerprint(trained), strict=True)
    assert all(own != theirs for own, theirs in pairs)


def test_a_part_of_the_backbone_that_was_merged_is_other_weights(tiny_vit: nn.Module, tmp_path: Path) -> None:
    merged = apply_method(deepcopy(tiny_vit), GiftConfig(rank=4, target_modules=["attn.v"]))
    for name in applied_method(merged).adapter_names:
        nn.init.normal_(merged.get_parameter(name))
    save_adapter(apply_method(merge_method(merged), LinearConfig()), tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="was trained on other pretrained weights"):
        load_adapter(tiny_vit, tmp_path / "a.safetensors", strict=True)
    older = {"backbone": read_adapter(tmp_path / "a.safetensors").metadata["backbone"]}
    del older["backbone"]["weights_spread_sha256"]
    rewrite(tmp_path / "a.safetensors", {key: json.dumps(value) for key, value in older.items()}, {})
    load_adapter(tiny_vit, tmp_path / "a.safetensors", strict=True)


def test_a_file_that_training_started_from_is_told_by_its_name(tiny_vit: nn.Module, tmp_path: Path) -> None:
    model = apply_method(tiny_vit, ToastConfig(weights="/home/wilhelmine/decoders.pth"))
    load_adapter_state_dict(model, adapter_state_dict(model))  # which stands for its start
    save_adapter(model, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").metadata["method"]["weights"] == "decoders.pth"
    other = apply_method(timm.create_model("test_vit", num_classes=10), ToastConfig(weights="/moved/decoders.pth"))
    with pytest.warns(UserWarning, match="other pretrained weights"):
        load_adapter(other, tmp_path / "a.safetensors")


def test_a_head_that_came_later_is_saved_too(tmp_path: Path) -> None:
    def features() -> Any:
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=0)

    model = apply_method(features(), GiftConfig(rank=4))
    model.reset_classifier(3)
    assert (count_parameters(model).head, count_parameters(model).adapter) == (64 * 3 + 3, 2 * 64 * 4)
    save_adapter(model, tmp_path / "a.safetensors")
    assert {"head.weight", "head.bias"} <= set(load_file(tmp_path / "a.safetensors"))
    other = features()
    other.reset_classifier(3)
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(load_adapter(other, tmp_path / "a.safetensors").eval()(images), model.eval()(images))
    model.reset_classifier(0)
    assert count_parameters(model).head == 0


def test_what_was_trained_and_would_be_lost_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    trained.get_submodule("norm").requires_grad_(True)
    with pytest.raises(
        ConfigError, match=r"norm\.weight, norm\.bias is trainable and belongs to neither the adapter nor the head"
    ):
        save_adapter(trained, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"class_names": [0, 1]}, "its names are no texts"),
        ({"format": "mine"}, "format is the file's own"),
        ({"backbone": "my vit"}, "string indices"),
        ({"seen": {1, 2}}, "set is not JSON serializable"),
    ],
)
def test_metadata_that_could_not_be_read_back_is_refused(
    trained: nn.Module, tmp_path: Path, metadata: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"is not written: .*{reason}.*; expected metadata that JSON can hold"):
        save_adapter(trained, tmp_path / "a.safetensors", **metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"blocks": range(2)}, "range is not JSON serializable"),
        ({"rank": np.int64(4)}, "int64 is not JSON serializable"),
        ({"blocks": [1.0]}, "Value '1.0' of type 'float' could not be converted to Integer"),
    ],
)
def test_a_config_that_no_file_can_hold_is_refused_before_training(
    tiny_vit: nn.Module, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        apply_method(tiny_vit, GiftConfig(**options))
    apply_method(tiny_vit, GiftConfig())


def test_a_config_with_tuples_loads_its_own_file_from_a_new_folder(tiny_vit: nn.Module, tmp_path: Path) -> None:
    model = apply_method(tiny_vit, GiftConfig(rank=4, target_modules=("attn.q", "attn.v")))  # pyright: ignore[reportArgumentType]
    save_adapter(model, str(tmp_path / "new" / "folder" / "a.safetensors"))
    load_adapter(model, tmp_path / "new" / "folder" / "a.safetensors")


def test_a_state_that_does_not_fit_is_told_and_changes_nothing(trained: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in adapter_state_dict(trained).items()}
    state = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    surplus = {**state, "gift.attn.k.psi": torch.ones(4, 64)}
    del surplus["gift.attn.v.psi"]
    for wrong, message in (
        (surplus, r"the adapter does not fit this model: 1 missing \(gift.attn.v.psi\), 1 surplus \(gift.attn.k.psi\)"),
        ({}, r"6 missing \(gift.attn.proj.phi, gift.*, gift.attn.v.phi and 3 more\), 0 surplus$"),
        (state | {"head.bias": torch.ones(11)}, r"head\.bias has shape \(11,\), the model expects \(10,\)"),
        (
            state | {"head.bias": torch.ones(10).double()},
            r"head\.bias has numbers of the kind torch\.float64, the model expects",
        ),
        (state | {"head.bias": torch.ones(10).int()}, r"head\.bias has numbers of the kind torch\.int32, the model expects"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_adapter_state_dict(trained, wrong)
        assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state_dict(trained).items())


# the file's method, the rank of one of its tensors
FILES: dict[str, tuple[dict[str, object], int, str]] = {
    "kind": ({"kind": "gitf"}, 4, "unknown method kind 'gitf'; did you mean gift?"),
    "field": ({"scale": 2}, 4, "GiftConfig: Key 'scale' not in 'GiftConfig'"),
    "type": ({"rank": "four"}, 4, "GiftConfig: Value 'four' of type 'str' could not be converted to Integer"),
    "value": ({"rank": 0}, 4, "method.rank=0: expected a whole number"),
    "shape": ({}, 8, "the adapter does not fit this model: gift.attn.v.psi has shape (8, 64), the model expects (4, 64)"),
}


@pytest.mark.parametrize(("method", "rank", "message"), FILES.values(), ids=FILES)
def test_a_file_that_does_not_fit(tiny_vit: nn.Module, path: Path, method: dict[str, Any], rank: int, message: str) -> None:
    method = {"kind": "gift", **asdict(CONFIG), **method}
    rewrite(path, {"method": json.dumps(method)}, {"gift.attn.v.psi": torch.zeros(rank, 64)})
    with refused(message):
        load_adapter(tiny_vit, path)


def test_a_model_of_other_numbers_is_told_what_to_do(tiny_vit: nn.Module, path: Path) -> None:
    with refused(f"{path} has a head of torch.float32, the model one of torch.bfloat16; load it into a model of torch.float32"):
        load_adapter(deepcopy(tiny_vit).to(torch.bfloat16), path)
    load_adapter(tiny_vit, path).to(torch.bfloat16)


def test_a_file_of_a_converted_model_loads(tiny_vit: nn.Module, trained: nn.Module, tmp_path: Path) -> None:
    """A method draws its own parameters in fp32, whatever the backbone's numbers are."""
    rounded = {name: tensor.clone() for name, tensor in adapter_state_dict(trained.half()).items()}
    save_adapter(trained, tmp_path / "a.safetensors")
    for model in (deepcopy(tiny_vit), tiny_vit.half()):
        loaded = adapter_state_dict(load_adapter(model, tmp_path / "a.safetensors"))
        assert {tensor.dtype for name, tensor in loaded.items() if name.startswith("gift.")} == {torch.float32}
        assert all(torch.equal(tensor.half(), rounded[name]) for name, tensor in loaded.items())


def test_home_folders_are_known(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_adapter(trained, "~/a.safetensors")
    assert (tmp_path / "a.safetensors").is_file()
    load_adapter(trained, "~/a.safetensors")


def test_a_config_that_changes_later_is_another_s(tiny_vit: nn.Module, tmp_path: Path) -> None:
    """A loop that goes on with the same object would change what a file says of the model before."""
    config = GiftConfig(rank=4, target_modules=["attn.proj"], alpha=4)
    model, images = drawn(deepcopy(tiny_vit), config).float().eval(), torch.randn(2, 3, 160, 160)
    expected = model(images)
    config.alpha, config.rank = 400, 8
    config.target_modules.append("mlp.fc1")
    save_adapter(model, tmp_path / "a.safetensors")
    torch.testing.assert_close(load_adapter(tiny_vit, tmp_path / "a.safetensors").eval()(images), expected)


def test_what_cannot_be_used_is_not_written(trained: nn.Module, tiny_vit: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for names, reason in ((["a"] * 9, "9 class_names for 10 classes"), ("a" * 10, "no list"), ({"0": "a"}, "no list")):
        with pytest.raises(ConfigError, match=rf"is not written: .*{reason}"):
            save_adapter(trained, file, class_names=names)
    trained.get_parameter("head.bias").data[3] = float("nan")
    with pytest.raises(RunError, match=r"a.safetensors is not written: values of head.bias are NaN or infinite"):
        save_adapter(trained, file)
    waiting = apply_method(tiny_vit, LoraConfig(init="eva"))
    with pytest.raises(ConfigError, match=r"is not written: method 'lora' with .*'eva'.* call initialise_method"):
        save_adapter(waiting, file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrapper", [nn.DataParallel, ModelEmaV3])
def test_a_model_that_is_wrapped_is_saved_or_asked_for(trained: nn.Module, tmp_path: Path, wrapper: Any) -> None:
    wrapped = wrapper(trained)
    if wrapper is nn.DataParallel:
        save_adapter(wrapped, tmp_path / "a.safetensors")
        assert count_parameters(wrapped) == count_parameters(trained)
        with pytest.raises(ConfigError, match=r"compiled or wrapped \(DataParallel\)"):
            apply_method(wrapped, CONFIG)
    else:
        with pytest.raises(ConfigError, match=r"this ModelEmaV3 is around a model with a method; give its .module"):
            save_adapter(wrapped, tmp_path / "a.safetensors")
        save_adapter(wrapped.module, tmp_path / "a.safetensors")


def test_what_is_refused_after_it_was_applied_leaves_what_was_trained(tiny_vit: nn.Module) -> None:
    vit = timm.create_model("test_vit", num_classes=0)
    with pytest.raises(ConfigError, match="finds nothing to train"):
        apply_method(vit, LinearConfig())
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_hooks_that_are_lost_are_told(tiny_vit: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    tiny_vit.get_submodule("blocks.1.attn.proj").register_forward_hook(lambda *_: None)
    tiny_vit.get_submodule("blocks.1.norm1").register_forward_hook(lambda *_: None)
    apply_method(tiny_vit, GiftConfig(rank=2))
    assert caplog.messages == [
        "hooks of blocks.1.attn.proj are called no more: other modules stand in their place; register them again"
    ]
    tiny_vit.get_submodule("blocks.2.attn.proj").register_forward_hook(lambda *_: None)
    merge_method(tiny_vit)
    assert caplog.messages[1].startswith("hooks of blocks.2.attn.proj are called no more")


def test_another_config_of_the_same_method(tiny_vit: nn.Module, path: Path) -> None:
    apply_method(tiny_vit, GiftConfig(rank=8))
    with pytest.raises(
        ConfigError, match=r"was trained with rank=4, target.*attn.v'\], blocks=\[0, 2\], the model has rank=8,"
    ):
        load_adapter(tiny_vit, path)


def test_the_order_of_blocks_is_no_difference(tiny_vit: nn.Module, path: Path) -> None:
    load_adapter(apply_method(tiny_vit, replace(CONFIG, blocks=[2, 0])), path, strict=True)
    with pytest.raises(ConfigError, match=r"was trained with blocks=\[0, 2\], the model has blocks=\[2, 3\]$"):
        load_adapter(apply_method(merge_method(tiny_vit), replace(CONFIG, blocks=[3, 2])), path)


def test_a_head_of_other_classes(path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7)
    with refused(f"{path} has a head of 10 classes, the model one of 7; create the model with num_classes=10"):
        load_adapter(model, path)
    assert "gift.attn.v.phi" not in model.state_dict()


# what is different of the backbone: how to create it, the adapter's value and the model's
OTHERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "architecture": ({"model_name": "test_vit2"}, "test_vit", "test_vit2"),
    "input_size": ({"img_size": 96}, "[3, 160, 160]", "[3, 96, 96]"),
    "mean": ({"pretrained_cfg_overlay": {"mean": (0.485, 0.456, 0.406)}}, "[0.5, 0.5, 0.5]", "[0.485, 0.456, 0.406]"),
    "std": ({"pretrained_cfg_overlay": {"std": (1, 1, 1)}}, "[0.5, 0.5, 0.5]", "[1, 1, 1]"),
    "interpolation": ({"pretrained_cfg_overlay": {"interpolation": "bilinear"}}, "bicubic", "bilinear"),
}


@pytest.mark.parametrize("key", OTHERS)
def test_another_backbone(path: Path, key: str) -> None:
    arguments, theirs, own = OTHERS[key]
    model = timm.create_model(**{"model_name": "test_vit", "num_classes": 10, **arguments})
    if key != "input_size":  # a model to which a method is applied is told the same
        apply_method(model, CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = f"{arguments.get('model_name', 'test_vit')}.r160_in1k"
    trained_on = f"{path} was trained on test_vit.r160_in1k with {key} {theirs}"
    with refused(f"{trained_on}, this model is {name} with {own}; build the adapter's own backbone"):
        load_adapter(model, path)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_other_weights_are_a_warning(tiny_vit: nn.Module, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    load_adapter(load_adapter(tiny_vit, path), path)
    assert caplog.records == [], "the same weights"
    torch.manual_seed(9)
    message = "was trained on other pretrained weights than this test_vit.r160_in1k holds"
    with pytest.warns(UserWarning, match=message) as caught:
        other = load_adapter(timm.create_model("test_vit", num_classes=10), path)
    assert caught[0].filename == __file__, "it is the caller's"
    with pytest.raises(ConfigError, match=message):
        load_adapter(timm.create_model("test_vit", num_classes=10), path, strict=True)
    load_adapter(tiny_vit, path, strict=True)
    assert torch.equal(other.get_parameter("gift.attn.v.psi"), tiny_vit.get_parameter("gift.attn.v.psi"))


def test_no_adapter_file(tiny_vit: nn.Module, path: Path) -> None:
    for missing in (path.with_name("none.safetensors"), path.parent):
        with refused(f"no adapter file {missing}"):
            load_adapter(tiny_vit, missing)
    for content in (path.read_bytes()[:-100], b"", b"abc", b"this is a text and no adapter"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"adapter.safetensors is not a readable adapter file: \w"):
            load_adapter(tiny_vit, path)
    for metadata in (None, {"format": "pt"}, {"method": "{}", "backbone": "{}"}):
        save_file({"base_model.lora_A.weight": torch.zeros(2, 2)}, path, metadata=metadata)
        with refused(f"{path} is not an adapter of this project: its metadata does not say format 'gift_vit adapter 1'"):
            load_adapter(tiny_vit, path)


DAMAGES: dict[str, tuple[dict[str, str], str]] = {
    "no json": ({"method": "{"}, "has damaged metadata"),
    "a list": ({"method": "[]"}, "has damaged metadata"),
    "a number": ({"backbone": "3"}, "has damaged metadata"),
    "names that are numbers": ({"class_names": "[1]"}, "has damaged metadata"),
    "another kind": ({"method": '{"kind": "gitf"}'}, "unknown method kind 'gitf'"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_metadata_is_one_line(tiny_vit: nn.Module, path: Path, changes: dict[str, str], message: str) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | changes)
    with pytest.raises(ConfigError, match=message):
        load_adapter(tiny_vit, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tiny_vit: nn.Module, path: Path, value: float) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["head.bias"][3] = value
    save_file(tensors, path, metadata)
    with pytest.raises(ConfigError, match=r"adapter\.safetensors: head\.bias holds values that are not finite"):
        load_adapter(tiny_vit, path)


def test_a_distilled_model_has_two_heads(tmp_path: Path) -> None:
    model = apply_method(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3), GiftConfig())
    assert count_parameters(model).head == 2 * (3 * 192 + 3)
    save_adapter(model, tmp_path / "a.safetensors")
    assert {"head.weight", "head_dist.weight"} < set(read_adapter(tmp_path / "a.safetensors").tensors)
    load_adapter(model, tmp_path / "a.safetensors")


def test_something_that_is_no_timm_model_or_no_config(tiny_vit: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"Linear has no get_classifier\(\); expected a timm model"):
        apply_method(nn.Linear(2, 2), LinearConfig())
    with pytest.raises(ConfigError, match=r"dict is not a method config \(known: .*GiftConfig"):
        apply_method(tiny_vit, {"kind": "gift"})


SERIALIZING = "Error while serializing: I/O error: No space left on device (os error 28)"
FULL = "no space left on the device while writing {}; free some and start the same command again"
FORBIDDEN = "cannot write {} (Permission denied); choose another folder or change its permissions"
WRITE_ERRORS: dict[str, tuple[BaseException, type[BaseException], str]] = {
    "killed": (KeyboardInterrupt("killed"), KeyboardInterrupt, "killed"),
    "exit": (SystemExit(1), SystemExit, "1"),
    "value": (ValueError("no fault of the disk"), ValueError, "no fault of the disk"),
    "io": (OSError(errno.EIO, "Input/output error"), OSError, "[Errno 5] Input/output error"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), RunError, FULL),
    "full_in_safetensors": (SafetensorError(SERIALIZING), RunError, FULL),
    "permission": (PermissionError(errno.EACCES, "Permission denied"), ConfigError, FORBIDDEN),
}


@pytest.mark.parametrize(("error", "seen", "message"), WRITE_ERRORS.values(), ids=WRITE_ERRORS)
def test_a_write_that_is_cut_off_leaves_the_old_file(
    tmp_path: Path, error: BaseException, seen: type[BaseException], message: str
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(seen) as caught:
        write()
    assert str(caught.value) == message.format(path)
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
    (taken := path.with_name("taken")).mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*taken \(Is a directory\)"):  # a folder in place of the file
        save_adapter(trained, taken)
    assert path.read_bytes() == old
    assert set(os.listdir(path.parent)) == {path.name, "taken"}
    save_adapter(trained, path)
    assert path.read_bytes() != old


def test_a_file_older_than_an_option_has_its_default(trained: nn.Module, path: Path) -> None:
    logged = read_adapter(path).metadata["method"]
    del logged["num_clusters"]
    rewrite(path, {"method": json.dumps(logged)}, {})
    assert load_adapter(trained, path) is trained
