"""Forgetting against scikit-learn and plain timm: accuracy before and after, intervals, drift; what is drawn, kept, refused."""

import json
import math
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from gift_vit.backbones.build import build_backbone, input_statistics
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import alone
from gift_vit.data.config import DigitsConfig, TransformConfig
from gift_vit.data.transforms import build_eval_transform
from gift_vit.invariance import cka
from gift_vit.invariance.__main__ import open_run, run_folders
from gift_vit.invariance.config import InvarianceArguments
from gift_vit.invariance.forgetting import DRAWS, forgetting_line, measure_drift
from gift_vit.invariance.known import Known, draw_known
from gift_vit.invariance.measures import halves
from gift_vit.invariance.measuring import measure_runs
from gift_vit.invariance.probes import CLASSIFIERS, fit_classifiers
from gift_vit.runs.features import Features
from gift_vit.runs.run import Run
from tests.invariance.test_formulas import song

WORDS = ("images=0", "forgetting=digits", "per_class=6", "device=cpu")
DIGITS = DigitsConfig(name="digits", transform=TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0))


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "invariance" / "forgetting.json").read_text())


def features_of(model: nn.Module, known: Known, split: str) -> NDArray[np.float64]:
    """What the model's head reads, in float64; by a hook on the head itself."""
    transform = build_eval_transform(known.config.transform, input_statistics(model))
    source = known.data.splits[split]
    pixels = torch.stack([transform.finish(transform.prepare(source[index][0])) for index in range(len(source))]) / 255
    read: list[Tensor] = []
    model.eval().get_classifier().register_forward_pre_hook(lambda _, args: read.append(args[0]))  # pyright: ignore
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))  # pyright: ignore
    with torch.no_grad():
        model((pixels - mean) / std)
    return read[0].double().numpy()


def predicted(kind: str, setting: Mapping[str, float], x: Any, y: Any, test: Any) -> Any:
    """What scikit-learn's classifier of that kind answers."""
    if kind == "knn":
        weights: Any = lambda distances: np.exp(-distances / setting["temperature"])  # noqa: E731
        neighbours = KNeighborsClassifier(min(int(setting["k"]), len(x)), metric="cosine", weights=weights)
        return neighbours.fit(x, y).predict(test)
    mean, scale = x.mean(0), np.sqrt(x.var(0).mean())
    fitted = LogisticRegression(C=1 / (setting["penalty"] * len(x)), tol=1e-8, max_iter=5000)
    return fitted.fit((x - mean) / scale, y).predict((test - mean) / scale)


def shares(kind: str, x: Any, y: Any, known: Known) -> dict[str, float]:
    """For each setting the share of the held-out images that are told right."""
    fitted, held_out = known.fitted, known.held_out
    return {
        json.dumps(setting): float((predicted(kind, setting, x[fitted], y[fitted], x[held_out]) == y[held_out]).mean())
        for setting in CLASSIFIERS[kind].settings()
    }


