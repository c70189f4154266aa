"""The choice of hyper-parameters: by val alone, ties to the smaller rate, and what a person is warned of."""

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.select import main
from gift_vit.common.errors import ConfigError
from gift_vit.config import compose_config, load_config
from gift_vit.config.compose import conf_dir
from gift_vit.runs.result import Result, write_result
from gift_vit.sweeps import select
from gift_vit.sweeps.plan import Job, Sweep, write_sweep
from gift_vit.sweeps.select import Choice, choose, final_command, recipe_text
from tests.results.conftest import exit_code, make_result, refused

command = partial(exit_code, main)


def search(val: float | None, **kwargs: Any) -> Result:
    """A finished search run; ``config`` holds the values it was run with."""
    return make_result(val=val, run={"phase": "search", **kwargs.pop("run", {})}, **kwargs)


def grid(scores: dict[tuple[float, float], float], **kwargs: Any) -> list[Result]:
    """Runs by (learning rate, weight decay)."""
    return [search(v, config={"optim.lr": lr, "optim.weight_decay": wd}, **kwargs) for (lr, wd), v in scores.items()]


SCORES = {(1e-4, 0.0): 70.0, (1e-3, 0.0): 81.5, (1e-2, 0.0): 80.0, (1e-4, 0.01): 71.0, (1e-3, 0.01): 81.0, (1e-2, 0.01): 79.0}


def best(choice: Choice) -> dict[str, Any]:
    return dict(choice.settings[0].values)


def test_the_highest_val_top1_is_chosen_whatever_the_order_and_the_training_loss() -> None:
    misled = grid(SCORES)
    for run in misled:
        run.metrics["train_loss"] = float(run.metrics["val_top1"] or 0)
    for runs in (grid(SCORES), grid(SCORES)[::-1], misled):
        choice = choose(runs)
        assert best(choice) == {"optim.lr": 1e-3, "optim.weight_decay": 0.0}
        assert [setting.score for setting in choice.settings] == [81.5, 81.0, 80.0, 79.0, 71.0, 70.0]
        assert choice.warnings == ()
    tied = grid({(lr, wd): 80.0 for lr in (1e-2, 1e-3) for wd in (0.1, 0.01)})
    assert best(choose(tied)) == {"optim.lr": 1e-3, "optim.weight_decay": 0.01}, "the smaller of each"
    crossed = grid({(1e-2, 0.01): 80.0, (1e-3, 0.1): 80.0})
    assert best(choose(crossed)) == {"optim.lr": 1e-3, "optim.weight_decay": 0.1}, "the smaller rate first"
    assert best(choose(grid({(1e-2, 0.01): 80.04, (1e-3, 0.01): 80.0})))["optim.lr"] == 1e-2, "no tie"


@pytest.mark.parametrize(
    ("chosen", "warned"),
    [
        ({"k": 20, "temperature": 0.07}, []),
        ({"k": 1, "temperature": 0.07}, []),  # fewer neighbours there are not
        ({"k": 200, "temperature": 0.02}, [("method.k, 200", "highest"), ("method.temperature, 0.02", "lowest")]),
    ],
)
def test_a_fitted_method_s_choice_at_the_end_of_what_it_tried_is_warned_of(
    chosen: dict[str, float], warned: list[tuple[str, str]]
) -> None:
    tried = {"method.k": [1, 20, 200], "method.temperature": [0.02, 0.07, 0.2]}
    choice = choose([search(80.0, run={"chosen": chosen}, config=tried)])
    assert choice.warnings == tuple(f"the best {best}, is the {end} tried: give more values" for best, end in warned)


CLOSE = [(1e-3, 0, 70.0), (2e-3, 0, 80.0), (2e-3, 1, 80.0), (4e-3, 0, 77.2), (8e-3, 0, 77.1)]
"""At 80 % of 200 images the standard error is 2.83 points."""


def test_seeds_are_averaged() -> None:
    values = {1e-3: (80.0, 82.0), 1e-2: (89.0, 72.5)}
    runs = [search(values[lr][seed], seed=seed, config={"optim.lr": lr}) for lr in values for seed in (0, 1)]
    choice = choose(runs)
    assert best(choice)["optim.lr"] == 1e-3
    assert [setting.scores for setting in choice.settings] == [(80.0, 82.0), (89.0, 72.5)]
    assert choose(runs[:-1]).warnings[-1].startswith("the best optim.lr"), "the other is far from it"
    close = [search(v, seed=seed, config={"optim.lr": lr}, data={"val_images": 200}) for lr, seed, v in CLOSE]
    assert choose(close).near == 2
    assert choose(close).warnings[-1] == "settings within one standard error of the best have different numbers of seeds"
    near = {metric: choose([replace(run, metric=metric) for run in close]).near for metric in ("exact", "f1", "pearson")}
    assert near == {"exact": 2, "f1": 1, "pearson": 1}, "what is no share of right answers has another error"


