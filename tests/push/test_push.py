"""Runs on a hub of our own: what is pushed, what comes back, and what is said where that fails."""

import getpass
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from gift_vit.common.errors import ConfigError
from gift_vit.common.hub import check_repo
from gift_vit.config import compose_config, load_config
from gift_vit.methods.adapter import load_adapter
from gift_vit.pull.__main__ import Arguments
from gift_vit.push.__main__ import _seeds, write_shared
from gift_vit.push.card import model_card
from gift_vit.push.record import _without_paths, shareable
from gift_vit.runs.finished import make_predictions
from gift_vit.runs.result import Result, read_result, to_json
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from gift_vit.runs.verify import Untruth, verify_run
from tests.cold import answers
from tests.data_prep.http_server import serving
from tests.push.hub_server import HubServer
from tests.results.conftest import make_result
from tests.warm import Ended, Process, act_as, clean_environment

FILES = {"adapter.safetensors", "config.yaml", "result.json", "README.md"}
USER = "wilhelmine"  # of the machine that the run is told to have been made on
MACHINE = f"/home/{USER}/my data (2)"
ENTITY = "her_team"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished final run on digits, GIFT, one epoch."""
    root = tmp_path_factory.mktemp("private")
    words = ["debug=smoke", "backbone.img_size=32", "phase=final", "protocol.final_train.mini=train"]
    words += [f"paths.output_root={root}/out", f"tracker.entity={ENTITY}"]
    cfg = load_config(compose_config(words))
    cfg.values["paths"]["data_root"] = MACHINE
    train_run(cfg, Call(f"python -m gift_vit.train {' '.join(words)}", words))
    return Run.open(cfg.folder)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serving(HubServer()) as server:
        yield server


def environment(hub: HubServer, cwd: Path) -> dict[str, str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "hf"), "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    return settings | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def ask(hub: HubServer, cwd: Path, module: str, *words: str, **settings: str) -> Ended:
    """The end of a command, in a fork that imports huggingface_hub anew: it reads the Hub's address once."""

    def action() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]
        act_as(f"gift_vit.{module}", words)

    with Process(action, cwd, clean_environment(**{**environment(hub, cwd), **settings})) as process:
        return process.wait()


def test_a_run_goes_to_the_hub_and_comes_back(run: Run, hub: HubServer, tmp_path: Path) -> None:
    run.data().split("test")[0][0].save(tmp_path / "a.png")
    predict, there = ("predict", "images=a.png", "topk=3"), "run=hf://me/gift-digits"
    pushed = ask(hub, tmp_path, "push", f"run={run.folder}", "repo=me/gift-digits", "license=apache-2.0")
    pulled = ask(hub, tmp_path, "pull", "repo=me/gift-digits")
    told = ask(hub, tmp_path, *predict, there)
    scored = ask(hub, tmp_path, "evaluate", there)
    merged = ask(hub, tmp_path, "merge", there, "out=merged.safetensors")
    drawn = ask(hub, tmp_path, "explain", there, "count=1", "out=maps")
    without = [ask(hub, tmp_path, *predict, folder, HF_HUB_OFFLINE="1") for folder in (f"{there}@main", "run=gift-digits")]
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert pushed.stdout.strip().endswith("use it with run=hf://me/gift-digits")
    files = hub.repos["me/gift-digits"]
    assert (set(files), hub.private) == (FILES, {"me/gift-digits": True})
    assert files["adapter.safetensors"] == (run.folder / "adapter.safetensors").read_bytes()

    assert (pulled.returncode, pulled.stderr) == (0, "")
    folder = tmp_path / "gift-digits"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert run.result is not None
    own = read_result(folder / "result.json")
    assert (own.metrics, own.files) == (run.result.metrics, run.result.files)
    [expected] = run.predict(tmp_path / "a.png", topk=3)
    for answer in (told, *without):
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.split(": ", 1)[1] == str(expected).split(": ", 1)[1] + "\n"
    assert f"digits test: top-1 {run.result.metrics['test_top1']:.2f} %" in scored.stdout, scored.stderr
    assert (merged.returncode, (tmp_path / "merged.safetensors").is_file()) == (0, True), merged.stderr
    assert (drawn.returncode, (tmp_path / "maps/maps.npz").is_file()) == (0, True), drawn.stderr


