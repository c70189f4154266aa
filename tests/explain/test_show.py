"""``python -m gift_vit.explain`` on finished runs: what it writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gift_vit.explain.drawing.overlay import overlay
from gift_vit.explain.maps import explain, normalise_maps, threshold_maps
from gift_vit.explain.samples import distinct, file_stems
from tests.explain.conftest import Command, Runs, opened


def test_a_class_of_the_test_split(runs: Runs, tmp_path: Path, call: Command) -> None:
    out = tmp_path / "maps"
    words = ["class=7", "count=3", "layers=[1,-1]", "clusters=[4,0]", "overlays=true", "batch_size=2"]
    assert call("__main__", f"run={runs['zero']}", f"out={out}", *words).printed.splitlines() == [
        "attn.proj of block 1: clusters 4, 0",
        "attn.proj of block 5: clusters 4, 0",
        f"wrote the maps of 3 images to {out}; open {out / 'index.html'}",
    ]
    data, _, transform = opened(runs["zero"])
    source = data.split("test")
    with np.load(out / "maps.npz") as raw:
        assert raw["post"].shape == raw["pre"].shape
        assert (raw["clusters"].tolist(), raw["blocks"].tolist(), set(raw["true"])) == ([4, 0], [1, 5], {"7"})
        names, post = raw["images"].tolist(), torch.from_numpy(raw["post"])
    assert names == [f"test{index:05}" for index in np.flatnonzero(source.labels == 7)[:3]]
    sheets = [f"images_attn.proj_block{block}" for block in (1, 5)] + [f"layers_{name}" for name in names]
    expected = {f"{sheet}.{suffix}" for sheet in sheets for suffix in ("png", "pdf")}
    assert {file.name for file in out.iterdir()} == expected | {"maps.npz", "index.html", "overlays"}
    files = sorted(str(file.relative_to(out / "overlays")) for file in (out / "overlays").rglob("*.png"))
    assert files == sorted(f"{name}/attn.proj_block{b}_cluster{c}_post.png" for name in names for b in (1, 5) for c in (0, 4))
    # one overlay from the raw maps and the dataset's own image
    image = transform.prepare(source[int(names[1].removeprefix("test"))][0]).transpose(1, 2, 0) / 255
    heat = threshold_maps(normalise_maps(post, 64))[1, 1, 0].numpy()
    got = np.asarray(Image.open(out / "overlays" / names[1] / "attn.proj_block5_cluster4_post.png")) / 255
    np.testing.assert_allclose(got, overlay(image, heat), atol=0.01)


def test_files_of_a_folder(runs: Runs, tmp_path: Path, call: Command) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for name, colour in [("b (1).png", "red"), ("b [1].png", "red"), ("a.jpg", "blue"), ("a.png", (128, 128, 128))]:
        Image.new("RGB", (64, 64), colour).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    words = [f"images={folder}", f"out={out}", "layers=[2]", "formats=[png]", "show=2"]
    assert call("__main__", f"run={runs['zero']}", *words).code == 0
    _, model, transform = opened(runs["zero"])
    grey = transform(Image.new("RGB", (64, 64), (128, 128, 128)))[None]
    with np.load(out / "maps.npz") as raw:
        assert (raw["images"].tolist(), raw["true"].tolist()) == (["a_0", "a_1", "b (1)", "b [1]"], [""] * 4)
        assert raw["post"].shape[1] == 1
        # the maps are those of the run's model
        torch.testing.assert_close(torch.from_numpy(raw["post"][1]), explain(model, grey).post[0, [2]], atol=1e-4, rtol=1e-4)
    assert sorted(file.stem for file in out.glob("layers_*")) == ["layers_a_0", "layers_a_1", "layers_b_1_2", "layers_b_1_3"]


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["cat", "a-b.c", "x (1)"], ["cat", "a-b.c", "x_1"]),
        (["猫", "犬", "!?"], ["猫", "犬", "image"]),
        (["cat (1)", "cat [1]", "cat_1_1"], ["cat_1_0", "cat_1_2", "cat_1_1"]),
        (["x", "x", "x_1"], ["x_0", "x_2", "x_1"]),
    ],
)
def test_no_two_images_share_a_file(names: list[str], stems: list[str]) -> None:
    assert file_stems(names) == stems
    assert len(set(distinct(names))) == len(names)


def test_only_correct_images(runs: Runs, tmp_path: Path, call: Command) -> None:
    words = ["correct_only=true", "count=5", "layers=[0]", "clusters=[0]", "formats=[png]", "basis=canonical"]
    assert call("__main__", f"run={runs['zero']}", *words, f"out={tmp_path}").code == 0
    with np.load(tmp_path / "maps.npz") as raw:
        assert raw["true"].tolist() == raw["predicted"].tolist()
        assert len(raw["true"]) == 5
        assert (raw["logits"].argmax(1) == raw["predicted"].astype(int)).all()
