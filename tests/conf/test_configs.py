"""Every YAML composes, loads strictly and says what it is; every mistake is one line."""

from dataclasses import asdict
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gift_vit.compose import BASE_GROUPS, compose_config, explain_composition_error
from gift_vit.config import default_run_name, load_config, protocol_changes
from gift_vit.data import DATASETS
from gift_vit.errors import ConfigError
from gift_vit.methods import METHODS, GiftConfig
from gift_vit.paths import conf_dir

FILES = sorted(conf_dir().rglob("*.yaml"))
GROUPS = (
    "dataset",
    "method",
    "backbone",
    "optim",
    "trainer",
    "tracker",
    "paths",
    "protocol",
    "experiment",
    "debug",
    "sweep",
    "sweeper",
)
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((conf_dir() / group).glob("*.yaml"))]
REQUIRED = {"parquet": ["dataset.root=/somewhere/My Flowers"], "folder": ["dataset.root=/somewhere/My Flowers"]}


def test_every_file_is_among_the_choices_tested() -> None:
    apart = [file for file in FILES if file.name == "train.yaml" or {"hydra", "recipe"} & set(file.parts)]
    assert len(CHOICES) == len(FILES) - len(apart)
    assert len(apart) == 1 + 8 + len(list((conf_dir() / "recipe").glob("*.yaml")))
    assert len(CHOICES) >= 25


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_loads(group: str, choice: str) -> None:
    cfg = load_config(compose_config([f"{group}={choice}", *REQUIRED.get(choice, [])]))
    label = {"method": cfg.method_name, "backbone": cfg.backbone.name, "protocol": cfg.protocol.name}.get(group)
    if group == "dataset":
        label = cfg.dataset.name.removesuffix("_my_flowers")
    assert label in {None, choice}, "the file's name is the label"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_file_says_what_it_is_and_globals_start_with_their_directive(file: Path) -> None:
    lines = file.read_text().splitlines()
    is_global = "hydra" not in file.parts and file.parent.name in {
        "protocol",
        "experiment",
        "debug",
        "sweep",
        "sweeper",
        "recipe",
    }
    assert (lines[0] == "# @package _global_") == is_global
    assert lines[1 if is_global else 0].startswith("# ")


def test_methods_and_datasets_in_yaml_and_registry_are_the_same() -> None:
    kinds = {
        group: {OmegaConf.load(file).kind for file in (conf_dir() / group).glob("*.yaml")}  # pyright: ignore[reportAttributeAccessIssue]
        for group in ("method", "dataset")
    }
    assert kinds == {"method": set(METHODS), "dataset": set(DATASETS)}


def test_gift_yaml_restates_the_defaults_of_its_dataclass() -> None:
    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "method" / "gift.yaml"))
    assert isinstance(values, dict)
    assert {key: value for key, value in values.items() if key not in {"name", "kind", "grid"}} == asdict(GiftConfig())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=digit"], "unknown dataset 'digit'; did you mean digits?"),
        (["method=gitf"], "unknown method 'gitf'; did you mean gift? (known: adalora, adaptformer, bitfit, "),
        (["backbone=vit_b"], "unknown backbone 'vit_b'"),
        (["optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["method=linear", "method.rank=4"], "unknown key method.rank; did you mean method.name? (known: name, kind)"),
        (["method.rnak=4"], "unknown key method.rnak; did you mean method.rank?"),
    ],
)
def test_composition_errors_are_one_line_with_the_nearest_name(overrides: list[str], message: str) -> None:
    with pytest.raises(HydraException) as raised:
        compose_config(overrides)
    text = str(explain_composition_error(raised.value, overrides))
    assert text.startswith(message)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["+optimm.lr=1"], "unknown key optimm; did you mean optim?"),
        (["+method.rnak=1"], "unknown key method.rnak; did you mean method.rank?"),
        (["optim.lr=abc"], "optim.lr: Value 'abc' of type 'str' could not be converted to Float"),
        (["optim.lr=[1e-3,1e-2]"], "optim.lr: Value '[0.001, 0.01]' of type 'ListConfig' could not be converted to Float"),
        (["trainer.epochs=2.5"], "trainer.epochs: Value '2.5' of type 'float' could not be converted to Integer"),
        (["trainer.epochs=10"], "optim.warmup_epochs=10 leaves nothing of trainer.epochs=10; lower it"),
        (["backbone.model=vit_tiny_patch16_224.nope"], "timm knows no weights 'nope' of vit_tiny_patch16_224 (known: augreg"),
        (["trainer.compile=maybe"], "trainer.compile: Value 'maybe' is not a valid bool"),
        (["method.kind=lroa"], "unknown method kind 'lroa'"),
        (["method.schema=paca"], "unknown method.schema 'paca' (known: linear"),
        (["method.rank=0"], "method.rank=0: expected a whole number from 1"),
        (["method.target_modules=attn.proj"], "method.target_modules"),
        (["dataset=parquet"], "dataset.root is required; give dataset.root=<value>"),
        (
            ["paths.data_root="],
            "paths.data_root is empty: give a path, or unset the environment variable that it is taken from",
        ),
        (["phase=train"], "unknown phase 'train' (known: search, final)"),
        (["seed=-1"], "seed=-1: expected a whole number of 0 or more"),
        (["seed=one"], "seed='one': expected a whole number"),
        (["backbone.model=vit_bose_patch16_224"], "timm has no model 'vit_bose_patch16_224'"),
        (["run_name=A b"], "run_name='A b': expected lower-case letters"),
        (["trainer.precision=fp8"], "unknown trainer.precision 'fp8'"),
        (["tracker.kind=mlflow"], "tracker.kind is 'mlflow'"),
        (["protocol.final_train.mini=test"], "protocol.final_train.mini='test': expected one of train, trainval"),
    ],
)
def test_values_are_checked_and_messages_name_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(compose_config(overrides))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_protocols_are_what_they_are_named_for() -> None:
    paper = load_config(compose_config(["dataset=cub", "protocol=gift_paper", "phase=search"]))
    assert (paper.trainer.batch_size, paper.trainer.epochs, paper.trainer.drop_path_rate, paper.seed) == (32, 100, 0.1, 42)
    assert (paper.optim.warmup_epochs, paper.optim.warmup_lr, paper.optim.min_lr, paper.optim.schedule) == (
        10,
        1e-7,
        1e-6,
        "epoch",
    )
    assert (paper.train_split, paper.stop_epoch) == ("train", 25)
    assert paper.dataset.transform.resize == "bilinear"
    final = load_config(compose_config(["dataset=cub", "protocol=gift_paper", "phase=final"]))
    assert (final.train_split, final.stop_epoch) == ("train", None)
    clean = load_config(compose_config(["dataset=cub", "phase=final"]))
    assert (clean.protocol.name, clean.train_split, clean.optim.schedule, clean.protocol.seeds) == (
        "clean",
        "trainval",
        "step",
        [0, 1, 2],
    )


