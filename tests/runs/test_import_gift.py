"""Importing the authors' checkpoints: the four real ones where they are present, and small ones of the same form."""

import json
import logging
import os
import pickle
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from gift_vit import evaluate, import_gift, merge
from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig
from gift_vit.methods import GiftConfig, count_parameters, load_adapter, merge_method, read_adapter
from gift_vit.methods.adapter import applied_method
from gift_vit.results.collect import collect_results
from gift_vit.runs.imported import import_checkpoint
from gift_vit.runs.released import DATASETS, read_released
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from tests.tolerance import TOLERANCE
from tests.warm import run_module

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = SHARED / "gift_released"
IN, OUT, BIAS = (f"{part}_projections.attn:proj.{kind}" for part, kind in (("in", "weight"), ("out", "weight"), ("in", "bias")))
NO = "is no checkpoint of GIFT that can be imported: "
FILES = {"adapter.safetensors", "config.yaml", "imported.json"}
# dataset → file, classes, test top-1, learning rate, weight decay
RELEASED = {
    "cub": ("CUB.pth.tar", 200, 89.7135, 1e-4, 1e-4),
    "flowers": ("OxfordFlowers.pth.tar", 102, 99.2194, 5e-4, 1e-2),
    "cars": ("StanfordCars.pth.tar", 196, 84.2806, 2.5e-4, 1e-4),
    "dogs": ("StanfordDogs.pth.tar", 120, 87.4359, 1e-4, 0.0),
}


def import_file(file: Path, folder: Path, dataset: str = "cub", weights: str | None = None) -> None:
    import_checkpoint(read_released(file, dataset), folder, weights)


needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the authors' checkpoints in ../shared/data/gift_released")


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """ViT-B/16 with random weights; tests give it a head and leave it without a method."""
    torch.manual_seed(0)
    return timm.create_model("vit_base_patch16_224.augreg_in21k").eval()


@needs_real
@pytest.mark.parametrize("dataset", RELEASED)
def test_the_released_checkpoints(dataset: str, vit: Any, tmp_path: Path) -> None:
    assert len(RELEASED) == len(list(REAL.glob("*.pth.tar"))) == 4
    name, classes, top1, lr, weight_decay = RELEASED[dataset]
    words = ["gift_vit.import_gift", str(REAL / name), f"dataset={dataset}", "out=run"]
    done = run_module(*words, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert f"24,576 adapter parameters and a head of {classes} classes" in done.stdout

    record = json.loads((tmp_path / "run/imported.json").read_text())
    assert record["reported"] == {"split": "test", "top1": pytest.approx(top1, abs=5e-5)}
    assert (record["file"], record["num_classes"], record["epochs"]) == (name, classes, 100)
    digest = subprocess.run(["sha256sum", REAL / name], capture_output=True, text=True, check=True).stdout.split()[0]
    assert record["sha256"] == digest
    assert record["arguments"].items() >= {"lr": lr, "weight_decay": weight_decay, "seed": 42, "opt": "adamw"}.items()
    cfg = Run.open(tmp_path / "run").config
    assert (cfg.dataset.name, cfg.dataset.num_classes, cfg.protocol.name) == (dataset, classes, "gift_paper")
    assert (cfg.backbone.name, cfg.optim.lr, cfg.optim.weight_decay, cfg.seed) == ("vit_b16_in21k", lr, weight_decay, 42)

    with torch.serialization.safe_globals([Namespace]):
        theirs = torch.load(REAL / name, map_location="cpu", weights_only=True)["state_dict"]
    phi, psi = (theirs[f"{side}_projections.attn:proj.weight"].T.double() for side in ("in", "out"))
    assert (phi.shape, psi.shape) == ((768, 16), (16, 768))
    vit.reset_classifier(classes)
    plain = vit.get_submodule("blocks.7.attn.proj").weight.detach().clone()
    load_adapter(vit, tmp_path / "run/adapter.safetensors")
    assert applied_method(vit).config == cfg.method == GiftConfig(rank=16, target_modules=["attn.proj"])
    counts = count_parameters(vit)
    assert (counts.adapter, counts.head, counts.backbone) == (24_576, 769 * classes, 85_798_656)
    assert torch.equal(vit.head.weight, theirs["backbone.head.weight"])
    assert torch.equal(vit.head.bias, theirs["backbone.head.bias"])
    assert psi.abs().max() > 1e-3, "it has been trained"
    merge_method(vit)
    expected = plain.double() + plain.double() @ phi @ psi
    torch.testing.assert_close(vit.get_submodule("blocks.7.attn.proj").weight.double(), expected, atol=1e-6, rtol=1e-6)


@needs_real
def test_delta_weight_and_merging_of_a_released_checkpoint(vit: Any, tmp_path: Path) -> None:
    import_file(REAL / "CUB.pth.tar", tmp_path / "run")
    vit.reset_classifier(200)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 224, 224, generator=generator)
    with torch.no_grad():
        before = vit(image)
        load_adapter(vit, tmp_path / "run/adapter.safetensors")
        unmerged = vit(image)
        layer = vit.get_submodule("blocks.3.attn.proj")
        weight, saved = torch.randn(768, 768, generator=generator, dtype=torch.float64), layer.weight.data
        tensors = read_adapter(tmp_path / "run/adapter.safetensors").tensors
        phi, psi = (tensors[f"gift.attn.proj.{name}"].double() for name in ("phi", "psi"))
        vit.gift.double()
        layer.weight.data = weight
        torch.testing.assert_close(layer.delta_weight(), weight @ phi @ psi, **TOLERANCE[torch.float64])
        vit.gift.float()
        layer.weight.data = saved
        merged = merge_method(vit)(image)
    torch.testing.assert_close(merged, unmerged, **TOLERANCE[torch.float32])
    assert (unmerged - before).abs().max() > 0.1
    fresh = timm.create_model("vit_base_patch16_224.augreg_in21k", num_classes=200)
    assert {n: t.shape for n, t in vit.state_dict().items()} == {n: t.shape for n, t in fresh.state_dict().items()}