def test_what_is_pushed_is_verified_but_for_what_stays_behind(run: Run, tmp_path: Path) -> None:
    write_shared(run, tmp_path, "me/it")
    pushed = Run.open(tmp_path)
    lines = list(verify_run(pushed))
    assert lines[1].endswith("metrics.jsonl and predictions.parquet are not checked, for they are not pushed")
    assert lines[-1].startswith("scored again: test top-1 ")
    assert len(lines) == 5
    with pytest.raises(ConfigError, match="keeps no predictions of test; it was pulled from the Hub, and predictions are kept"):
        pushed.predictions()
    with pytest.raises(ConfigError, match=r"was pulled from the Hub, and .*; drop keep_predictions="):
        make_predictions(pushed)
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\0")
    with pytest.raises(Untruth, match="has another SHA-256 than"):
        list(verify_run(pushed))
    (run.folder / "README.md").write_text("my notes")
    assert not run.is_pushed
    (run.folder / "README.md").unlink()


def test_names_of_classes_are_no_paths(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    record = json.loads((copy / "result.json").read_text())
    record["data"]["class_names"] = names = ["/m/0k4j", "A /B", *"23456789"]
    (copy / "result.json").write_text(json.dumps(record))
    config, shared = shareable(Run.open(copy))
    assert shared["data"]["class_names"] == names
    assert _without_paths("train/<class>*.jpg, val/<class>/", {}) == "train/<class>*.jpg, val/<class>/"
    known = {"/data": ".", "/alice": "~"}
    for told in ("https://example.org/data/foo", "shared/data/x", "timm/alice", "~/alice"):
        assert _without_paths(told, known) == (told if told != "~/alice" else "alice")
    assert _without_paths("of file:///data/x and /alice/y", known) == "of file://./x and y"
    assert str(run.folder) not in json.dumps([config, shared])


def test_nothing_of_the_machine_is_in_what_is_shared(run: Run, tmp_path: Path) -> None:
    write_shared(run, tmp_path, "me/it")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    for path in tmp_path.iterdir():
        text = path.read_text() if path.suffix != ".safetensors" else metadata(path)
        for secret in (USER, "my data", ENTITY, str(run.folder.parents[5]), str(Path.cwd()), f"{Path.home()}/"):
            assert secret not in text, (path.name, secret)
        for name in (socket.gethostname(), getpass.getuser()):
            assert not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.=:])", text), (path.name, name)
        assert not re.search(r"(?<![\w:/.~<`])/(home|tmp|root|Users|work|mnt)\b", text), path.name
    shared = Run.open(tmp_path)
    assert shared.result is not None
    assert shared.values == shared.result.run.config
    assert shared.config.values["paths"]["data_root"] == str(Path.cwd() / "data"), "where everybody's data lies"


def metadata(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return json.dumps(file.metadata())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dataset.root", f"{MACHINE}/cub", "data/cub"),
        ("dataset.root", "/mnt/alice/pictures of cats", "pictures of cats"),
        ("dataset.root", "../alice/cats", "cats"),
        ("dataset.root", "~/alice/cats", "cats"),
        ("backbone.weights", "/home/alice/w/vit.pth", "vit.pth"),
        ("backbone.model", "/home/alice/dr smith/bert", "bert"),
        ("dataset.files", {"train": "/home/alice/x/*.parquet"}, {"train": "*.parquet"}),
        ("dataset.name", "and/or", "and/or"),
    ],
)
def test_a_path_in_the_configuration_says_what_and_not_where(run: Run, key: str, value: object, expected: object) -> None:
    assert run.result is not None
    section, name = key.split(".")
    config = json.loads(json.dumps(run.result.run.config))
    config[section][name] = value
    words = [f"+{key}={value}", "seed=3", "hydra.run.dir=/home/alice/y", "tracker=wandb"]
    shared, record = shareable(with_record(run, config=config, overrides=words))
    assert shared[section][name] == record["run"]["config"][section][name] == expected
    assert "alice" not in json.dumps(record)
    assert USER not in json.dumps(record)
    assert record["run"]["overrides"][-1] == "seed=3"


class Told(Run):
    """A run whose record says something else than ``result.json``."""

    def __init__(self, told_of: Run, **changes: Any) -> None:
        super().__init__(told_of.folder)
        vars(self)["told"] = replace(told_of.record(), **changes)

    @property
    def result(self) -> Result:
        return vars(self)["told"]