def test_two_runs_of_one_setting_and_seed_are_refused() -> None:
    runs = [*grid(SCORES), search(99.0, config={"optim.lr": 1e-4, "optim.weight_decay": 0.0, "run_name": "again"})]
    for order in (runs, runs[::-1]):
        with pytest.raises(ConfigError, match="both claim seed 0 of one setting of gift on digits; move one of them away"):
            choose(order)


def test_equal_scores_do_not_differ_by_the_rounding_of_their_means() -> None:
    """101 and 161 right of 300 are as many as 102 and 160, and their mean is another float."""
    right = {1e-3: (101, 161), 1e-2: (102, 160)}
    runs = [search(100 * n / 300, seed=s, config={"optim.lr": lr}) for lr, own in right.items() for s, n in enumerate(own)]
    first, second = (setting.score for setting in choose(runs).settings)
    assert first < second
    assert best(choose(runs))["optim.lr"] == 1e-3


def test_an_optimum_on_the_edge_and_missing_runs_are_told(tmp_path: Path) -> None:
    for peak, side in ((1e-4, "lowest"), (1e-2, "highest")):
        runs = grid({(lr, 0.0): 90.0 if lr == peak else 80.0 for lr in (1e-4, 1e-3, 1e-2)})
        assert choose(runs).warnings == (f"the best optim.lr, {peak}, is the {side} of its axis: widen the grid",)
    elsewhere = grid(SCORES | {(1e-4, 0.0): 90.0, (1e-3, 0.01): 90.0})
    assert [edge.key for edge in choose(elsewhere).edges] == ["optim.lr"], "as good with another weight decay"
    assert choose(grid({(1e-3, 0.0): 90.0, (1e-3, 0.01): 80.0})).warnings == (), "below zero there is nothing to try"
    scores = {point: score for point, score in SCORES.items() if point != (1e-2, 0.01)}
    assert choose(grid(scores)).warnings == (
        "1 of the grid's 6 settings have no finished run, as optim.lr=0.01 optim.weight_decay=0.01",
    )
    job = Job(("optim.lr=1",), str(tmp_path / "search/digits/gift/vit_mini/lr1"))
    asked = Sweep("python -m gift_vit.train sweep=digits", "2026-01-01T00:00:00+00:00", (job,))
    unfinished = "1 runs that were asked for are not finished; see python -m experiments.status"
    assert choose(grid(SCORES), [asked]).warnings == (unfinished,)


def test_every_swept_key_is_chosen_and_what_was_given_is_kept() -> None:
    given = {"overrides": ["method.rank=2", "optim.betas=[0.8,0.999]", "seed=0", "trainer.workers=2"]}
    scores = {2: 70.0, 4: 90.0, 8: 80.0}
    runs = [search(v, config={"method.rank": r, "optim.betas": [0.8, 0.999]}, run=given) for r, v in scores.items()]
    expected = {"optim.lr": 0.001, "optim.weight_decay": 0.01, "method.rank": 4, "optim.betas": [0.8, 0.999]}
    assert best(choose(runs)) == expected
    circumstances = grid(SCORES, run={"overrides": ["experiment=mini", "backbone=vit_mini", "optim.lr=0.001", "seed=0"]})
    line = "# python -m gift_vit.train sweep=final dataset=digits method=gift experiment=mini backbone=vit_mini"
    assert line in recipe_text(choose(circumstances)).splitlines()


def test_an_axis_may_be_of_lists() -> None:
    targets = [["attn.proj"], ["attn.qkv", "mlp.fc1"]]
    choice = choose([search(v, config={"method.target_modules": t}) for t, v in zip(targets, (70.0, 90.0), strict=True)])
    assert best(choice)["method.target_modules"] == targets[1]
    assert choice.edges == ()