def test_numbers_are_those_of_scikit_learn_on_what_the_heads_read(runs: dict[str, Path], tmp_path: Path, call: Any) -> None:
    """Of LoRA, which is merged, and of VPT, which is left beside the weights and changes the tokens: over ten seconds."""
    left = shutil.ignore_patterns("invariance")  # what another test has measured
    mine = {method: shutil.copytree(runs[method], tmp_path / method, ignore=left) for method in ("lora", "vpt_deep")}
    code, printed, error = call(f"runs=[{mine['lora']},{mine['vpt_deep']}]", *WORDS)
    assert code == 0, error
    known = draw_known(DIGITS, 6, 0)
    labels = {split: np.asarray(source.labels) for split, source in known.data.splits.items()}
    torch.manual_seed(0)
    before = build_backbone(Run.open(mine["lora"]).config.backbone, 10)
    features = {"before": {split: features_of(before, known, split) for split in labels}}
    tried = {kind: shares(kind, features["before"]["train"], labels["train"], known) for kind in CLASSIFIERS}
    for method, line in zip(("lora", "vpt_deep"), printed.splitlines(), strict=True):
        found, run = record_of(mine[method]), Run.open(mine[method])
        assert run.config.seed == 0, "the same random backbone"
        model = run.model()
        features["after"] = {split: features_of(model, known, split) for split in labels}
        for kind in CLASSIFIERS:
            right = {}
            for when, own in features.items():
                x, y = own["train"], labels["train"]
                scores = tried[kind] if when == "before" else shares(kind, x, y, known)
                chosen = found[kind][f"setting_{when}"]
                assert scores[json.dumps(chosen)] == max(scores.values())
                right[when] = predicted(kind, chosen, x, y, own["test"]) == labels["test"]
                assert found[kind][when] == pytest.approx(100 * right[when].mean())
            difference = 100.0 * right["before"] - 100.0 * right["after"]
            forgetting = found[kind]["forgetting"]
            assert forgetting["mean"] == pytest.approx(difference.mean())
            deviation = difference.std() / math.sqrt(len(difference))
            assert forgetting["high"] - forgetting["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.3)
            gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
            assert (found[kind]["only_before"], found[kind]["only_after"]) == (gained, lost)
            tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
            assert found[kind]["p_value"] == pytest.approx(min(1.0, 2 * tail))
        drift = 1 - cka(features["before"]["test"], features["after"]["test"], unbiased=True)
        assert found["drift"]["mean"] == pytest.approx(drift, abs=1e-4)
        assert found["drift"]["low"] < drift < found["drift"]["high"]
        assert (
            found["on"].items() >= {"dataset": "digits", "classes": 10, "tested_on": "test", "seed": 0, "per_class": 6}.items()
        )
        assert found["on"]["train_images"] == found["on"]["test_images"] == 60
        assert f"linear {found['linear']['before']:.2f} → {found['linear']['after']:.2f} %" in line
        assert not (mine[method] / "invariance" / "invariance.json").exists()


def test_a_backbone_that_was_left_alone_has_forgotten_nothing(runs: dict[str, Path], call: Any) -> None:
    """Its own features are not computed: what was found of the pretrained model is that of this one."""
    cache = Path(Run.open(runs["linear"]).config.paths.cache_root, "forgetting")
    code, printed, error = call(f"run={runs['linear']}", *WORDS, "seed=1")
    assert code == 0, error
    before = set(cache.glob("*"))
    found = record_of(runs["linear"])
    assert found["unchanged"]
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["linear"]["forgetting"] == found["knn"]["forgetting"] == found["drift"] == zero
    assert found["linear"]["before"] == found["linear"]["after"] > 20
    assert "nothing, the backbone is as it was" in printed
    assert call(f"run={runs['lora']}", *WORDS, "seed=1")[0] == 0
    assert len(set(cache.glob("*")) - before) == 1, "that of the fine-tuned model"


def test_the_runs_own_images_are_not_needed(runs: dict[str, Path], call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise ConfigError("the run's data is not there")

    monkeypatch.setattr(Run, "check_present", gone)
    monkeypatch.setattr(Run, "data", gone)
    assert call(f"run={runs['linear']}", *WORDS)[0] == 0
    assert "the run's data is not there" in call(f"run={runs['linear']}", *WORDS, "images=8")[2]


def test_a_drift_that_is_not_defined_is_a_dash() -> None:
    drift = measure_drift(*torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)))
    lost = {"before": 50.0, "after": 50.0, "forgetting": {"mean": -0.001, "low": -5.0, "high": 5.0}}
    found = {"on": {"classes": 2, "dataset": "pets"}, "unchanged": False, "linear": lost, "knn": lost, "drift": drift}
    assert forgetting_line(found).endswith("; k-NN 50.00 → 50.00 %, 0.00 points [-5.00, 5.00]; drift –"), "no -0.00"


def test_the_interval_of_a_drift_is_that_of_halves_by_the_unbiased_formula() -> None:
    before, after = np.random.default_rng(0).normal(size=(2, 40, 200))
    mean = 1 - song(before, after)
    drawn = [1 - song(before[rows], after[rows]) for rows in map(np.asarray, halves(40, DRAWS))]
    low, high = mean + np.quantile(drawn, [0.025, 0.975]) - np.mean(drawn)
    found = measure_drift(torch.from_numpy(before), torch.from_numpy(after))
    assert found == pytest.approx({"mean": mean, "low": low, "high": high}, abs=1e-9)


