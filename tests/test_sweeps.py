"""Sweeps from the command line inwards, on runs that only write down what they were.

Each job is composed twice, a quarter of a second of CPU: sweeps of six jobs and more take over 3 s.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
from hydra.core.plugins import Plugins

from gift_vit.common.errors import ConfigError, RunError, SweepError
from gift_vit.config import RunConfig, compose_config
from gift_vit.config.compose import conf_dir
from gift_vit.data.config import DatasetConfig
from gift_vit.engine.observer import Observer
from gift_vit.runs.run import Run, write_failure
from gift_vit.runs.train import Call
from gift_vit.sweeps.plan import Job, Plan, Sweep, read_sweeps, unfinished, write_sweep

Told = pytest.CaptureFixture[str]
Sweeping = Callable[..., tuple[int, list[RunConfig]]]


class Runs:
    """In place of training: keeps the configurations, and fails where it is told to."""

    def __init__(self, failing: Callable[[RunConfig], bool]) -> None:
        self.failing, self.seen = failing, []

    def __call__(self, cfg: RunConfig, call: Call, observers: Sequence[Observer]) -> None:
        self.seen.append(cfg)
        if self.failing(cfg):
            raise RunError("the loss became nan")


@pytest.fixture
def sweep(tmp_path: Path, train_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Sweeping:
    """Run the training command in this process, as if all data were there; its exit code and the runs it made."""
    monkeypatch.setattr(DatasetConfig, "check_present", lambda _: None)

    def sweep(*words: str, failing: Callable[[RunConfig], bool] = lambda _: False) -> tuple[int, list[RunConfig]]:
        runs = Runs(failing)
        monkeypatch.setattr("gift_vit.runs.train.train_run", runs)
        return train_here(*words, f"paths.output_root={tmp_path / 'outputs'}", "hydra/launcher=basic"), runs.seen

    return sweep


def test_a_datasets_sweep_is_the_methods_grid(sweep: Sweeping, tmp_path: Path) -> None:
    """The grids themselves are tested in tests/conf."""
    code, runs = sweep("sweep=cub", "method=gift", 'method.grid.fgvc={optim.lr:"1e-4,5e-3",optim.weight_decay:"0.01,0"}')
    assert code == 0
    assert [(run.optim.lr, run.optim.weight_decay) for run in runs] == [(1e-4, 0.01), (1e-4, 0), (5e-3, 0.01), (5e-3, 0)]
    assert len({run.folder for run in runs}) == 4
    assert {(run.phase, run.dataset.name, run.method_name, run.method.rank) for run in runs} == {("search", "cub", "gift", 16)}
    [record] = read_sweeps(tmp_path / "outputs")
    assert [job.folder for job in record.jobs] == [str(run.folder) for run in runs]
    assert record.command.startswith("python -m gift_vit.train sweep=cub method=gift")


def test_axes_on_the_command_line(sweep: Sweeping) -> None:
    _, runs = sweep("-m", "method=gift", "method.rank=4,16", "optim.lr=1e-4,1e-3")
    assert [(run.method.rank, run.optim.lr) for run in runs] == [(4, 1e-4), (4, 1e-3), (16, 1e-4), (16, 1e-3)]
    _, runs = sweep("sweep=digits", "method=lora", "optim.lr=3e-3", "method.rank=2,4")
    assert {(run.method.rank, run.optim.lr, run.optim.weight_decay) for run in runs} == {
        (rank, 3e-3, wd) for rank in (2, 4) for wd in (1e-4,)
    }


def test_failed_jobs_are_counted_and_stop_nothing(sweep: Sweeping, capsys: Told) -> None:
    code, runs = sweep("-m", "seed=0,1,2", failing=lambda cfg: cfg.seed == 1)
    assert (code, len(runs)) == (1, 3)
    told = capsys.readouterr().err
    assert told.count("error: the loss became nan") == 1
    assert told.rstrip().endswith("error: 1 of 3 runs failed; the same command starts only those again")


def test_a_single_run_keeps_its_exit_code(sweep: Sweeping, capsys: Told) -> None:
    assert sweep("dataset=digits", failing=lambda _: True)[0] == 1
    assert capsys.readouterr().err.rstrip() == "error: the loss became nan"


MISTAKES = {
    "methods with grids of their own": (
        ["sweep=cub", "method=gift,lora"],
        "method=gift,lora: these methods have grids of their own",
    ),
    "datasets with grids of their own": (
        ["sweep=cub", "method=gift", "dataset=cub,tiny_mammals"],
        "dataset=cub,tiny_mammals: these datasets have grids of their own; sweep one dataset a command",
    ),
    "an axis that is a list": (
        ["-m", "hydra.sweeper.params={optim.lr:[1e-3,5e-3]}"],
        "the axis optim.lr of the sweep is a list, one value; write it as text: optim.lr: 0.001,0.005",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_would_silently_be_another_sweep_is_refused_before_any_run(sweep: Sweeping, capsys: Told, name: str) -> None:
    words, message = MISTAKES[name]
    code, runs = sweep(*words)
    assert (code, runs) == (2, [])
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1


def test_methods_with_the_same_axes_may_be_swept_together(sweep: Sweeping) -> None:
    _, runs = sweep("sweep=final", "dataset=digits,cub", "method=gift,lora", "optim.lr=1e-3")
    assert [(run.dataset.name, run.method_name, run.seed) for run in runs] == [
        (dataset, method, seed) for seed in (0, 1, 2) for dataset in ("digits", "cub") for method in ("gift", "lora")
    ]
    assert {run.phase for run in runs} == {"final"}


RECIPE = """\
# @package _global_
# Chosen.
recipe: {dataset: digits, method: gift, backbone: vit_mini, protocol: clean, changes: {trainer.epochs: 7}}
optim: {lr: 0.03}
method: {rank: 4}
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    (tmp_path / "my_conf/recipe").mkdir(parents=True)
    (tmp_path / "my_conf/recipe/digits_gift.yaml").write_text(RECIPE)
    return tmp_path / "my_conf"