def test_the_header_s_command_has_all_that_was_typed_but_for_what_was_searched() -> None:
    words = ["sweep=digits", "grid=equal", "dataset=folder", "dataset.root='my images'", "method=gift", "trainer.epochs=5"]
    words += ["optim.lr=0.001", "optim.weight_decay=0", "seed=1", "+hydra.job.env_set={A: b}", "run_name=null"]
    choice = choose(grid(SCORES, run={"overrides": words}))
    typed = shlex.split(final_command(choice, Path("my conf/recipe")))
    assert typed[:6] == ["python", "-m", "gift_vit.train", "--config-dir", "my conf", "sweep=final"]
    assert typed[6:] == ["dataset=folder", "method=gift", "dataset.root='my images'", "trainer.epochs=5"]


def test_own_data_that_a_sweep_file_named_is_in_the_header_s_command() -> None:
    data = {"dataset.kind": "folder", "dataset.root": "/my images"}
    runs = [
        search(v, config={"optim.lr": lr, **data}, run={"dataset": "folder_my images", "benchmark": "own"})
        for lr, v in ((1e-3, 70.0), (0.01, 60.0))
    ]
    typed = shlex.split(final_command(choose(runs)))
    assert typed[3:] == ["sweep=final", "dataset=folder", "method=gift", "dataset.root=/my images"]


def test_the_header_s_command_has_the_search_s_own_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = {"command": "python -m gift_vit.train --config-dir 'my conf' sweep=digits method=gift"}
    typed = shlex.split(final_command(choose(grid(SCORES, run=started))))
    assert typed[3:6] == ["--config-dir", "my conf", "sweep=final"]
    assert shlex.split(final_command(choose(grid(SCORES, run=started)), Path("my conf/recipe"))) == typed
    store(tmp_path, *grid(SCORES, run=started))
    words = [f"root={tmp_path / 'outputs'}", f"out={tmp_path / 'recipe'}"]
    assert "give out=my conf/recipe, as seen from where the search was started" in refused(command, capsys, *words)
    assert "had --config-dir my conf, and Hydra takes one: give out=my conf/recipe" in refused(command, capsys, *words)
    assert not (tmp_path / "recipe").exists()
    assert command(words[0], f"out={tmp_path / 'my conf/recipe'}") == 0, "from another folder than the search was started in"
    assert f"--config-dir '{tmp_path / 'my conf'}' sweep=final" in (tmp_path / "my conf/recipe/digits_gift.yaml").read_text()


def test_a_folder_in_which_hydra_would_not_look_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, *grid(SCORES))
    said = refused(command, capsys, f"root={tmp_path / 'outputs'}", f"out={tmp_path / 'mine'}")
    assert f"expected a folder named recipe, where Hydra looks, as {tmp_path / 'mine/recipe'}" in said
    assert not (tmp_path / "mine").exists()


def test_a_recipe_that_does_not_fit_names_its_file_and_the_words_to_add() -> None:
    cfg = compose_config(["dataset=digits", "method=gift", "trainer.batch_size=16"])
    chosen = {"dataset": "digits", "method": "gift", "backbone": "vit_mini", "protocol": "clean"}
    cfg.recipe = {**chosen, "changes": {"trainer.epochs": 5, "protocol.search_epochs.mini": None}}
    with pytest.raises(ConfigError) as caught:
        load_config(cfg)
    added = "backbone=vit_mini trainer.epochs=5 protocol.search_epochs.mini=null"
    assert f"; for {conf_dir()}/recipe/digits_gift.yaml add {added} and leave out what sets trainer.batch_size, or" in str(
        caught.value
    )


def test_a_recipe_holds_for_the_backbone_s_own_options() -> None:
    """Older recipes do not say them, and are taken as they are."""
    runs = [search(v, config={"optim.lr": lr, "backbone.img_size": 32}) for lr, v in ((0.01, 70.0), (0.1, 80.0))]
    recipe = OmegaConf.create(recipe_text(choose(runs)))
    assert recipe.recipe.options == {"backbone.img_size": 32}
    words = ["dataset=digits", "method=gift", "backbone=vit_mini", "phase=final"]
    taken = compose_config([*words, "backbone.img_size=32"])
    taken.recipe = recipe.recipe
    assert load_config(taken).backbone.img_size == 32
    for others in ([], ["backbone.img_size=128"], ["backbone.img_size=32", "backbone.global_pool=avg"]):
        refused_here = compose_config([*words, *others])
        refused_here.recipe = recipe.recipe
        with pytest.raises(ConfigError, match=r"add backbone.img_size=32|leave out what sets backbone.global_pool"):
            load_config(refused_here)
        del refused_here.recipe.options
        load_config(refused_here)


