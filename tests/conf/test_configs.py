"""Every YAML composes, loads strictly and says what it is; every mistake is one line; every default stands once."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gift_vit.common.errors import ConfigError
from gift_vit.config.compose import BASE_GROUPS, compose_config, conf_dir, flatten
from gift_vit.config.keys import config_difference, default_run_name, identifying
from gift_vit.config.loader import load_config, protocol_changes
from gift_vit.config.run_config import RunConfig
from gift_vit.config.words import overrides_of
from gift_vit.data.config import CONFIGS as DATASETS
from gift_vit.methods.config import CONFIGS as METHODS
from tests.conf.files import BASES, FILES, bases, built_on, composed, content, entire, root, stems, together


def loaded(*words: str) -> RunConfig:
    return load_config(composed(*words))


def plain(cfg: Any) -> Any:
    """Containers, interpolations as they are written."""
    return OmegaConf.to_container(cfg)


def test_every_file_is_among_those_tested() -> None:
    tried = {word for words in together() for word in words} | {f"sweep={stem}" for stem in stems("sweep")}
    apart = [file for file in FILES if file in BASES or file.name == "train.yaml" or {"hydra", "recipe"} & set(file.parts)]
    assert len(tried) == len(FILES) - len(apart)
    assert len(apart) == 1 + len(BASES) + 9 + len(stems("recipe"))
    assert len(tried) >= 110


@pytest.mark.parametrize("words", together(), ids=lambda words: " ".join(words[:2]))
def test_every_choice_composes_and_loads(words: tuple[str, ...]) -> None:
    """The loader refuses a key that no dataclass has, so every key is read."""
    cfg = composed(*words, "recipe=none")
    choices = dict(word.split("=") for word in words)
    for group in {"dataset", "method", "backbone", "tracker"} & choices.keys():
        assert plain(cfg[group]) == plain(entire(conf_dir() / group / f"{choices[group]}.yaml"))
    run = load_config(composed(*words, "recipe=none", *root(words)))
    names = {
        "method": run.method_name,
        "backbone": run.backbone.name.removesuffix("_my_flowers"),
        "protocol": run.protocol.name,
        "tracker": run.tracker.kind,
        "dataset": run.dataset.name.removesuffix("_my_flowers"),
    }
    assert {group: names[group] for group in names if group in choices}.items() <= choices.items(), "the file's name"
    assert run.tracker.mode == "offline", "unless a person says otherwise"
    options = {field.name for field in fields(run.method)}
    assert set(cfg.method) == options | {"name", "kind", "grid"}, "a key that is not composed cannot be typed"


def test_every_file_says_what_it_is_and_is_placed_by_its_first_line() -> None:
    everywhere = {"protocol", "experiment", "debug", "sweep", "sweeper", "recipe"}
    for file in FILES:
        lines = file.read_text().splitlines()
        is_placed = file in BASES or ("hydra" not in file.parts and file.parent.name in everywhere)
        assert lines[0].startswith("# @package ") == is_placed, file
        assert lines[0] == "# @package _global_" or file in BASES or not is_placed, file
        assert lines[1 if is_placed else 0].startswith("# "), file


def test_kinds_in_yaml_and_code_are_the_same() -> None:
    for group, known in (("method", METHODS), ("dataset", DATASETS)):
        files = (conf_dir() / group).glob("*.yaml")
        assert {entire(file).kind for file in files} == set(known)


def test_no_file_restates_what_it_is_built_on() -> None:
    based = [file for file in FILES if "hydra" not in file.parts and bases(file)]
    assert len(based) >= 100
    for file in based:
        given = dict(flatten(plain(built_on(file))))
        repeated = {key: value for key, value in flatten(plain(content(file))) if given.get(key, ...) == value}
        assert not repeated, f"{file} repeats {repeated}"


def test_what_others_are_built_on_is_no_choice_and_in_use() -> None:
    used = {name for file in FILES for name in bases(file) if name.startswith("/")}
    files = {f"/{file.stem}" for file in BASES}
    classes = {f"/{cls.__name__}" for cls in (*METHODS.values(), *DATASETS.values()) if fields(cls)}
    assert files | classes == used
    assert all(name.startswith("/_") for name in files)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=digit"], "unknown dataset 'digit'; did you mean digits? (known: cars, cifar10_1k, "),
        (["method=gitf"], "unknown method 'gitf'; did you mean gift? (known: adalora, adapter_houlsby, "),
        (["backbone=vit_b"], "unknown backbone 'vit_b'"),
        (["optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["method=linear", "method.rank=4"], "unknown key method.rank (known: name, kind)"),
        (["method.rnak=4"], "unknown key method.rnak; did you mean method.rank? (known: name, kind, rank, target_modules, "),
    ],
)
def test_composition_errors_are_one_line_with_the_nearest_name(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config(overrides)
    text = str(raised.value)
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
        (["trainer.compile=maybe"], "trainer.compile: Value 'maybe' is not a valid bool"),
        (["method.kind=lroa"], "unknown method kind 'lroa'; did you mean lora?"),
        (["method.schema=paca"], "unknown method.schema 'paca'"),
        (["method.rank=0"], "method.rank=0: expected "),
        (["method.target_modules=attn.proj"], "method.target_modules=attn.proj: expected a list, as [attn.proj]"),
        (["method=knn", "method.k=20"], "method.k=20: expected a list, as [20]"),
        (["method=knn", "method.k=[0]"], "method.k=[0]: expected [20], or several"),
        (["dataset=parquet"], "dataset.root is required; give dataset.root=<value>"),
        (
            ["dataset=folder", "dataset.name=???"],
            "dataset.name, dataset.root are required; give dataset.name=<value> dataset.root=",
        ),
        (["dataset=folder", "dataset.root=/x", "dataset.test_fraction=1.0"], "dataset.test_fraction=1.0"),
        (
            ["paths.data_root="],
            "paths.data_root is empty: give a path, or unset the environment variable that it is taken from",
        ),
        (["phase=train"], "unknown phase 'train' (known: search, final)"),
        (["seed=-1"], "seed=-1: expected a whole number of 0 or more"),
        (["seed=one"], "seed='one': expected a whole number"),
        (["run_name=A b"], "run_name='A b': expected lower-case letters"),
        (["trainer.epochs=0"], "trainer.epochs=0"),
        (["trainer.batch_size=0"], "trainer.batch_size=0"),
        (["trainer.grad_accumulation=0"], "trainer.grad_accumulation=0"),
        (
            ["trainer.batch_size=16", "trainer.grad_accumulation=17"],
            "trainer.grad_accumulation=17 exceeds trainer.batch_size=16;",
        ),
        (["trainer.precision=fp8"], "unknown trainer.precision 'fp8' (known: fp32, tf32, bf16, fp16)"),
        (["trainer.eval_every=-1"], "trainer.eval_every=-1"),
        (["trainer.cls_last_block=yes"], "unknown trainer.cls_last_block 'yes' (known: auto, on, off"),
        (["trainer.memory=low"], "unknown trainer.memory 'low' (known: fast, lean"),
        (["trainer.speed=max"], "unknown trainer.speed 'max' (known: exact, auto"),
        (["optim.lr=0.0"], "optim.lr=0.0: expected a number above 0"),
        (["optim.weight_decay=-1.0"], "optim.weight_decay=-1.0"),
        (["optim.betas=[0.9]"], "optim.betas=[0.9]: expected two numbers"),
        (["optim.schedule=cosine"], "unknown optim.schedule 'cosine' (known: epoch, step)"),
        (["optim.warmup_epochs=-1"], "optim.warmup_epochs=-1"),
        (["tracker.kind=wandbb"], "unknown tracker.kind 'wandbb'; did you mean wandb? (known: none, wandb)"),
        (["tracker.mode=dryrun"], "unknown tracker.mode 'dryrun' (known: offline, online)"),
        (["tracker.project="], "tracker.project=: expected a W&B name"),
        (["tracker.project=a/b"], "tracker.project=a/b: expected a W&B name"),
        (["tracker.entity='a:b'"], "tracker.entity=a:b: expected a W&B name"),
        (["dataset.name='My birds'"], "dataset.name=My birds"),
        (["dataset.benchmark=imagenet"], "unknown dataset.benchmark 'imagenet' (known: fgvc, vtab1k, mini, own, glue, "),
        (["dataset.cache=no"], "unknown dataset.cache 'no' (known: auto, ram, disk, off)"),
        (["dataset.num_classes=0"], "dataset.num_classes=0: expected 1 or more"),
        (["dataset=digits", "dataset.split_seed=-1"], "dataset.split_seed=-1"),
        (
            ["dataset=vtab_dtd", "dataset.jpeg_decoder=cv2"],
            "unknown dataset.jpeg_decoder 'cv2' (known: auto, simplejpeg, pillow)",
        ),
        (["dataset=parquet", "dataset.root=/x", "dataset.val_fraction=0.0"], "dataset.val_fraction=0.0"),
        (["dataset=folder", "dataset.root=/x", "dataset.val_fraction=1.0"], "dataset.val_fraction=1.0"),
        (["dataset.transform.crop_ratio=0.0"], "dataset.transform.crop_ratio=0.0: expected a number above 0 and up to 1"),
        (["dataset.transform.crop_ratio=1.5"], "dataset.transform.crop_ratio=1.5"),
        (["dataset=vtab_dtd", "dataset.transform.random_crop=true"], "dataset.transform.random_crop=true has nothing to crop"),
        (["dataset.transform.hflip=1.1"], "dataset.transform.hflip=1.1: expected a probability from 0 to 1"),
        (["dataset.transform.hflip=-0.1"], "dataset.transform.hflip=-0.1"),
        (["dataset.transform.resize=cubic"], "unknown dataset.transform.resize 'cubic'"),
        (["dataset=cub", "dataset.transform.resize=tf1_bilinear"], "dataset.transform.resize=tf1_bilinear squashes"),
        (["backbone.weights=a.pth", "backbone.pretrained=false"], "backbone.weights and backbone.pretrained=false contradict"),
        (["protocol.final_train.mini=test"], "unknown protocol.final_train.mini 'test'"),
        (["optim.betas=[0.9,1]"], "optim.betas=[0.9, 1.0]: expected two numbers in [0, 1)"),
        (["trainer.workers=-1"], "trainer.workers=-1: expected 0 or more"),
        (["trainer.drop_path_rate=1"], "trainer.drop_path_rate=1.0: expected a number in [0, 1)"),
        (["tracker.kind=mlflow"], "unknown tracker.kind 'mlflow'"),
        (["method.channel_ratio=nan"], "method.channel_ratio=nan: expected a finite number"),
        (["optim.lr=inf"], "optim.lr=inf: expected a finite number"),
        (["method=adaptformer", "method.scale=-inf"], "method.scale=-inf: expected a finite number"),
        (["method=vera", "method.options.d_initial=nan"], "method.options.d_initial=nan: expected a finite number"),
        (["optim.min_lr=-1"], "optim.min_lr=-1.0: expected 0 or more"),
        (["backbone.img_size=0"], "backbone.img_size=0: expected 1 or more"),
        (["trainer.device=gpu"], "trainer.device=gpu: expected auto, cpu, cuda or cuda:<index>"),
        (["backbone.name=../../x"], "backbone.name=../../x: expected a name"),
        (["protocol.name=a/b"], "protocol.name=a/b: expected a name"),
        (["dataset.name=.."], "dataset.name=..: expected lower-case letters"),
        (["run_name=../x"], "run_name='../x': expected lower-case letters"),
    ],
)
def test_values_are_checked_and_messages_name_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(*overrides)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert not re.search(r"(\S+: )\1", str(raised.value)), "what was given is said once"


def test_a_datasets_yaml_names_all_that_it_lacks_and_has_defaults_for_the_rest() -> None:
    cfg = composed("dataset=folder", "dataset.root=/x")
    for given, missing in (({}, "dataset.kind, dataset.name are"), ({"kind": "folder"}, "dataset.name, dataset.root are")):
        cfg.dataset = given
        with pytest.raises(ConfigError, match=f"^{missing} required; give "):
            load_config(cfg)
    cfg.dataset = {"kind": "folder", "name": "leaves", "root": "/x", "transform": {"hflip": 0.0}}
    run = load_config(cfg)
    assert (run.dataset.benchmark, run.dataset.transform.crop_ratio, run.dataset.transform.hflip) == ("own", 0.875, 0.0)
    transform = run.values["dataset"]["transform"]
    given = {key: value for key, value in transform.items() if value is not None}
    assert given == {"crop_ratio": 0.875, "random_crop": True, "hflip": 0.0}
    assert {"resize", "exif", "background", "value_range", "max_pixels"} == transform.keys() - given.keys()


@pytest.mark.parametrize(
    ("words", "newer", "used", "difference"),
    [
        (
            ["dataset=parquet", "dataset.root=/x"],
            ["test_fraction", "columns"],
            "dataset.columns.label=art",
            {"dataset.columns.label": (None, "art")},
        ),
        (["method=lora"], ["init", "lr_ratio", "freeze_a"], "method.freeze_a=true", {"method.freeze_a": (False, True)}),
    ],
)
def test_a_run_from_before_an_option_was_added_has_its_default(
    words: list[str], newer: list[str], used: str, difference: dict[str, Any]
) -> None:
    new = loaded(*words).values
    section = used.partition(".")[0]
    old = {**new, section: {key: value for key, value in new[section].items() if key not in newer}}
    assert old != new
    assert identifying(old) == identifying(new)
    assert config_difference(old, loaded(*words, used).values) == difference


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("~/my images", "{home}/my images"),
        ("/d/Bücher (2)", "/d/Bücher (2)"),
        ("/d/it's", "/d/it's"),
        ("new(1)", "{here}/new(1)"),
        ("/d/a\\\\'b", "/d/a\\\\'b"),
        ("/d/[x]{y}=#", "/d/[x]{y}=#"),
        ("'/d/it\\'s'", "/d/it's"),
    ],
)
@pytest.mark.parametrize("key", ["dataset.root", "paths.output_root", "backbone.weights"])
def test_paths_are_taken_as_they_are_typed(key: str, typed: str, path: str) -> None:
    cfg = compose_config(overrides_of(["dataset=folder", "dataset.root=/x", f"{key}={typed}"]))
    expected = path.replace("{home}", str(Path.home())).replace("{here}", str(Path.cwd()))
    assert OmegaConf.select(OmegaConf.create(load_config(cfg).values), key) == expected


@pytest.mark.parametrize("name", ["2024_05", "1e3", "true", "null", "a,b", "images(1)"])
def test_a_folder_that_is_there_is_meant_whatever_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    cfg = compose_config(overrides_of(["dataset=folder", f"dataset.root={name}"]))
    assert cfg.dataset.root == name


@pytest.mark.parametrize(
    ("word", "value"), [("run_name=2026_12_01", "2026_12_01"), ("run_name=1e3", "1e3"), ("trainer.epochs=1_00", 100)]
)
def test_a_name_of_digits_is_text_and_a_number_stays_one(word: str, value: object) -> None:
    folder = load_config(compose_config(overrides_of(["dataset=digits", "paths.output_root=2026_12_01", word])))
    assert (folder.folder.parts[-6], OmegaConf.select(OmegaConf.create(folder.values), word.partition("=")[0])) == (
        "2026_12_01", value,
    )  # fmt: skip


def test_a_column_is_named_as_it_is_typed() -> None:
    typed = ["dataset.columns.image=1.10", "dataset.columns.label=2024", "dataset.columns.split=1e3"]
    columns = loaded(*overrides_of(["dataset=csv", "dataset.root=list.csv", *typed])).dataset.columns  # pyright: ignore[reportAttributeAccessIssue]
    assert (columns.image, columns.label, columns.split) == ("1.10", "2024", "1e3")


def test_protocols_are_what_they_are_named_for() -> None:
    paper = loaded("dataset=cub", "protocol=gift_paper", "phase=search")
    assert (paper.trainer.batch_size, paper.trainer.epochs, paper.compute.drop_path_rate, paper.seed) == (32, 100, 0.1, 42)
    optim = paper.optim
    assert (optim.warmup_epochs, optim.warmup_lr, optim.min_lr, optim.schedule) == (10, 1e-7, 1e-6, "epoch")
    assert (paper.train_split, paper.stop_epoch) == ("train", 25)
    assert paper.dataset.transform.resize == "bilinear"
    final = loaded("dataset=cub", "protocol=gift_paper", "phase=final")
    assert (final.train_split, final.stop_epoch) == ("train", None)
    clean = loaded("dataset=cub", "phase=final")
    assert (clean.protocol.name, clean.protocol.seeds) == ("clean", [0, 1, 2])
    assert (clean.train_split, clean.optim.schedule) == ("trainval", "step")


def test_what_a_run_changes_of_its_protocol_is_recorded() -> None:
    assert protocol_changes(loaded("dataset=cub")) == {}
    assert protocol_changes(loaded("dataset=cub", "trainer.epochs=30", "optim.lr=0.5")) == {"trainer.epochs": (100, 30)}
    more = loaded("dataset=cub", "protocol.seeds=[0,1,2,3,4]")
    assert (protocol_changes(more), more.run_name) == ({}, loaded("dataset=cub").run_name), "which other runs there are"
    bf16 = ["dataset=cub", "trainer.precision=bf16"]
    assert protocol_changes(loaded(*bf16)) == {}, "it rules no number format"
    assert protocol_changes(loaded(*bf16, "protocol=gift_paper")) == {"trainer.precision": ("tf32", "bf16")}


def test_run_name_lists_what_differs_from_the_defaults() -> None:
    def name(*words: str) -> str:
        groups = [word for word in words if word.split("=")[0] in BASE_GROUPS]
        return load_config(composed(*words), lambda: composed(*groups)).run_name

    assert name() == "clean_lr0.001_wd0.0001_seed0"
    assert name("method.rank=16", "optim.lr=1e-3") == name(), "a default spelt out is the same run"
    assert name("method.rank=4", "optim.lr=2.5e-4", "seed=2") == "clean_lr0.00025_wd0.0001_seed2_rank4"
    assert name("optim.lr=1e16") == "clean_lr1e16_wd0.0001_seed0"
    assert name("trainer.precision=bf16") == "clean_lr0.001_wd0.0001_seed0_precisionbf16"
    assert name("trainer.speed=exact") == "clean_lr0.001_wd0.0001_seed0_speedexact"
    assert name("method.target_modules=[attn.q,attn.v]") == "clean_lr0.001_wd0.0001_seed0_target-modulesattn.q-attn.v"
    assert name("protocol=gift_paper") == "gift_paper_lr0.001_wd0.0001_seed42"
    assert name("trainer.workers=9", "paths.data_root=/elsewhere", "tracker=wandb") == name(), "where it runs names nothing"
    assert name("dataset=digits", "backbone=vit_mini", "experiment=demo") == (
        "clean_lr0.001_wd0.0001_seed0_warmup-epochs1_drop-path-rate0_epochs10"
    )
    assert name("run_name=7") == "7", "a number is a name too"
    targets = ",".join(f"blocks.{i}.attn.proj" for i in range(12))
    assert len(name(f"method.blocks={list(range(12))}", f"method.target_modules=[{targets}]")) <= 160


def test_default_names_of_different_configurations_differ() -> None:
    words = ["optim.lr=0.01", "optim.weight_decay=0", "seed=3", "method.rank=2", "method.share=true", "trainer.epochs=70"]
    baseline = loaded().values
    assert len({default_run_name(loaded(word).values, baseline) for word in words}) == len(words)


def test_a_run_folders_config_loads_again_and_folders_tell_datasets_apart() -> None:
    for words in (["dataset=tiny_mammals", "method.rank=4"], ["dataset=folder", "dataset.root=/pictures/My Flowers"]):
        cfg = loaded(*words)
        assert load_config(OmegaConf.create(cfg.values)) == cfg
    assert cfg.dataset.name == cfg.folder.parts[-4] == "folder_my_flowers"


def test_a_backbone_needs_a_name_and_a_model_and_both_are_asked_for_at_once() -> None:
    cfg = compose_config(["dataset=digits"])
    cfg.backbone = {"name": "mine", "model": "vit_tiny_patch16_224.augreg_in21k"}
    run = load_config(cfg)
    assert (run.backbone.weights, run.backbone.pretrained, run.backbone.img_size) == (None, True, None)
    cfg.backbone = {}
    with pytest.raises(ConfigError, match=r"^backbone\.model, backbone\.name are required$"):
        load_config(cfg)