@pytest.mark.skipif(not (SHARED / "fgvc_splits").is_dir(), reason="needs the paper's lists in ../shared/data/fgvc_splits")
@pytest.mark.parametrize("name", DATASETS)
def test_a_head_numbers_the_classes_as_our_one_class_map(name: str) -> None:
    """The authors' loader sorts the ids of train alone, ours those of all splits."""
    folder = SHARED / "fgvc_splits" / name.lower()
    lists = [json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val", "test")]
    together = sorted({class_id for listed in lists for class_id in listed.values()})
    assert sorted(set(lists[0].values())) == together


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a checkpoint in the authors' form for test_vit on CUB; ``args`` and ``state`` are changes, None removes."""

    def build(args: dict[str, Any] | None = None, state: dict[str, Any] | None = None, **changes: Any) -> Path:
        torch.manual_seed(1)
        options = {"method": "gift", "dataset": "CUB", "pretrained": True, "initial_checkpoint": "", "mean": None, "std": None}
        options |= {
            "lr": 5e-4,
            "weight_decay": 0.01,
            "seed": 42,
            "evaluate": True,
            "model_kwargs": {},
            "opt_betas": [0.9, 0.999],
        }
        options |= {"hypernet_target_modules": ["attn:proj"], "hypernet_block_block_type": "simple_block", **(args or {})}
        tensors = {"backbone.head.weight": 0.1 * torch.randn(200, 64), "backbone.head.bias": torch.randn(200)}
        tensors |= {IN: torch.randn(4, 64), OUT: 0.1 * torch.randn(64, 4), **(state or {})}
        checkpoint = {
            "epoch": 99,
            "arch": "test_vit.r160_in1k",
            "state_dict": {key: value for key, value in tensors.items() if value is not None},
            "optimizer": {"state": {}, "param_groups": []},
            "version": 2,
            "args": Namespace(**{key: value for key, value in options.items() if value is not ...}),
            "metric": 51.25,
            **changes,
        }
        path = tmp_path / "last.pth.tar"
        torch.save({key: value for key, value in checkpoint.items() if value is not ...}, path)
        return path

    return build


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """CUB's layout with one small image for each of 200 classes, the same in all splits."""
    root = tmp_path / "cub"
    (root / "splits/paper").mkdir(parents=True)
    listed = {}
    for number in range(200):
        path = root / "CUB_200_2011/images" / f"{number + 1:03}.Bird" / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 16), (number, 255 - number, 40)).save(path)
        listed[f"{number + 1:03}.Bird/0.png"] = f"{number + 1:03}"
    for split in ("train", "val", "test"):
        (root / "splits/paper" / f"{split}.json").write_text(json.dumps(listed))
    return root