def with_record(run: Run, **changes: Any) -> Run:
    """The run with a record that says something else of what was run."""
    return Told(run, run=replace(run.record().run, **changes))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unpacked from /srv/bob/a.zip, and b", "unpacked from a.zip, and b"),
        ("https://example.org/a/b.zip", "https://example.org/a/b.zip"),
        ("train/a.png = test/b.png", "train/a.png = test/b.png"),
        ("3 images/s", "3 images/s"),
    ],
)
def test_paths_in_sentences(run: Run, text: str, expected: str) -> None:
    told = replace(run.record().data, source=text, warnings=[text])
    _, record = shareable(Told(run, data=told))
    assert (record["data"]["source"], record["data"]["warnings"]) == (expected, [expected])


def test_the_card_of_a_whole_model_says_so(run: Run) -> None:
    assert run.result is not None
    card = model_card(replace(run.result, run=replace(run.result.run, kind="full")), "me/it")
    assert "The backbone is part of it: its licence holds." in card
    assert "The backbone is not part of it." in model_card(run.result, "me/it")


def test_the_card_names_a_file_of_weights(run: Run) -> None:
    assert run.result is not None
    config = json.loads(json.dumps(run.result.run.config))
    config["backbone"]["weights"] = "vit.pth"
    result = with_record(run, config=config).result
    assert result is not None
    told = "The pretrained weights are the file `vit.pth`, which is not part of it: pull the run, and write"
    assert told in model_card(result, "me/it")
    assert "The pretrained weights are" not in model_card(run.result, "me/it")
    config["backbone"] |= {"weights": None, "model": "my_bert"}
    result = with_record(run, config=config).result
    assert result is not None
    assert "are the folder `my_bert`, which is not part of it" in model_card(result, "me/it", of_folder=True)
    assert "`backbone.model`" in model_card(result, "me/it", of_folder=True)