def test_what_differs_in_more_than_its_settings_is_refused() -> None:
    for change, message in (
        ({"run": {"protocol": "gift_paper"}}, "have different protocols; choose one with protocol=<name>"),
        ({"run": {"backbone": "vit_b16_in21k"}}, "have different backbones; choose one with backbone=<name>"),
        ({"data": {"fingerprint": "other"}}, "were trained on different data"),
        ({"config": {"trainer.speed": "auto"}}, "were computed with trainer.speed=exact and auto"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose([search(80.0), search(81.0, **{"config": {"optim.lr": 0.1}, **change})])
    with pytest.raises(ConfigError, match="is a search run without val_top1"):
        choose([search(None)])


@pytest.mark.parametrize(
    ("changes", "mixed"),
    [
        ({"backbone": {"weights_sha256": "cd" * 32}}, r"backbone\.weights_sha256 abab\w* and cdcd"),
        ({"data": {"sample": "b"}}, "sample a and b"),
        ({"data": {"decoder": "libjpeg 9"}}, "decoder Pillow 12 and libjpeg 9"),
    ],
)
def test_one_configuration_is_of_one_backbone_and_one_data(changes: dict[str, Any], mixed: str) -> None:
    """A file of weights, or pictures, may have been changed between two runs."""
    known = {"data": {"sample": "a", "decoder": "Pillow 12"}}
    other = {name: {**known.get(name, {}), **changes.get(name, {})} for name in {*known, *changes}}
    with pytest.raises(ConfigError, match=rf"\Aa choice would mix {mixed}"):
        choose([search(80.0, **known), search(81.0, config={"optim.lr": 0.1}, **other)])


def test_the_size_of_images_may_be_an_axis() -> None:
    sizes = [
        search(v, config={"backbone.img_size": n}, backbone={"input_size": [3, n, n]}) for n, v in ((32, 70.0), (64, 80.0))
    ]
    assert best(choose(sizes))["backbone.img_size"] == 64


def test_numbers_that_are_equal_are_one_value_however_they_were_typed() -> None:
    """Seeds of one setting are averaged: 50, not 55."""
    runs = [
        search(v, seed=seed, config={"optim.lr": lr, "optim.weight_decay": wd})
        for lr, seed, wd, v in ((1e-2, 0, 0, 55.0), (1e-2, 1, 0.0, 45.0), (1e-1, 0, 0, 53.0), (1e-1, 1, 0, 53.0))
    ]
    choice = choose(runs)
    assert best(choice)["optim.lr"] == 1e-1
    assert [setting.scores for setting in choice.settings] == [(53.0, 53.0), (55.0, 45.0)]
    assert choice.warnings == ("the best optim.lr, 0.1, is the highest of its axis: widen the grid",)


def test_the_epoch_that_a_run_kept_is_no_option_of_its_method() -> None:
    runs = [search(v, run={"chosen": {"epoch": n}}, config={"optim.lr": lr}) for lr, n, v in ((0.01, 3, 70.0), (0.1, 7, 80.0))]
    assert best(choose(runs)) == {"optim.lr": 0.1, "optim.weight_decay": 0.01}


def test_runs_of_other_epochs_than_the_protocol_s_are_told() -> None:
    trial = search(81.0, config={"trainer.epochs": 1}, run={"protocol_changes": {"trainer.epochs": (5, 1)}})
    assert "runs of different trainer.epochs are compared" in choose([search(80.0), trial]).warnings[-1]


def store(root: Path, *runs: Result) -> None:
    for index, run in enumerate(runs):
        write_result(root / "outputs" / run.run.phase / f"{run.run.method}{index}" / "result.json", run)


def test_the_recipe_is_one_that_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"protocol_changes": {"trainer.epochs": [100, 20], "trainer.drop_path_rate": [0.1, 0.0]}}
    store(tmp_path, *grid(SCORES, run=changes))
    assert command(f"root={tmp_path / 'outputs'}", f"out={tmp_path / 'conf/recipe'}") == 0
    path = tmp_path / "conf/recipe/digits_gift.yaml"
    told = f"{path}: optim.lr=0.001 optim.weight_decay=0.0 (val top-1 81.50 %, best of 6 settings)\n"
    told += f"  then: python -m gift_vit.train --config-dir {tmp_path / 'conf'} sweep=final dataset=digits method=gift\n"
    assert capsys.readouterr() == (told, "")
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert [line.split() for line in lines[2:5]] == [
        ["#", "optim.lr", "optim.weight_decay", "val", "top-1", "%", "seeds"],
        ["#", "0.001", "0.0", "81.50", "0"],
        ["#", "0.001", "0.01", "81.00", "0"],
    ]
    assert len([line for line in lines if line.startswith("#   ")]) == 7
    words = ["dataset=digits", "method=gift", "backbone=vit_mini", "trainer.epochs=20", "trainer.drop_path_rate=0.0"]
    composed = OmegaConf.merge(compose_config([*words, "optim.lr=0.5"]), OmegaConf.load(path))
    cfg = load_config(OmegaConf.create(OmegaConf.to_container(composed)))  # pyright: ignore[reportArgumentType]
    assert (cfg.optim.lr, cfg.optim.weight_decay) == (0.001, 0.0)


def test_only_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [search(80.0, method=method, dataset=dataset) for dataset in ("digits", "cub") for method in ("gift", "lora")]
    store(tmp_path, *cells, make_result("vpt_deep"))
    words = [f"root={tmp_path / 'outputs'}", f"out={tmp_path / 'recipe'}"]
    assert command(*words, "datasets=[cub]", "methods=[lora]") == 0
    assert {path.name for path in (tmp_path / "recipe").iterdir()} == {"cub_lora.yaml"}
    assert command(*words) == 0
    assert len(list((tmp_path / "recipe").iterdir())) == 4
    capsys.readouterr()
    assert "no finished search run among 4 below" in refused(command, capsys, *words, "methods=[vpt_deep]")
    said = refused(command, capsys, *words, "datasets=[cub]", "methods=[lora,gfit]")
    assert "methods: no finished search run of gfit (there are: lora)" in said
    store(tmp_path, search(None, method="ssf"))
    said = refused(command, capsys, words[0], f"out={tmp_path / 'none/recipe'}")
    assert "outputs/search/ssf0/result.json is a search run without val_top1" in said
    assert not (tmp_path / "none").exists(), "all or none"


def test_what_was_chosen_on_other_data_of_the_same_name_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, path = [f"out={tmp_path / 'recipe'}"], tmp_path / "recipe/digits_gift.yaml"
    for project, fingerprint in (("one", "0" * 64), ("two", "1" * 64)):
        store(tmp_path / project, *grid(SCORES, data={"fingerprint": fingerprint}))
    assert command(*words, f"root={tmp_path / 'one/outputs'}") == 0
    before = path.read_text()
    capsys.readouterr()
    other = f"root={tmp_path / 'two/outputs'}"
    said = refused(command, capsys, *words, other)
    remedy = "move it to a recipe/ of its own, for --config-dir, or write over it with replace=true"
    assert f"{path} was chosen on other data of this name; {remedy}" in said
    assert path.read_text() == before
    assert command(*words, f"root={tmp_path / 'one/outputs'}") == 0, "chosen again on the same"
    assert command(*words, other, "replace=true") == 0
    assert OmegaConf.load(path).recipe.data == "1" * 64
    path.write_text("optim: {lr: 1}\n")
    assert command(*words, other) == 0, "written by hand, or by a version that kept no data"
    capsys.readouterr()
    path.write_text("recipe: {backbone: vit_b16}\n")
    assert "was chosen on another backbone; move it" in refused(command, capsys, *words, other)
    path.write_text("recipe: mine\n")
    assert "says recipe: mine, which select does not write" in refused(command, capsys, *words, other)


def test_a_recipe_that_hydra_would_find_first_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf/recipe").mkdir(parents=True)
    first = tmp_path / "conf/recipe/digits_gift.yaml"
    first.write_text("recipe: {}\n")
    monkeypatch.setattr(select, "conf_dir", lambda: tmp_path / "conf")
    store(tmp_path, *grid(SCORES))
    said = refused(command, capsys, f"root={tmp_path / 'outputs'}", f"out={tmp_path / 'mine/recipe'}", "replace=true")
    assert f"{first} has that name too, and is not to be had beside {tmp_path / 'mine/recipe/digits_gift.yaml'}" in said
    assert not (tmp_path / "mine").exists()


def test_warnings_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, *grid({(1e-3, 0.0): 80.0, (1e-2, 0.0): 90.0}))
    write_sweep(tmp_path / "outputs", Sweep("python -m gift_vit.train -m", "2026-01-01T00:00:00+00:00", ()))
    assert command(f"root={tmp_path / 'outputs'}", f"out={tmp_path / 'recipe'}") == 0
    edge = "the best optim.lr, 0.01, is the highest of its axis: widen the grid"
    assert capsys.readouterr().err == f"warning: gift on digits: {edge}\n"
    assert f"# Note: {edge}\n" in (tmp_path / "recipe/digits_gift.yaml").read_text()