def test_evaluate_and_merge_take_an_imported_folder(
    write: Write, birds: Path, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run, merged = tmp_path / "a run", tmp_path / "merged.safetensors"
    assert command(import_gift, str(write()), "dataset=cub", f"out={run}") == 0
    assert f"python -m gift_vit.evaluate 'run={run}'\n" in capsys.readouterr().out
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("workers: 4", "workers: 0"))
    assert command(evaluate, f"run={run}", f"dataset_root={birds}", "device=cpu") == 0
    scored, reported = capsys.readouterr().out.splitlines()[-2:]
    assert scored.startswith("cub test: top-1 ")
    assert scored.endswith("200 images")
    assert reported == "imported from last.pth.tar, reported test top-1 51.25 %"
    assert command(merge, f"run={run}", f"out={merged}") == 0
    plain = timm.create_model("test_vit.r160_in1k", num_classes=200, checkpoint_path=str(merged)).eval()
    tuned = Run.open(run).model()
    images = torch.rand(3, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), tuned(images), **TOLERANCE[torch.float32])
    assert collect_results(run) == [], "no table takes it for a run"


def test_an_imported_folder_is_not_trained_in(write: Write, configure: Callable[..., RunConfig]) -> None:
    cfg = configure()
    import_file(write(), cfg.folder)
    before = (cfg.folder / "adapter.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"holds an imported adapter; give run_name=<another name> or delete it"):
        train_run(cfg, Call("python -m gift_vit.train", []))
    assert {path.name for path in cfg.folder.iterdir()} == FILES
    assert (cfg.folder / "adapter.safetensors").read_bytes() == before


def content(folder: Path) -> dict[str, Any]:
    """Everything in an imported folder; safetensors writes its metadata in any order."""
    adapter = read_adapter(folder / "adapter.safetensors")
    tensors = {name: tensor.numpy().tobytes() for name, tensor in adapter.tensors.items()}
    files = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
    return {**files, "tensors": tensors, "metadata": adapter.metadata}


def test_the_folder_must_be_free_or_hold_the_same_checkpoint(write: Write, tmp_path: Path) -> None:
    file = write()
    import_file(file, tmp_path / "run")
    before = content(tmp_path / "run")
    import_file(file, tmp_path / "run")
    assert content(tmp_path / "run") == before
    write(metric=51.5)
    with pytest.raises(
        ConfigError, match=r"run holds a run or another checkpoint \(imported.json\); give out=<another folder>"
    ):
        import_file(file, tmp_path / "run")
    assert content(tmp_path / "run") == before
    for name in ("result.json", "last.ckpt", "train.log"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        with pytest.raises(ConfigError, match=rf"holds a run or another checkpoint \({name}\)"):
            import_file(file, tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]
    with pytest.raises(ConfigError, match="cannot write"):
        import_file(file, file)


def test_a_killed_import_leaves_no_folder_that_seems_complete(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write()
    with monkeypatch.context() as patch:
        patch.setattr("gift_vit.runs.imported.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_file(file, tmp_path / "run")
    with pytest.raises(ConfigError, match="is not finished"):
        Run.open(tmp_path / "run").model()
    import_file(file, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_several_targets_and_the_argument_names_of_the_published_code(write: Write, tmp_path: Path) -> None:
    extra = {"in_projections.mlp:fc2.weight": torch.randn(4, 192), "out_projections.mlp:fc2.weight": torch.randn(192, 4)}
    args = {"hypernet_target_modules": ..., "hypernet_block_block_type": ...}
    args |= {"gift_target_modules": ["mlp:fc2", "attn:proj"], "gift_block_block_type": "simple_block", "seed": 7}
    file = write(args=args | {"gift_block_act_layer": "identity"}, state=extra)
    import_file(file, tmp_path / "run")
    tensors = load_file(tmp_path / "run/adapter.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "gift.attn.proj.phi": (64, 4),
        "gift.attn.proj.psi": (4, 64),
        "gift.mlp.fc2.phi": (192, 4),
        "gift.mlp.fc2.psi": (4, 192),
        "head.weight": (200, 64),
        "head.bias": (200,),
    }
    assert torch.equal(tensors["gift.mlp.fc2.phi"], extra["in_projections.mlp:fc2.weight"].T)
    cfg = Run.open(tmp_path / "run").config
    assert (cfg.method.rank, cfg.method.target_modules, cfg.seed) == (4, ["attn.proj", "mlp.fc2"], 7)


def test_half_precision_and_a_score_on_val(write: Write) -> None:
    half = {IN: torch.ones(4, 64).bfloat16(), OUT: torch.ones(64, 4).bfloat16()}
    released = read_released(write(args={"evaluate": False}, state=half, epoch=24), "cub")
    assert {tensor.dtype for tensor in released.tensors.values()} == {torch.float32}
    assert (released.split, released.epochs, released.top1) == ("val", 25, 51.25)


def test_local_weights_are_named_in_the_config(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = {"backbone.head.weight": torch.randn(200, 384), IN: torch.randn(4, 384), OUT: torch.randn(384, 4)}
    file = write(state=state, arch="vit_small_patch16_224.augreg_in21k")
    import_file(file, Path("run"), weights="vit_s.safetensors")
    cfg = Run.open(tmp_path / "run").config
    assert (cfg.backbone.name, cfg.backbone.weights) == ("vit_s16_in21k", str(tmp_path / "vit_s.safetensors"))
    vit = timm.create_model("vit_small_patch16_224", num_classes=9)
    torch.save(vit.state_dict(), tmp_path / "vit_s.pth")
    import_file(file, Path("run"), weights="vit_s.pth")
    model = Run.open(tmp_path / "run").model()
    assert torch.equal(model.get_parameter("blocks.5.attn.proj.weight"), vit.get_parameter("blocks.5.attn.proj.weight"))


def test_weights_that_are_not_there_are_told_before_anything_is_written(
    write: Write, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(write()), f"out={tmp_path / 'new'}"]
    assert command(import_gift, *words, "dataset=cub", f"weights={tmp_path / 'none'}") == 2
    assert "cannot read" in capsys.readouterr().err
    assert command(import_gift, *words, "dataset=CUB") == 2
    assert "; did you mean cub?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_that_the_weights_fingerprint_is_not_known_is_said(
    write: Write, tmp_path: Path, tiny_vit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import_file(write(), tmp_path / "run")
    metadata = read_adapter(tmp_path / "run/adapter.safetensors").metadata
    assert metadata["backbone"]["weights_sha256"] is None
    assert (metadata["dataset"], "class_names" in metadata) == ("cub", False)
    tiny_vit.reset_classifier(200)
    with caplog.at_level(logging.INFO):
        load_adapter(tiny_vit, tmp_path / "run/adapter.safetensors")
    [told] = caplog.messages
    assert told.endswith(
        "does not say which weights it was trained on: make sure that this model holds the published ones of test_vit.r160_in1k"
    )


class Evil:
    """What a pickle can do on loading."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["attribute", "tensor", "optimizer", "whole", "legacy", "raw"])
def test_a_malicious_checkpoint_is_refused_and_runs_nothing(
    place: str, write: Write, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    evil = Evil(f"touch {marker}")
    file = tmp_path / "last.pth.tar"
    if place == "whole":
        torch.save(evil, file)
    elif place == "legacy":
        torch.save({"args": evil}, file, _use_new_zipfile_serialization=False)
    elif place == "raw":
        file.write_bytes(pickle.dumps(evil, protocol=2))
    elif place == "attribute":
        write(args={"device": evil})
    elif place == "tensor":
        write(state={"backbone.head.bias": evil})
    else:
        write(optimizer=evil)
    assert command(import_gift, str(file), "dataset=cub", f"out={tmp_path / 'run'}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {file} is refused: it asks for {os.system.__module__}.system, and a checkpoint needs only tensors, "
        "plain values and argparse.Namespace; nothing in it was run"
    )
    assert not marker.exists()
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(evil))
    assert marker.exists(), "elsewhere it would have run"


def test_a_malicious_pickle_of_a_protocol_that_torch_does_not_read(tmp_path: Path) -> None:
    file = tmp_path / "last.pth.tar"
    file.write_bytes(pickle.dumps(Evil(f"touch {tmp_path / 'marker'}"), protocol=4))
    with pytest.raises(ConfigError, match=r"is no readable PyTorch checkpoint, or it is cut short \(UnpicklingError\)$"):
        read_released(file, "cub")
    assert os.listdir(tmp_path) == [file.name]


def test_namespaces_are_allowed_for_this_reading_only(write: Write) -> None:
    read_released(write(), "cub")
    assert Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("part", [0, 1, 0.1, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_short(part: float, write: Write) -> None:
    file = write()
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content)) if isinstance(part, float) else part])
    with pytest.raises(ConfigError, match=r"last.pth.tar is no readable PyTorch checkpoint, or it is cut short \(\w+\)$"):
        read_released(file, "cub")


def of_targets(targets: list[str], pairs: list[str], width: int = 64, rank: int = 4, kept: bool = False) -> dict[str, Any]:
    """A checkpoint whose arguments name some targets, and whose pairs are of others (and of attn:proj where it is kept)."""
    tensors: dict[str, Any] = {} if kept else {IN: None, OUT: None}
    for pair in pairs:
        tensors |= {f"in_projections.{pair}.weight": torch.zeros(rank, width)}
        tensors |= {f"out_projections.{pair}.weight": torch.zeros(width, rank)}
    return {"args": {"hypernet_target_modules": targets}, "state": tensors}


SCHEMA = {"state": {"hypernets.attn:proj.blocks.0.attn.qkv.weight": torch.zeros(48, 16)}}
TRANSFORMER = {"args": {"hypernet_block_block_type": "transformer"}, "state": {"hypernets.attn:proj.0.norm": torch.zeros(2)}}
TWO = ["attn:proj", "mlp:fc1"]
HEAD_199 = {"backbone.head.weight": torch.zeros(199, 64), "backbone.head.bias": torch.zeros(199)}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "another schema": (TRANSFORMER, NO + "it was trained with gift_block_block_type='transformer'; expected 'simple_block'"),
    "parameters of a schema": (
        SCHEMA,
        NO + "its state_dict has hypernets.attn:proj.blocks.0.attn.qkv.weight; expected the head, and one in_ and "
        "out_projections.<target>.weight per target (the simple block, without biases)",
    ),
    "another activation": (
        {"args": {"gift_block_act_layer": "gelu"}},
        NO + "it was trained with gift_block_act_layer='gelu'; expected 'identity'",
    ),
    "a bias": ({"state": {BIAS: torch.zeros(4)}}, f"its state_dict has {BIAS}; expected the head"),
    "no psi": ({"state": {OUT: None}}, f"its state_dict lacks {OUT}; expected the head"),
    "no head": ({"state": {"backbone.head.bias": None}}, "its state_dict lacks backbone.head.bias; expected"),
    "psi not transposed": (
        {"state": {OUT: torch.zeros(4, 64)}},
        "attn:proj has in_projections (4, 64) and out_projections (4, 64); expected (r, d_in) and (d_in, r) with r = 4",
    ),
    "two ranks": (
        of_targets(TWO, ["mlp:fc1"], rank=2, kept=True),
        "mlp:fc1 has in_projections (2, 64) and out_projections (64, 2); expected (r, d_in) and (d_in, r) with r = 4",
    ),
    "another width": (
        of_targets(["attn:proj"], ["attn:proj"], width=96),
        "does not fit test_vit.r160_in1k: the adapter does not fit this model: gift.attn.proj.phi has shape (96, 4), the model "
        "expects (64, 4)",
    ),
    "integers": (
        {"state": {IN: torch.zeros(4, 64, dtype=torch.int64)}},
        f"{IN} is torch.int64 of shape (4, 64); expected floats",
    ),
    "one dimension": ({"state": {IN: torch.zeros(64)}}, "of shape (64,); expected floats, weights in 2"),
    "no tensor": ({"state": {"backbone.head.bias": [0.0]}}, "backbone.head.bias is a list; expected a tensor"),
    "a shared pair": (
        of_targets(TWO, ["shared_projection"]),
        "its pairs are of shared_projection, its args name attn:proj, mlp:fc1; expected one pair per target",
    ),
    "slices of qkv": (
        of_targets(["qkv"], ["q", "v"], width=4),
        "its pairs are of q, v, its args name qkv; expected one pair per target",
    ),
    "unknown target": (
        of_targets(["attn:prj"], ["attn:prj"]),
        "does not fit test_vit.r160_in1k: target 'attn.prj' matches no layer; name one of attn.qkv",
    ),
    "lora": ({"args": {"method": "lora"}}, NO + "it was trained with method='lora'; expected 'gift'"),
    "other weights": ({"args": {"initial_checkpoint": "x.pth"}}, "initial_checkpoint='x.pth'; expected ''"),
    "no weights": ({"args": {"pretrained": False}}, "it was trained with pretrained=False; expected True"),
    "other statistics": ({"args": {"mean": [0.4]}}, "it was trained with mean=[0.4]; expected None"),
    "no args": ({"args_": ...}, "its args are a NoneType; expected an argparse.Namespace"),
    "args as a dict": ({"args_": {"method": "gift"}}, "its args are a dict; expected an argparse.Namespace"),
    "no metric": ({"metric": ...}, "metric None; expected a timm name, a whole number and a percentage"),
    "metric nan": ({"metric": float("nan")}, "metric nan; expected a timm name"),
    "another backbone": ({"arch": "resnet50"}, "has the backbone resnet50, of which there is no config (known: "),
    "a VTAB task": (
        {"args": {"dataset": "vtab-dtd"}},
        "it was trained on vtab-dtd; expected one of CUB, nabirds, OxfordFlowers",
    ),
    "another dataset": ({"args": {"dataset": "StanfordDogs"}}, "was trained on dogs, not on cub; give dataset=dogs"),
    "another class count": ({"state": HEAD_199}, "has a head of 199 classes; cub has 200"),
    "a head of two minds": (
        {"state": {"backbone.head.bias": torch.zeros(199)}},
        "head.bias has shape (199,), the model expects (200,)",
    ),
    "no numbers": ({"state": {"backbone.head.bias": torch.full((200,), float("nan"))}}, "holds values that are not finite"),
    "a target for targets": ({"args": {"hypernet_target_modules": "attn:proj"}}, "gift_target_modules='attn:proj'; expected a"),
    "targets of nothing": ({"args": {"hypernet_target_modules": None}}, "gift_target_modules=None; expected a list of targets"),
    "no learning rate": ({"args": {"lr": ...}}, "optim.lr"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_imported_is_one_line(
    name: str, write: Write, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = MISTAKES[name]
    file = write()
    if "args_" in changes:
        checkpoint = torch.load(file, weights_only=False) | {"args": changes["args_"]}
        torch.save({key: value for key, value in checkpoint.items() if value is not ...}, file)
    else:
        file = write(**changes)
    assert command(import_gift, str(file), "dataset=cub", f"out={tmp_path / 'run'}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


FOREIGN = {
    "it holds cls_token, ": lambda state: state,
    "its args are a NoneType": lambda state: {"state_dict": state},
    "its state_dict lacks backbone.head.weight, backbone.head.bias, ": lambda state: {
        "state_dict": state,
        "args": Namespace(model="test_vit"),
    },
    "it holds list": lambda state: [state],
    "it holds nothing": lambda _: {},
}


@pytest.mark.parametrize("found", FOREIGN)
def test_a_plain_timm_checkpoint(found: str, tmp_path: Path, tiny_vit: nn.Module) -> None:
    torch.save(FOREIGN[found](tiny_vit.state_dict()), tmp_path / "timm.pth")
    with pytest.raises(ConfigError, match=rf"timm.pth {NO}{found}") as caught:
        read_released(tmp_path / "timm.pth", "cub")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