def test_finals_use_the_recipe_and_searches_do_not(
    sweep: Sweeping, recipes: Path, capsys: Told, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--config-dir", str(recipes), "dataset=digits", "method=gift", "backbone=vit_mini", "trainer.epochs=12"]
    words[-1:] = ["trainer.epochs=7", "optim.warmup_epochs=10"]
    code, _ = sweep(*words, "sweep=final")
    assert "optim.warmup_epochs=10 leaves nothing of trainer.epochs=7" in capsys.readouterr().err
    assert code == 2
    recipe = recipes / "recipe/digits_gift.yaml"
    recipe.write_text(RECIPE.replace("trainer.epochs: 7", "trainer.epochs: 20"))
    words[-2:] = ["trainer.epochs=20"]
    code, runs = sweep(*words, "sweep=final")
    assert code == 0
    assert [(run.optim.lr, run.method.rank, run.seed) for run in runs] == [(0.03, 4, seed) for seed in (0, 1, 2)]
    assert "no recipe" not in caplog.text
    assert runs[0].run_name == "clean_lr0.03_wd0.0001_seed0_rank4_epochs20", "measured against the defaults, not the recipe"
    _, runs = sweep(*words[:2], "sweep=digits", *words[3:])
    assert {run.method.rank for run in runs} == {16}
    assert {run.optim.lr for run in runs} == {1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2}


def test_a_recipe_of_other_circumstances_is_refused(
    sweep: Sweeping, recipes: Path, capsys: Told, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--config-dir", str(recipes), "phase=final", "dataset=digits", "method=gift"]
    code, runs = sweep(*words)
    assert (code, runs) == (2, [])
    told = capsys.readouterr().err
    assert "the recipe was chosen with {'backbone': 'vit_mini', 'changes': {'trainer.epochs': 7}} and this run has" in told
    assert "leave the recipe out with recipe=none" in told
    code, [run] = sweep(*words, "recipe=none")
    assert (code, run.optim.lr) == (0, 1e-3)
    assert "no recipe for gift on digits: optim.lr=0.001 is the default" in caplog.text
    assert sweep(*words, "recipe=null")[0] == 2
    assert "write ~recipe" in capsys.readouterr().err


def test_a_rate_below_the_one_that_the_schedule_ends_at_is_said(sweep: Sweeping, caplog: pytest.LogCaptureFixture) -> None:
    words = ["dataset=digits", "method=gift", "optim.lr=1e-7"]
    assert sweep(*words)[0] == 0
    assert "optim.lr=1e-07 lies below optim.min_lr=1e-06: the rate rises to that" in caplog.text
    caplog.clear()
    assert sweep(*words, "optim.min_lr=0")[0] == 0
    assert "lies below" not in caplog.text


def test_finals_on_a_person_s_own_images_use_the_recipe_that_select_names(
    sweep: Sweeping, recipes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("birds", "fish"):
        for kind in ("a", "b"):
            (recipes / name / "train" / kind).mkdir(parents=True)
            (recipes / name / "train" / kind / "1.png").touch()
    words = ["--config-dir", str(recipes), "dataset=folder", f"dataset.root={recipes / 'birds'}", "backbone=vit_mini"]
    words.append("trainer.epochs=7")
    for method, rate in (("gift", 0.05), ("lora", 0.06)):
        text = RECIPE.replace("digits, method: gift", f"folder_birds, method: {method}")
        text = text.replace("{trainer.epochs: 7}", "{trainer.epochs: 7, optim.warmup_epochs: 0}")
        text = text.replace("lr: 0.03", f"lr: {rate}, warmup_epochs: 0")  # without it ten of seven epochs
        (recipes / f"recipe/folder_birds_{method}.yaml").write_text(text)
    for phase in (["sweep=final"], ["-m", "phase=final"]):
        code, runs = sweep(*words, *phase, "method=gift,lora", "seed=3")
        assert (code, [(r.method_name, r.optim.lr, r.method.rank) for r in runs]) == (0, [("gift", 0.05, 4), ("lora", 0.06, 4)])
    assert runs[0].run_name == "clean_lr0.05_wd0.0001_seed3_rank4_warmup-epochs0_epochs7"
    assert "no recipe" not in caplog.text
    for others in (["recipe=none"], [f"dataset.root={recipes / 'fish'}"]):
        _, [run] = sweep(*words, "phase=final", "optim.warmup_epochs=1", *others)
        assert (run.optim.lr, run.recipe) == (1e-3, None)
    _, [run] = sweep(*words, "phase=search", "optim.warmup_epochs=1")
    assert run.recipe is None


def test_of_two_recipes_of_one_name_none_is_taken_unasked(
    sweep: Sweeping, recipes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Told
) -> None:
    """Hydra takes a file of conf/ before one of --config-dir."""
    folder = shutil.copytree(conf_dir(), tmp_path / "conf")
    shutil.copy(recipes / "recipe/digits_gift.yaml", folder / "recipe")
    monkeypatch.setattr("gift_vit.config.compose._search_path", lambda: (str(folder), f"file://{recipes}"))
    words = ["--config-dir", str(recipes), "phase=final", "dataset=digits", "method=gift"]
    assert sweep(*words) == (2, [])
    assert f"{folder}/recipe/digits_gift.yaml and in {recipes}/recipe/digits_gift.yaml, of which" in capsys.readouterr().err


def test_a_dataset_s_own_name_comes_before_that_of_its_file(sweep: Sweeping, recipes: Path, capsys: Told) -> None:
    own = RECIPE.replace("dataset: digits", "dataset: digits2").replace("0.03", "0.07")
    own = own.replace("{trainer.epochs: 7}", "{trainer.epochs: 7, optim.warmup_epochs: 1}")
    (recipes / "recipe/digits2_gift.yaml").write_text(own)
    words = ["--config-dir", str(recipes), "phase=final", "method=gift", "backbone=vit_mini", "trainer.epochs=7"]
    words.append("optim.warmup_epochs=1")
    shared = ["dataset=digits", "dataset.name=digits2"]
    _, [run] = sweep(*words, *shared)
    assert (run.optim.lr, run.recipe and run.recipe["dataset"]) == (0.07, "digits2")
    (recipes / "recipe/digits2_gift.yaml").write_text("optim: {lr: [")
    assert sweep(*words, *shared) == (2, [])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "digits2_gift.yaml" in said


def test_a_recipe_of_other_data_is_refused_with_what_can_be_typed(sweep: Sweeping, recipes: Path, capsys: Told) -> None:
    (recipes / "recipe/mine.yaml").write_text(RECIPE.replace("dataset: digits", "dataset: folder_birds"))
    words = ["--config-dir", str(recipes), "dataset=digits", "method=gift", "backbone=vit_mini", "trainer.epochs=7"]
    assert sweep(*words, "optim.warmup_epochs=0", "phase=final", "recipe=mine")[0] == 2
    said = capsys.readouterr().err
    assert "the recipe was chosen with {'dataset': 'folder_birds', " in said
    assert "dataset=folder_birds" not in said
    (recipes / "recipe/mine.yaml").write_text("recipe: {a: 1}\n")
    assert sweep(*words, "optim.warmup_epochs=0", "phase=final", "recipe=mine")[0] == 2
    assert "expected the name of a file that python -m experiments.select has written" in capsys.readouterr().err


def test_a_recipe_written_by_hand_is_no_default(sweep: Sweeping, recipes: Path, caplog: pytest.LogCaptureFixture) -> None:
    (recipes / "recipe/digits_gift.yaml").write_text("# @package _global_\noptim: {lr: 0.33}\n")
    _, [run] = sweep("--config-dir", str(recipes), "dataset=digits", "method=gift", "phase=final")
    assert run.optim.lr == 0.33
    assert "no recipe" not in caplog.text


def test_images_of_one_name_are_not_swept_together(sweep: Sweeping, tmp_path: Path, capsys: Told) -> None:
    roots = [tmp_path / part / "images" for part in ("Bär", "fish")]
    for root in roots:
        for kind in ("a", "b"):
            (root / "train" / kind).mkdir(parents=True)
            (root / "train" / kind / "1.png").touch()
    assert sweep("-m", "dataset=folder", f"dataset.root={roots[0]},{roots[1]}") == (2, [])
    said = capsys.readouterr().err
    assert f"{roots[0]} and {roots[1]} would both be folder_images, in the same folders; " in said


def test_paths_are_an_axis_whatever_their_names(sweep: Sweeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["2024", "Bär [1]", "fish"]
    for kind in ("a", "b"):
        for name in names:
            (tmp_path / name / "train" / kind).mkdir(parents=True)
            (tmp_path / name / "train" / kind / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    for axis in (names, names[::2]):
        code, runs = sweep("-m", "dataset=folder", f"dataset.root={','.join(axis)}")
        assert (code, [run.values["dataset"]["root"] for run in runs]) == (0, [str(tmp_path / name) for name in axis])


def test_a_key_that_the_default_choice_lacks_is_set_in_all_of_a_sweep(sweep: Sweeping, capsys: Told) -> None:
    code, runs = sweep("sweep=final", "dataset=digits", "seed=0", "method=adaptformer,repadapter", "method.bottleneck=4")
    assert (code, [run.values["method"]["bottleneck"] for run in runs]) == (0, [4, 4])
    for key in ("rank", "botleneck"):  # the latter is no key of any
        assert sweep("-m", "dataset=digits", "method=adaptformer,repadapter", f"method.{key}=4") == (2, [])
        assert f"none of 2 runs can start: unknown key method.{key}" in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_an_error(sweep: Sweeping, capsys: Told, tmp_path: Path) -> None:
    said = "unknown recipe 'nonne'; did you mean none? (known: "
    code, runs = sweep("-m", "debug=smoke", "seed=0,1", "recipe=nonne")
    assert (code, runs) == (2, [])
    assert f"error: none of 2 runs can start: {said}" in capsys.readouterr().err
    assert not read_sweeps(tmp_path / "outputs")
    assert sweep("debug=smoke", "recipe=nonne")[0] == 2
    told = capsys.readouterr().err
    assert (told.startswith(f"error: {said}"), told.count("\n")) == (True, 1)
    with pytest.raises(ConfigError, match="unknown recipe 'nonne'"):
        compose_config(["recipe=nonne"])


def test_a_slurm_job_that_was_killed_is_one_line() -> None:
    Plugins.instance()  # imports them itself, and takes no notice of those that were imported before
    sweepers = import_module("hydra_plugins.gift_vit_sweepers")

    class UncompletedJobError(RuntimeError):
        __module__ = "submitit.core.utils"

    lost = UncompletedJobError("Job 4413 (task: 0) has not produced any output\nError stream produced: …")
    sweeper = Mock(launcher=Mock(launch=Mock(side_effect=lost)))
    with pytest.raises(SweepError, match=r"^a job ended without an answer: .* memory or time; the others go on; once.*$"):
        sweepers.GridSweeper._launch(sweeper, [Mock(words=("seed=0",))], 0, 1)


def test_that_many_runs_are_planned_is_said(sweep: Sweeping, capsys: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    Plugins.instance()
    refused = Plan((), Job((), None, "no"), None, "no")
    monkeypatch.setattr(import_module("hydra_plugins.gift_vit_sweepers"), "plan_start", lambda _: refused)
    more = "".join(f"planning 1,001 runs{done}\n" for done in ("", *(f", {n:,} done" for n in range(100, 1001, 100))))
    for count, said in ((100, ""), (1001, more)):
        assert sweep("-m", f"seed=range({count})") == (2, [])
        assert capsys.readouterr().err == f"{said}error: none of {count} runs can start: no\n"


def test_a_job_whose_configuration_is_refused_is_recorded_with_the_reason(sweep: Sweeping, tmp_path: Path) -> None:
    code, runs = sweep("-m", "optim.lr=1e-3,-1")
    assert (code, len(runs)) == (2, 1)
    [record] = read_sweeps(tmp_path / "outputs")
    assert [(job.folder is None, job.problem) for job in record.jobs] == [
        (False, None),
        (True, "optim.lr=-1.0: expected a number above 0"),
    ]


def test_a_failed_job_that_cannot_begin_again_has_the_new_reason(
    sweep: Sweeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_present(cfg: DatasetConfig) -> None:
        if cfg.name == "cub":
            raise ConfigError("its images are gone")

    monkeypatch.setattr(DatasetConfig, "check_present", check_present)
    folder = tmp_path / "outputs/search/cub/gift/vit_b16_in21k/clean_lr0.001_wd0.0001_seed0"
    folder.mkdir(parents=True)
    write_failure(folder, RunError("no space left"))
    code, runs = sweep("-m", "dataset=digits,cub")
    assert (code, [run.dataset.name for run in runs]) == (2, ["digits"])
    assert Run.open(folder).reason == "its images are gone"


def test_records_of_sweeps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done, other = tmp_path / "search/cub/gift/vit/a", tmp_path / "search/dogs/gift/vit/b"
    jobs = (
        Job(("seed=0",), str(done), protocol="clean"),
        Job(("seed=1",), f"{done}1"),
        Job(("x=1",), str(other)),
        Job(("x=2",), None, "why"),
    )
    sweep = Sweep("python -m gift_vit.train sweep=cub", "2026-01-01T00:00:00+00:00", jobs)
    later = Sweep("python -m gift_vit.train sweep=dogs", "2026-01-02T00:00:00+00:00", jobs[:1])
    assert write_sweep(tmp_path, later) != write_sweep(tmp_path, sweep) == write_sweep(tmp_path, sweep)
    assert read_sweeps(tmp_path) == [sweep, later]
    assert unfinished([sweep, later], "cub", "gift", "vit", "clean") == 2
    assert unfinished([sweep, later], "cub", "gift", "vit", "gift_paper") == 1, "the other job does not tell"
    assert unfinished([sweep, later], "cub", "gift", "vit_b", "clean") == 0
    told = Sweep(sweep.command, sweep.started_at, (Job(("protocol=gift_paper",), str(done)),))
    assert [unfinished([told], "cub", "gift", "vit", protocol) for protocol in ("clean", "gift_paper")] == [0, 1]
    done.mkdir(parents=True)
    for ended in ("pruned.json", "result.json"):
        (done / ended).touch()
        assert unfinished([sweep, later], "cub", "gift", "vit", "clean") == 1
        (done / ended).unlink()
    assert unfinished([sweep], "dogs", "lora", "vit", "clean") == 0
    (tmp_path / "sweeps/broken.json").write_text('{"command": 1}')
    (tmp_path / "sweeps/list.json").write_text("[]")
    assert read_sweeps(tmp_path) == [sweep, later], "what cannot be read hides nothing else"
    assert re.findall(r"sweeps/(\w+)\.json is no readable record of a sweep", caplog.text) == ["broken", "list"]