def test_what_a_run_changes_of_its_protocol_is_recorded() -> None:
    assert protocol_changes(load_config(compose_config(["dataset=cub"]))) == {}
    changed = load_config(compose_config(["dataset=cub", "trainer.epochs=30", "optim.lr=0.5"]))
    assert protocol_changes(changed) == {"trainer.epochs": (100, 30)}
    auto = ["dataset=cub", "trainer.speed=auto", "trainer.precision=bf16"]
    assert protocol_changes(load_config(compose_config(auto))) == {}, "it rules no number format"
    ruled = load_config(compose_config([*auto, "protocol=gift_paper"]))
    assert protocol_changes(ruled) == {"trainer.speed": ("exact", "auto")}


def test_run_name_lists_what_differs_from_the_defaults() -> None:
    def name(*words: str) -> str:
        groups = [word for word in words if word.split("=")[0] in BASE_GROUPS]
        return load_config(compose_config(words), compose_config(groups)).run_name

    assert name() == "clean_lr0.001_wd0.0001_seed0"
    assert name("method.rank=16", "optim.lr=1e-3") == name(), "a default spelt out is the same run"
    assert name("method.rank=4", "optim.lr=2.5e-4", "seed=2") == "clean_lr0.00025_wd0.0001_seed2_rank4"
    assert name("trainer.speed=auto", "trainer.precision=bf16") == "clean_lr0.001_wd0.0001_seed0_speedauto"
    assert name("method.target_modules=[attn.q,attn.v]") == "clean_lr0.001_wd0.0001_seed0_target-modulesattn.q-attn.v"
    assert name("protocol=gift_paper") == "gift_paper_lr0.001_wd0.0001_seed42"
    assert name("trainer.workers=9", "paths.data_root=/elsewhere", "tracker=wandb") == name(), "where it runs names nothing"
    assert name("dataset=digits", "backbone=vit_mini", "experiment=demo") == (
        "clean_lr0.001_wd0.0001_seed0_warmup-epochs1_drop-path-rate0_epochs10"
    )
    assert name("run_name=7") == "7", "a number is a name too"
    long = name(
        f"method.blocks={list(range(12))}",
        f"method.target_modules={[f'blocks.{i}.attn.proj' for i in range(12)]}".replace(" ", ""),
    )
    assert len(long) <= 160


def test_default_names_of_different_configurations_differ() -> None:
    words = ["optim.lr=0.01", "optim.weight_decay=0", "seed=3", "method.rank=2", "method.share=true", "trainer.epochs=70"]
    baseline = load_config(compose_config()).values
    names = {default_run_name(load_config(compose_config([word])).values, baseline) for word in words}
    assert len(names) == len(words)


def test_folder_datasets_are_told_apart_by_their_folder() -> None:
    cfg = load_config(compose_config(["dataset=folder", "dataset.root=/pictures/My Flowers"]))
    assert cfg.dataset.name == "folder_my_flowers"
    assert cfg.folder.parts[-4] == "folder_my_flowers"


def test_a_run_folders_config_loads_again() -> None:
    cfg = load_config(compose_config(["dataset=tiny_mammals", "method.rank=4"]))
    again = load_config(OmegaConf.create(cfg.values))
    assert again == cfg