def test_the_card_has_the_numbers_and_their_spread(run: Run, tmp_path: Path) -> None:
    assert run.result is not None
    top1 = run.result.metrics["test_top1"]
    assert top1 is not None
    other = json.loads(to_json(run.result))
    other["run"]["seed"] = other["run"]["config"]["seed"] = 1
    other["metrics"]["test_top1"] = top1 / 2
    unlike = json.loads(json.dumps(other))
    unlike["run"]["config"]["optim"]["lr"] = 0.5
    for name, record in (("seed1", other), ("unlike", unlike)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    out.mkdir()
    write_shared(run, out, "me/it", _seeds(run, str(tmp_path / "runs")), "mit")
    data: Any = ModelCard.load(out / "README.md").data
    values = [top1, top1 / 2]
    expected = [top1, fmean(values), stdev(values)]
    assert [each.metric_value for each in data.eval_results] == pytest.approx(expected)
    assert {(each.dataset_split, each.dataset_name) for each in data.eval_results} == {("test", "digits")}
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("mit", "gift-vit", "image-classification")
    assert ("timm" in data.tags, data.base_model, data.get("base_model_relation")) == (True, None, None)
    text = (out / "README.md").read_text()
    assert f"{fmean(values):.2f} ± {stdev(values):.2f} %" in text
    assert run.result.files is not None
    for part in (run.result.files["predictions.parquet"], "hf://me/it", "2312.00700", "Licence of the data", "GIFT"):
        assert part in text


def test_seeds_are_of_final_runs(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a search run, and seeds= is for final ones; leave it out"):
        _seeds(with_record(run, phase="search"), str(tmp_path))


SEQUENCES = "AutoModelForSequenceClassification"
TEXTS = [  # benchmark, dataset, metric, pooling; and tag, metric and loading of the card
    ("glue", "glue_rte", None, "model", ("text-classification", "accuracy", SEQUENCES)),
    ("glue", "glue_cola", "matthews", "model", ("text-classification", "matthews_correlation", SEQUENCES)),
    ("glue", "glue_stsb", "pearson", "model", ("text-classification", "pearsonr", SEQUENCES)),
    ("own", "text_reviews", "f1", "mean", ("text-classification", "f1", None)),
    ("commonsense", "commonsense", "exact", "model", ("text-generation", "exact_match", "AutoModelForCausalLM")),
]


@pytest.mark.parametrize(("benchmark", "dataset", "metric", "pooling", "expected"), TEXTS)
def test_the_card_of_a_run_on_texts(benchmark: str, dataset: str, metric: str, pooling: str, expected: tuple[str, ...]) -> None:
    result = make_result(
        *("gift_qv", dataset),
        run={"benchmark": benchmark},
        config={"backbone.kind": "transformers", "backbone.pooling": pooling},
        data={"class_names": ["no", "yes"]},
        backbone={"weights": "FacebookAI/roberta-base@e2da8e2"},
    )
    card = ModelCard(model_card(replace(result, metric=metric, extra_metrics={"spearman": 12.5}), "me/it"))
    tag, named, loader = expected
    data: Any = card.data
    assert (data.pipeline_tag, "transformers" in data.tags, data.metrics) == (tag, True, [named])
    assert (data.base_model, data["base_model_relation"]) == ("FacebookAI/roberta-base", "adapter")
    [scored] = data.eval_results
    assert (scored.task_type, scored.metric_type, scored.metric_value) == (tag, named, 90.0)
    of_glue = ("nyu-mll/glue", dataset.removeprefix("glue_"), "validation")
    own = (scored.dataset_type, scored.dataset_config, scored.dataset_split)
    assert own == (of_glue if benchmark == "glue" else (dataset, None, "test"))
    assert data.to_dict().get("datasets") == (["nyu-mll/glue"] if benchmark == "glue" else None)
    assert "| Spearman correlation | 12.50 % |" in card.text
    assert ("Classes: no, yes" in card.text) == (metric in {None, "matthews", "f1"})
    assert (f"merge run=hf://me/it out=merged  # then transformers.{loader}." in card.text) == (loader is not None)
    assert ("gift_vit.merge" in card.text) == (loader is not None)
    assert not re.search(r"top-1|image|photo|predict run|timm", str(card), re.IGNORECASE)


REFUSALS = {
    "wrong token": (401, "the Hub does not take the token; log in with `hf auth login`"),
    "no right": (403, "you have no right to write me/it"),
    "failing": (500, "the Hub answered 500 to write me/it"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_line(run: Run, hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.refusal, message = REFUSALS[name]
    told = ask(hub, tmp_path, "push", f"run={run.folder}", "repo=me/it")
    assert told.returncode == (1 if hub.refusal == 500 else 2)
    assert (told.stderr.count("\n"), told.stdout) == (1, ""), told.stderr
    assert message in told.stderr
    assert "hf_secret" not in told.stderr


def test_a_push_that_fails_can_be_made_again(run: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.card_error = '"license" must be one of'
    words = ("push", f"run={run.folder}", "repo=me/it")
    told = ask(hub, tmp_path, *words)
    assert (told.returncode, told.stderr.count("\n"), hub.repos["me/it"]) == (2, 1, {})
    assert 'the Hub answered 400 to write me/it: Invalid metadata in README.md. - "license" must be one of' in told.stderr
    assert "try again" not in told.stderr
    hub.card_error = None
    hub.repos["me/it"] = {".gitattributes": b"of the Hub"}
    again = ask(hub, tmp_path, *words)
    assert (again.returncode, set(hub.repos["me/it"])) == (0, FILES | {".gitattributes"}), again.stderr


def test_what_is_in_the_cache_in_part_is_not_taken_for_no_run(run: Run, hub: HubServer, tmp_path: Path) -> None:
    write_shared(run, tmp_path, "me/it")
    hub.repos["me/it"] = {name: (tmp_path / name).read_bytes() for name in FILES}
    part = {"config.yaml": hub.repos["me/it"].pop("config.yaml")}
    first = ask(hub, tmp_path, "evaluate", "run=hf://me/it")
    assert "hf://me/it holds no config.yaml: it is no run that `gift_vit.push` put there" in first.stderr
    hub.repos["me/it"] |= part
    offline = ask(hub, tmp_path, "evaluate", "run=hf://me/it", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr.count("\n")) == (1, 1)
    assert "HF_HUB_OFFLINE is set, and it is not, or not all of it, in the cache; unset it" in offline.stderr


def test_of_weights_that_a_run_of_the_cache_lacks_its_reader_can_pull_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for cache, told in ((run.folder.parent, r"config\.yaml; pull the run first"), (run.folder / "other", r"config\.yaml")):
        monkeypatch.setattr("gift_vit.runs.run.cache", lambda cache=cache: cache)
        with pytest.raises(ConfigError, match=rf"no such file, in .*{told}$"), run._told_where_weights_are_named():
            raise ConfigError("no such file")


@pytest.mark.parametrize(
    ("repo", "is_right"),
    [("me/it", True), ("_me/_it.2", True), ("me/it.git", False), ("me/it--2", False), ("it", False), ("me/it/2", False)],
)
def test_names_of_repositories(repo: str, is_right: bool) -> None:
    with nullcontext() if is_right else pytest.raises(ConfigError, match=rf"^repo={repo}: expected <user>/<name> of the"):
        check_repo(repo)


def test_a_revision_to_pull_may_stand_behind_the_name() -> None:
    for words in ({"repo": "hf://me/it@v1"}, {"repo": "me/it", "revision": "v1"}):
        asked = Arguments(**words)
        assert (asked.repo, asked.revision, asked.folder.name) == ("me/it", "v1", "it")
    with pytest.raises(ConfigError, match="repo=me/it@: expected a branch, tag or commit after @"):
        Arguments(repo="me/it@")
    with pytest.raises(ConfigError, match="repo=me/it@v1 and revision=v2 contradict each other; drop one"):
        Arguments(repo="me/it@v1", revision="v2")


def test_what_is_there_is_not_overwritten_unasked(run: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.repos["me/it"] = {"README.md": b"mine"}
    told = ask(hub, tmp_path, "push", f"run={run.folder}", "repo=me/it")
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "repo=me/it: there is one of that name already" in told.stderr
    assert hub.repos["me/it"] == {"README.md": b"mine"}
    hub.repos["me/it"] |= {"adapter/adapter_model.safetensors": b"of a run on texts", "photo.jpg": b"mine"}
    before = dict(hub.repos["me/it"])
    public = ask(hub, tmp_path, "push", f"run={run.folder}", "repo=me/it", "replace=true")
    assert (public.returncode, public.stderr) == (2, "error: repo=me/it is public; give private=false, or another name\n")
    assert hub.repos["me/it"] == before
    again = ask(hub, tmp_path, "push", f"run={run.folder}", "repo=me/it", "replace=true", "private=false")
    assert (again.returncode, set(hub.repos["me/it"])) == (0, FILES | {"photo.jpg"}), again.stderr


HUB_PROBLEMS: list[tuple[dict[str, str], int, dict[str, str]]] = [
    (
        *({}, 2),
        {
            "me/nothing": "there is no me/nothing on the Hub, or it is private",
            "me/other": "hf://me/other holds no adapter.safetensors",
        },
    ),
    ({"HF_HUB_OFFLINE": "1"}, 1, {"me/nothing": "HF_HUB_OFFLINE is set"}),
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, {"me/nothing": "cannot reach http://127.0.0.1:9"}),
]


@pytest.mark.parametrize(("env", "code", "messages"), HUB_PROBLEMS)
def test_what_the_hub_has_not_is_one_line_without_torch(
    hub: HubServer, tmp_path: Path, env: dict[str, str], code: int, messages: dict[str, str]
) -> None:
    hub.repos["me/other"] = {"README.md": b"text"}
    commands = [
        (repo, command)
        for repo in messages
        for command in (
            ("gift_vit.pull", f"repo={repo}"),
            ("gift_vit.predict", f"run=hf://{repo}", "images=a.png"),
            ("gift_vit.evaluate", f"run=hf://{repo}"),
            ("gift_vit.merge", f"run=hf://{repo}", "out=a.pth"),
            ("gift_vit.explain", f"run=hf://{repo}", "out=maps"),
        )[: 1 if env else None]  # all open the run by one line
    ]
    found = answers([command for _, command in commands], tmp_path, environment(hub, tmp_path) | env)
    for (repo, _), told in zip(commands, found, strict=True):
        assert (told.returncode, told.stdout, told.stderr.count("\n")) == (code, "", 1), told.stderr
        assert messages[repo] in told.stderr
        assert told.imported == []
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_an_unfinished_run_is_not_pushed(run: Run, hub: HubServer, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    told = ask(hub, tmp_path, "push", "run=run", "repo=me/it")
    assert (told.returncode, told.stderr.count("\n"), hub.requests) == (2, 1, [])
    assert "run is not finished" in told.stderr


def test_an_adapter_of_the_hub_is_loaded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What huggingface_hub downloads is put in place of its download."""
    write_shared(run, tmp_path, "me/it")
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, revision: str | None, **_: object) -> str:
        asked.append((repo, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded, again = Run.open("hf://me/it@v1").model(), load_adapter(run.model(), "hf://me/it")
    assert asked == [("me/it", "v1"), ("me/it", None)]
    for name, value in run.model().state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
