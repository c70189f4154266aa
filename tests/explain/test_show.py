"""``python -m gift_vit.explain`` on finished runs: what it writes."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.special import softmax

from gift_vit.data.config import DatasetConfig
from gift_vit.explain.config import MapChoice, ShowArguments
from gift_vit.explain.drawing import output
from gift_vit.explain.drawing.overlay import overlay
from gift_vit.explain.explainer import Explainer, build_explainer
from gift_vit.explain.maps import explain, normalise_maps, threshold_maps
from gift_vit.explain.samples import distinct, file_stems, split_samples
from gift_vit.explain.scoring.localisation import candidate_names
from gift_vit.methods import GiftConfig, apply_method
from gift_vit.runs.run import Run
from tests.explain.conftest import Command, Runs, opened
from tests.explain.test_sheets import pixels


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


def test_what_an_earlier_call_has_left_is_removed_and_nothing_else(
    runs: Runs, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images in sheets of two, then one in one format; beside them lie files of other commands and of a person."""
    monkeypatch.setattr(output, "SHEET_ROWS", 2)
    out, own = tmp_path / "out", ["scores.json", "images_mine.png", "layers_mine.pdf", "overlays/test00000/mine.png"]
    words = [f"run={runs['zero']}", f"out={out}", "layers=[5]", "clusters=[0]"]
    printed = call("__main__", *words, "count=3", "overlays=true").printed
    assert f"wrote the maps of 3 images, in sheets of 2 to {out}; " in printed
    first, second = (pixels(out / f"images_attn.proj_block5{part}.png") for part in ("", "_2"))
    assert len(first) > 1.5 * len(second)
    for name in own:
        (out / name).touch()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert call("__main__", *words, f"images={tmp_path / 'a.png'}", "formats=[png]").code == 0
    left = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert left == {*own, "maps.npz", "index.html", "images_attn.proj_block5.png", "layers_a.png"}
    (out / "maps.npz").write_text("no maps")
    assert call("__main__", *words, "count=1", "formats=[png]").code == 0
    assert (out / "layers_a.png").exists()
    (out / "maps.npz").unlink()
    (out / "index.html").write_text("mine")
    assert "holds an index.html of something else" in call("__main__", *words, "count=1").error
    assert (out / "index.html").read_text() == "mine"


def test_what_cannot_be_read_is_named_and_the_rest_shown(runs: Runs, tmp_path: Path, call: Command) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("a page saying 404")
    words = [f"run={runs['zero']}", f"out={tmp_path / 'out'}", "clusters=[0]", "formats=[png]"]
    shown = call("__main__", *words, "layers=[5]", f"images={tmp_path}")
    assert (shown.code, (tmp_path / "out/layers_b.png").exists()) == (1, True)
    assert "wrote the maps of 1 image to " in shown.printed
    assert "error: 1 of 2 pictures could not be read" in shown.error
    alone = call("__main__", *words, f"images={tmp_path / 'a.png'}")
    assert (alone.code, alone.error.count("\n") <= 1, "cannot decode image" in alone.error) == (2, True, True)
    twice = call("__main__", *words, f"images={tmp_path / 'b.png'}", "layers=[5,-1]")
    assert "layers=[5, -1]: one of the blocks is named twice" in twice.error


@pytest.mark.parametrize("published", [False, True])
def test_files_are_decoded_as_predict_does(
    published: bool, runs: Runs, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bright picture, wholly transparent: white, or, as for published numbers, with the colours hidden under alpha."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32, :, :3] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    monkeypatch.setattr(DatasetConfig, "as_published", property(lambda _: published))
    words = [f"images={tmp_path / 'clear.png'}", f"out={tmp_path / 'out'}", "layers=[0]", "formats=[png]"]
    assert call("__main__", f"run={runs['zero']}", *words).code == 0
    with np.load(tmp_path / "out" / "maps.npz") as raw:
        chances = np.sort(softmax(raw["logits"][0].astype(np.float64)))[::-1]
    shown = Image.fromarray(pixels[..., :3]) if published else Image.new("RGB", (64, 64), "white")
    _, model, transform = opened(runs["zero"])
    with torch.no_grad():
        expected = model(transform(shown)[None])[0].double().softmax(0).sort(descending=True).values.numpy()
    np.testing.assert_allclose(chances, expected, atol=1e-4)
    (predicted,) = Run.open(runs["zero"]).predict(tmp_path / "clear.png", topk=10, device="cpu")
    np.testing.assert_allclose(chances, predicted.probabilities, atol=2e-3)


def test_a_distilled_model_is_explained(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classifier is two layers, which do not say together how many classes there are."""
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=1, num_classes=10)
    monkeypatch.setattr(Run, "model", lambda _: apply_method(distilled, GiftConfig(rank=2)))
    run = Run.open(runs["zero"])
    explainer = build_explainer(run, ShowArguments(run=str(runs["zero"]), device="cpu"))
    assert explainer.class_names == [str(label) for label in range(10)]
    assert explainer.explain(split_samples(run.data(), "test", None), 2).maps.post.shape == (2, 1, 2, 4, 4)


def test_attention_that_is_left_out_is_said_once(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1, num_classes=3)
    transform = opened(runs["zero"])[2]
    explainer = Explainer(apply_method(eva, GiftConfig(rank=2)), transform, ["a", "b", "c"], MapChoice())
    with caplog.at_level("INFO", "gift_vit"):
        assert set(candidate_names(explainer)) == {"clusters", "random φ", "gradient", "centre"}
    assert caplog.messages == ["attention is left out: Eva shows none of a class token"]


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["cat", "a-b.c", "x (1)"], ["cat", "a-b.c", "x_1"]),
        (["猫", "犬", "!?"], ["猫", "犬", "image"]),
        (["cat (1)", "cat [1]", "cat_1_1"], ["cat_1_0", "cat_1_2", "cat_1_1"]),
        (["x", "x", "x_1"], ["x_0", "x_2", "x_1"]),
        (["a" * 250 + "b", "a" * 250 + "c", "猫" * 80], ["a" * 200 + "_0", "a" * 200 + "_1", "猫" * 66]),
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