def test_what_was_found_is_kept(runs: dict[str, Path], call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"run={runs['lora']}", *WORDS, "seed=2")
    _, printed, _ = call(*words)
    files = Path(Run.open(runs["lora"]).config.paths.cache_root, "forgetting").glob("*.safetensors")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    first = record_of(runs["lora"])

    def computed(*_: Any) -> None:
        raise AssertionError("computed anew")

    monkeypatch.setattr("gift_vit.invariance.probes.compute_features", computed)
    assert call(*words, f"out={tmp_path}")[:2] == (0, printed)
    assert json.loads((tmp_path / "forgetting.json").read_text()) == first
    monkeypatch.setattr("gift_vit.invariance.measuring.measure_forgetting", computed)
    assert call(*words)[:2] == (0, printed), "the record says it"
    monkeypatch.undo()
    newest.write_bytes(b"damaged")
    assert call(*words, f"out={tmp_path / 'anew'}")[:2] == (0, printed)
    assert json.loads((tmp_path / "anew" / "forgetting.json").read_text()) == first


def test_folders_with_runs_below_them(runs: dict[str, Path], call: Any, tmp_path: Path) -> None:
    """Two methods of all below the output root; what was measured before is not measured again, another seed is."""
    outputs = runs["lora"].parents[3]
    words = (f"runs=[{outputs}]", "methods=[linear,lora]", *WORDS, "per_class=5")
    code, printed, error = call(*words)
    assert code == 0, error
    assert {line.partition(": ")[0] for line in printed.splitlines()} == {str(runs["linear"]), str(runs["lora"])}
    written = [(runs[method] / "invariance" / "forgetting.json").stat().st_mtime_ns for method in ("linear", "lora")]
    assert call(*words)[1] == printed
    assert [(runs[m] / "invariance" / "forgetting.json").stat().st_mtime_ns for m in ("linear", "lora")] == written
    code, printed, error = call(f"runs=[{outputs},{tmp_path}]", "methods=[lora,liner]", *WORDS)
    assert (code, printed) == (2, "")
    assert f"methods: no finished run of liner below {outputs}, {tmp_path}; did you mean linear? (there are: lily, " in error
    error = call(f"run={runs['lora']}", "methods=[lora]", *WORDS)[2]
    assert "methods=[lora] is for folders with runs below them, and none is given; leave it out" in error
    assert "2 runs would overwrite each other's files" in call(*words, f"out={tmp_path}")[2]
    assert "is no run folder: it holds no config.yaml" in call(f"runs=[{tmp_path}]", *WORDS)[2]


