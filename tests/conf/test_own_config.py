"""A folder of one's own configuration, and what its files get wrong."""

from pathlib import Path

import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.config.words import hydra_words
from gift_vit.runs import Run

FILES = {
    "dataset/leaves.yaml": "defaults: [/FolderConfig]\nname: leaves\nroot: leaves\n",
    "dataset/latin.yaml": "# Bl\xe4tter\ndefaults: [/FolderConfig]\nname: latin\nroot: leaves\n",
    "dataset/broken.yaml": "name: [a\n",
    "dataset/grammar.yaml": "root: ${oc.env:A=B}\n",
    "dataset/twice.yaml": "name: a\nname: b\n",
    "dataset/orphan.yaml": "defaults: [foldr]\nname: orphan\n",
    "experiment/swept.yaml": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      optim.lr: 1e-3,1e-4\n",
    "experiment/nested.yaml": "trainer:\n  epochs: 3\n",
    "experiment/slash.yaml": "# @package _global_\ndefaults:\n  - backbone: vit_mini\n",
    "experiment/override.yaml": "# @package _global_\ndefaults:\n  - override backbone: vit_mini\n",
}
WRITE_SLASH = r"a file of experiment chooses backbone: (vit_mini|<name>); write `- override /backbone: (vit_mini|<name>)`"
MISTAKES = {
    "axes": (["experiment=swept"], r"\Aoptim\.lr: an axis of a sweep, and this is one run; add -m, or `mode: MULTIRUN` below"),
    "axes in words": (["hydra.sweeper.params={seed: '1,2'}"], r"\Aseed: an axis of a sweep, and this is one run; add -m"),
    "key": (
        ["dataset=leaves", "dataset.val_fractoin=0.3"],
        r"val_fractoin; did you mean dataset\.val_fraction\? \(known: name, ",
    ),
    "key in a mapping": (["dataset.transform={hflp: 0.1}"], r"transform\.hflp; did you mean dataset\.transform\.hflip\?"),
    "null already": (["~optim.clip_norm"], r"\A~optim\.clip_norm: it is null already; leave the word out"),
    "null of a needed group": (
        ["dataset=null"],
        r"\Adataset=null: a group cannot be null on the command line; write dataset=<name>",
    ),
    "null of another group": (["experiment=null"], r"\Aexperiment=null: a group cannot .* write ~experiment"),
    "one of several": (["experiment=[demo,nosuch]"], r"\Aunknown experiment 'nosuch' \(known: demo, mini, nested, "),
    "not UTF-8": (["dataset=latin"], r"\A/.*/my_conf/dataset/latin\.yaml is not written in UTF-8: .*position 4"),
    "not YAML": (["dataset=broken"], r"while parsing a flow sequence in \".*/my_conf/dataset/broken\.yaml\", line 1"),
    "not OmegaConf": (["dataset=grammar"], r"\Aroot: token recognition error at: '='\Z"),
    "a key twice": (["dataset=twice"], r"found duplicate key name"),
    "base": (
        ["dataset=orphan"],
        r"\Adataset/orphan\.yaml: unknown dataset 'foldr'; did you mean folder\? \(known: broken, cars, ",
    ),
    "package": (["experiment=nested"], r"\Athe file of experiment= sets .*; its first line must be `# @package _global_`"),
    "slash": (["experiment=slash"], WRITE_SLASH),
    "override without slash": (["experiment=override"], WRITE_SLASH),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        file = tmp_path / "my_conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_write(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Run.train(["--config-dir", "my_conf", *words])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("flag", [["--config-dir=~/my_conf"], ["--config-dir", "~/my_conf"], ["-cd", "my_conf"]])
def test_the_folder_is_given_to_hydra_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch, flag: list[str]) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert hydra_words(["dataset=leaves", *flag]) == ["--config-dir", str(folder / "my_conf"), "dataset=leaves"]


@pytest.mark.parametrize("name", ["nowhere", "my_conf/dataset/leaves.yaml"])
def test_what_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\A--config-dir {name}: there is no such folder\Z"):
        hydra_words([f"--config-dir={name}"])
