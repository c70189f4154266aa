"""Exported files, run as another program would run them, beside the run's own model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.packages import require
from gift_vit.export import formats, write
from gift_vit.export.graph import Graph
from gift_vit.export.write import export_run
from gift_vit.runs import Run
from tests.warm import Process

ONNX = ("onnx", "onnxscript", "onnxruntime")
METHODS = ("gift", "vpt_deep")  # the last one cannot be merged
KINDS = ("lora", "linear_exact", "toast", "convpass", "adapter_plus", "repadapter", "gift_v1", "ssf", "knn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A finished run of each method, one epoch of a tiny ViT, and one of GIFT with another rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        words = {name: [f"method={name}"] for name in METHODS} | {
            "other": ["method=gift", "method.rank=4", "dataset.transform.resize=tf1_bilinear"]
        }
        found = {
            name: Run.train(["debug=smoke", "phase=final", "optim.lr=0.05", f"run_name={name}", *more])
            for name, more in words.items()
        }
        return {name: Run.open(run.folder.absolute()) for name, run in found.items()}


def images(count: int) -> Tensor:
    return torch.randint(256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def normalised(pixels: Tensor, run: Run) -> Tensor:
    """By the backbone's facts in the record."""
    assert run.result is not None
    mean, std = (torch.tensor(run.result.backbone[key]) for key in ("mean", "std"))
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def logits(run: Run, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return run.model()(normalised(pixels, run))


def run_file(path: Path, *inputs: Tensor, named: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Any]]:
    """What a file computes, and the facts in it."""
    if path.suffix == ".pt2":
        extra = {"gift_vit.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        facts = json.loads(extra["gift_vit.json"])
        return module(*inputs, *([tuple(named[name] for name in facts["inputs"][1:])] if named else [])), facts
    import onnxruntime  # pyright: ignore[reportMissingImports] - of an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"images": inputs[0].numpy()}
    feeds |= {given.name: named[given.name].numpy() for given in session.get_inputs()[1:]} if named else {}
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert session.get_inputs()[0].shape[0] == "batch"
    return torch.from_numpy(session.run(None, feeds)[0]), facts


def needs(suffix: str) -> None:
    for name in ONNX if suffix == ".onnx" else ():
        pytest.importorskip(name)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_file_computes_what_the_model_does(runs: dict[str, Run], method: str, suffix: str, tmp_path: Path) -> None:
    """For batches of any size. Recording and translating a model takes some four seconds."""
    needs(suffix)
    run, out = runs[method], tmp_path / f"model{suffix}"
    told = export_run(run, out)
    for count in (1, 2, 5):
        found, facts = run_file(out, normalised(images(count), run))
        torch.testing.assert_close(found, logits(run, images(count)), rtol=0, atol=1e-5)
    assert facts["merged"] is (method != "vpt_deep")
    assert facts["class_names"] == [str(digit) for digit in range(10)]
    assert (facts["input_size"], facts["normalise"], facts["precision"]) == (64, "outside", "fp32")
    assert run.result is not None
    assert (facts["mean"], facts["std"]) == (run.result.backbone["mean"], run.result.backbone["std"])
    assert "100.0 % equal predictions on 32 images of test" in told
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_methods_of_every_kind_are_exported_or_refused(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run of each, recorded and translated: some eight seconds a method."""
    needs(".onnx")
    monkeypatch.chdir(tmp_path)
    run = Run.train(["debug=smoke", "phase=final", f"method={method}"])
    capfd.readouterr()
    if method == "knn":
        with pytest.raises(RunError, match="method=knn cannot be exported like this: no graph holds what it computes"):
            export_run(run, tmp_path / "model.onnx")
        assert "\n" not in capfd.readouterr().err.strip(), "torch prints the graph"
        return
    export_run(run, tmp_path / "model.onnx")
    found, _ = run_file(tmp_path / "model.onnx", normalised(images(5), run))
    torch.testing.assert_close(found, logits(run, images(5)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_half_precision_takes_pixels(runs: dict[str, Run], suffix: str, tmp_path: Path) -> None:
    """Pixels in, float32 out, half the weights' size; some four seconds, see above."""
    needs(suffix)
    run, out = runs["gift"], tmp_path / f"model{suffix}"
    export_run(run, out, precision="fp16", preprocessing=True)
    found, facts = run_file(out, images(4))
    expected = logits(run, images(4))
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() <= 0.01 * max(1, float(expected.abs().max()))
    assert (facts["normalise"], facts["pixels"], facts["precision"]) == ("in graph", "torch.uint8", "fp16")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_one_file_serves_adapters_of_another_rank(runs: dict[str, Run], suffix: str, tmp_path: Path) -> None:
    """And of another number of classes; some four seconds, see above."""
    needs(suffix)
    run, out = runs["gift"], tmp_path / f"model{suffix}"
    export_run(run, out, inputs=True)
    pixels = normalised(images(3), run)
    for other, file in ((run, tmp_path / "model.safetensors"), (runs["other"], runs["other"].folder / "adapter.safetensors")):
        found, facts = run_file(out, pixels, named=load_file(file))
        torch.testing.assert_close(found, logits(other, images(3)), rtol=0, atol=1e-5)
    assert facts["class_names"] is None
    fewer = load_file(file)
    fewer |= {name: tensor[:7].contiguous() for name, tensor in fewer.items() if name.startswith("head")}
    found, _ = run_file(out, pixels, named=fewer)
    torch.testing.assert_close(found, logits(runs["other"], images(3))[:, :7], rtol=0, atol=1e-5)


class Fixed(Graph):
    """A model that makes a constant of the batch."""

    def forward(self, images: Tensor, tensors: tuple[Tensor, ...] = ()) -> Tensor:
        return super().forward(images, tensors) + torch.zeros(int(images.shape[0]), 1)[: len(images)].reshape(2, 1).sum()


class Wrong(Graph):
    """A model that computes something else than the run's."""

    def forward(self, images: Tensor, tensors: tuple[Tensor, ...] = ()) -> Tensor:
        return super().forward(images, tensors) + 0.1


@pytest.mark.parametrize(
    ("graph", "message"), [(Fixed, "cannot be exported"), (Wrong, "would not compute what the model does")]
)
def test_what_fails_leaves_no_file_and_models_in_memory_as_they_were(
    runs: dict[str, Run], graph: type[nn.Module], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runs["gift"].model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(write, "Graph", graph)
    with pytest.raises(RunError, match=message):
        export_run(runs["gift"], tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
    assert all(module.training for module in model.modules())
    assert hasattr(model, "applied_method")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_the_data_drawn_images_are_compared(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Run) -> None:
        raise ConfigError("the data is gone")

    monkeypatch.setattr(Run, "data", gone)
    told = export_run(runs["other"], tmp_path / "model.pt2", preprocessing=True)
    assert "equal predictions on 32 drawn images" in told
    assert run_file(tmp_path / "model.pt2", images(2).float())[1]["pixels"] == "torch.float32", "as its resizing makes them"


def test_a_file_of_other_tensors_beside_it_is_kept(runs: dict[str, Run], tmp_path: Path) -> None:
    beside = tmp_path / "model.safetensors"
    beside.write_bytes(b"another run's")
    with pytest.raises(ConfigError, match=r"model\.safetensors holds other tensors than this run's"):
        export_run(runs["gift"], tmp_path / "model.pt2", inputs=True)
    assert [path.name for path in tmp_path.iterdir()] == [beside.name]
    assert beside.read_bytes() == b"another run's"


def test_what_an_onnx_file_cannot_hold_is_refused(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(".onnx")
    monkeypatch.setattr(formats, "_MOST_ONNX_BYTES", 2**20)
    with pytest.raises(ConfigError, match=r"do not fit into an \.onnx file, which holds 2; give precision=fp16 or out="):
        export_run(runs["gift"], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_abort_the_process() -> None:
    """In a process of its own, which would be the one."""
    with formats.quiet():
        program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    with Process(lambda: formats.write_pt2(program, Path("/dev/full"), ["images"], {})) as process:
        ended = process.wait()
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr


def test_missing_packages_are_named_with_the_line_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ConfigError, match=r"^out=a needs onnx, no_such, which are not .*; type: pip install 'gift-vit\[export\]'$"
    ):
        require("out=a", "onnx", "json", "no_such", install="gift-vit[export]")