def test_runs_on_texts_are_none_of_those_below_a_folder(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, kind in {"image": "timm", "text": "transformers"}.items():
        shutil.copytree(runs["linear"], tmp_path / name)
        record = json.loads((tmp_path / name / "result.json").read_text())
        record["run"]["config"]["backbone"]["kind"] = kind
        (tmp_path / name / "result.json").write_text(json.dumps(record))
    assert run_folders([str(tmp_path)], []) == [str(tmp_path / "image")]
    shutil.rmtree(tmp_path / "image")
    assert run_folders([str(tmp_path)], ["lora"]) == [str(tmp_path / "text")], "which is refused in words"


def test_a_folder_may_lack_a_method_that_another_has(runs: dict[str, Path]) -> None:
    folders = [str(runs[method].parent) for method in ("lora", "linear")]
    assert run_folders(folders, ["lora", "linear"]) == [str(runs["lora"]), str(runs["linear"])]
    assert run_folders(folders, ["linear"]) == [str(runs["linear"])]


def test_what_cannot_be_measured_is_left_out_of_a_folder(runs: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    outputs, toast = str(runs["lora"].parents[3]), str(runs["toast"])
    assert run_folders([outputs], ["lora", "toast"]) == [str(runs["lora"])]
    assert caplog.messages == [
        f"cannot be measured (the method passes an image through the blocks more than once), and left out: {toast}"
    ]
    assert run_folders([outputs], ["toast"]) == run_folders([toast], []) == [toast], "which is refused in words"


def test_a_run_that_another_command_is_at_comes_last(runs: dict[str, Path]) -> None:
    """The lock of LoRA's is held by this process until the linear one's line has been printed."""
    arguments = InvarianceArguments(runs=[str(runs["lora"]), str(runs["linear"])], images=0, forgetting="digits", per_class=7)
    lines = measure_runs([open_run(folder, arguments) for folder in arguments.folders], arguments)
    cache = Path(Run.open(runs["lora"]).config.paths.cache_root)
    lock = cache / "measuring" / sha256(str(runs["lora"]).encode()).hexdigest()[:32]
    with alone(lock):
        assert next(lines).startswith(str(runs["linear"]))
    assert [line.partition(": ")[0] for line in lines] == [str(runs["lora"])]


def test_the_draw_is_balanced_and_follows_from_the_seed() -> None:
    known, again, other, whole = (draw_known(DIGITS, *given) for given in ((5, 3), (5, 3), (5, 4), (0, 3)))
    for split in ("train", "test"):
        labels = known.data.splits[split].labels
        assert np.bincount(labels).tolist() == [5] * 10
        sources = [drawn.data.splits[split] for drawn in (known, again, other)]
        pixels = [[source.stored(index) for index in range(len(source))] for source in sources]
        assert pixels[0] == pixels[1] != pixels[2]
    assert np.bincount(known.data.splits["train"].labels[known.held_out]).tolist() == [1] * 10
    assert sorted([*known.fitted, *known.held_out]) == list(range(50))
    assert (whole.facts["train_images"], whole.facts["test_images"], whole.facts["per_class"]) == (800, 797, None)
    assert set(whole.held_out) != set(draw_known(DIGITS, 0, 4).held_out)


@pytest.mark.parametrize(("noise", "expected"), [(0.1, 100.0), (1e3, 25.0)])
def test_classes_that_features_tell_apart_are_found(noise: float, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four classes at the corners of a tetrahedron, near and far from the noise; with all noise it is chance."""
    monkeypatch.setattr("gift_vit.invariance.probes.DRIFT_IMAGES", 5)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(100)
    train, test = (
        Features(torch.eye(4)[labels] + noise * torch.randn(400, 4, generator=generator), labels, 0.0) for _ in range(2)
    )
    found = fit_classifiers(train, test, np.arange(300), np.arange(300, 400), 4)
    for kind in CLASSIFIERS:
        assert 100 * found.correct[kind].mean() == pytest.approx(expected, abs=7.5)
    assert torch.equal(found.features, test.values[[0, 100, 200, 299, 399]])


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("lora", ["forgetting=digit"], "no such folder or file, and no such choice of dataset=; did you mean digits?"),
        (
            "lora",
            ["forgetting=tiny_mammals", "forgetting_root=nowhere"],
            "whose dataset.root is given as forgetting_root: dataset tiny_mammals: there is no folder",
        ),
        ("lora", ["forgetting=."], "error: forgetting=.: "),
        (
            "lora",
            ["forgetting=one", "forgetting_root=a"],
            "forgetting_root=a has no effect with forgetting=one, which is a path",
        ),
        ("lora", ["forgetting=one"], "forgetting=folder_one: its images are all of one class; give images of two"),
        ("lora", ["per_class=1"], "forgetting=digits: a fifth of 10 training images chooses the classifiers' settings, and"),
        ("lora", ["forgetting=null", "images=8", "forgetting_root=a"], "forgetting_root=a has no effect without forgetting="),
        ("toast", [], "its backbone cannot be separated from the method"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    runs: dict[str, Path],
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    for index in range(8):
        file = tmp_path / "one" / "train" / "cat" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(file)
    code, printed, error = call(f"runs=[{runs['vpt_deep']},{runs[method]}]", *WORDS, *words)
    assert (code, printed) == (2, "")
    assert error.startswith("error: ")
    assert message in error
