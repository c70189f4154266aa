"""``python -m gift_vit.explain`` on finished runs: what it writes, and one line for every mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gift_vit.backbones import input_statistics
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import build_dataset, build_eval_transform
from gift_vit.explain import __main__ as command
from gift_vit.explain.maps import explain, normalise_maps, threshold_maps
from gift_vit.explain.overlay import overlay
from gift_vit.record import Call
from gift_vit.run import execute, load_finished_model, load_run
from tests.explain.calling import call_command


def train(root: Path, method: str, phase: str = "final") -> Path:
    words = ["debug=smoke", f"method={method}", f"phase={phase}", f"run_name={method}_{phase}", f"paths.output_root={root}"]
    cfg = load_config(compose_config([*words, "trainer.epochs=1", "optim.warmup_epochs=0"]))
    execute(cfg, Call("python -m gift_vit.train", []))
    return cfg.folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("outputs")
    return {"gift": train(root, "gift"), "linear": train(root, "linear"), "search": train(root, "gift", "search")}


def test_a_class_of_the_test_split(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    words = ["class=7", "count=3", "layers=[1,-1]", "clusters=[4,0]", "overlays=true", "batch_size=2"]
    assert call_command(command, monkeypatch, f"run={runs['gift']}", f"out={out}", *words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "attn.proj of block 1: clusters 4, 0",
        "attn.proj of block 5: clusters 4, 0",
        f"wrote the maps of 3 images to {out}; open {out / 'index.html'}",
    ]
    with np.load(out / "maps.npz") as raw:
        assert raw["post"].shape == raw["pre"].shape
        assert raw["clusters"].tolist() == [4, 0]
        assert raw["blocks"].tolist() == [1, 5]
        assert set(raw["true"]) == {"7"}
        names, post = raw["images"].tolist(), torch.from_numpy(raw["post"])
        cfg = load_run(runs["gift"])
        source = build_dataset(cfg.dataset).split("test")
        assert names == [f"test{index:05}" for index in np.flatnonzero(source.labels == 7)[:3]]
    sheets = [f"images_attn.proj_block{block}" for block in (1, 5)] + [f"layers_{name}" for name in names]
    expected = {f"{sheet}.{suffix}" for sheet in sheets for suffix in ("png", "pdf")}
    assert {file.name for file in out.iterdir()} == expected | {"maps.npz", "index.html", "overlays"}
    files = sorted(str(file.relative_to(out / "overlays")) for file in (out / "overlays").rglob("*.png"))
    assert files == sorted(f"{name}/attn.proj_block{b}_cluster{c}_post.png" for name in names for b in (1, 5) for c in (0, 4))
    # one overlay from the raw maps and the dataset's own image
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(load_finished_model(cfg, runs["gift"])))
    image = transform.prepare(source[int(names[1].removeprefix("test"))][0]).transpose(1, 2, 0) / 255
    heat = threshold_maps(normalise_maps(post, 64))[1, 1, 0].numpy()
    got = np.asarray(Image.open(out / "overlays" / names[1] / "attn.proj_block5_cluster4_post.png")) / 255
    np.testing.assert_allclose(got, overlay(image, heat), atol=0.01)


def test_files_of_a_folder(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in [("b.png", "red"), ("a.jpg", "blue"), ("a.png", "green")]:
        Image.new("RGB", (50, 30), colour).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    words = [f"images={folder}", f"out={out}", "layers=[0]", "formats=[png]", "basis=canonical", "show=2"]
    assert call_command(command, monkeypatch, f"run={runs['gift']}", *words) == 0
    with np.load(out / "maps.npz") as raw:
        assert raw["images"].tolist() == ["a_0", "a_1", "b"]
        assert raw["true"].tolist() == ["", "", ""]
        assert raw["post"].shape[1] == 1


def test_only_correct_images(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["correct_only=true", "count=5", "layers=[0]", "clusters=[0]", "formats=[png]", f"out={tmp_path}"]
    assert call_command(command, monkeypatch, f"run={runs['gift']}", *words) == 0
    with np.load(tmp_path / "maps.npz") as raw:
        assert raw["true"].tolist() == raw["predicted"].tolist()
        assert len(raw["true"]) == 5
        assert (raw["logits"].argmax(1) == raw["predicted"].astype(int)).all()


def test_maps_are_those_of_the_run_s_model(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "grey.png")
    words = [f"images={tmp_path / 'grey.png'}", f"out={tmp_path}", "formats=[png]", "layers=[2]"]
    assert call_command(command, monkeypatch, f"run={runs['gift']}", *words) == 0
    model = load_finished_model(load_run(runs["gift"]), runs["gift"])
    std = model.pretrained_cfg["std"]  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]
    mean = model.pretrained_cfg["mean"]  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]
    pixels = (torch.full((1, 3, 64, 64), 128 / 255) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with np.load(tmp_path / "maps.npz") as raw:
        torch.testing.assert_close(torch.from_numpy(raw["post"][:, 0]), explain(model, pixels).post[:, 2], atol=1e-4, rtol=1e-4)


MISTAKES = [
    ("linear", [], "error: cluster maps explain GIFT; {run} was trained with method=linear"),
    ("gift", ["images={tmp}/none"], "error: images={tmp}/none: there is no such file or folder"),
    ("gift", ["images={tmp}"], "error: images={tmp}: the folder holds no image (.bmp, "),
    ("gift", ["images={tmp}/bad.txt"], "error: cannot decode image {tmp}/bad.txt: it is empty or of no known image format"),
    ("gift", ["images={tmp}/bad.txt", "class=3"], "error: images=… names files, which have no split or label; drop split"),
    ("gift", ["class=10"], "error: unknown class '10': give an index from 0 to 9 or a name (0, 1, 2, 3, 4, …)"),
    ("gift", ["split=tset"], "error: dataset digits has no tset split (it has train, val, test)"),
    (
        "gift",
        ["layers=[6]"],
        "error: block=6: target 'attn.proj' is not adapted there; adapted of the 6 blocks: 0, 1, 2, 3, 4, 5",
    ),
    ("gift", ["targets=[mlp.fc1]"], "error: target 'mlp.fc1' is not adapted in this model (adapted: attn.proj)"),
    ("gift", ["clusters=[0,99]"], "error: clusters=[0, 99]: give indices from 0 to "),
    ("gift", ["colours=hot"], "error: unknown colours 'hot' (known: viridis, "),
    ("gift", ["formats=[svg]"], "error: unknown format 'svg' (known: png, pdf)"),
    ("gift", ["response=both"], "error: unknown response 'both' (known: post, pre)"),
    ("gift", ["basis=assignment"], "error: basis=assignment needs schema=paca_transformer or paca_attn"),
    ("gift", ["count=0"], "error: count=0: give a positive number of images"),
    ("gift", ["batch_size=0"], "error: batch_size=0: give a positive number"),
    ("search", ["split=test"], "error: {run} is a search run, and test is for the final phase; train it with phase=final"),
]


@pytest.mark.parametrize(("run", "words", "message"), MISTAKES)
def test_every_mistake_is_one_line(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: str,
    words: list[str],
    message: str,
) -> None:
    assert len(MISTAKES) == 17
    (tmp_path / "bad.txt").write_text("no image")
    places = {"run": runs[run], "tmp": tmp_path}
    given = [word.format(**places) for word in words]
    assert call_command(command, monkeypatch, f"run={runs[run]}", f"out={tmp_path / 'out'}", *given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(message.format(**places))
    assert not (tmp_path / "out").exists()
