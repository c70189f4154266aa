"""Which runs are put together, from configurations to the processes of the launcher."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from gift_vit.compose import compose_config
from gift_vit.config import RunConfig, load_config
from gift_vit.errors import ConfigError
from gift_vit.parallel.groups import group_runs
from gift_vit.paths import conf_dir
from gift_vit.sweeps import plan_job
from hydra_plugins.gift_vit_launcher import ProcessLauncher

Configure = Callable[..., RunConfig]


def test_groups_differ_in_rate_decay_and_seed_alone_and_seeds_come_together(configure: Configure) -> None:
    words = [
        ["seed=0", "optim.lr=1e-3"],
        ["seed=1", "optim.lr=1e-3"],
        ["seed=0", "optim.lr=1e-2", "optim.weight_decay=0"],
        ["seed=1", "optim.lr=1e-2"],
        ["seed=0", "method.rank=4"],
        ["seed=0", "optim.lr=5e-2"],
        ["seed=0", "trainer.precision=bf16"],
        ["seed=0", "method=linear"],
        ["seed=0", "trainer.workers=1"],
    ]
    runs = [configure("run_name=null", *own) for own in words]
    assert group_runs(runs, 4) == [[0, 2, 5, 1], [3], [4], [6], [7], [8]]
    assert group_runs(runs, 2) == [[0, 2], [5, 1], [3], [4], [6], [7], [8]]
    assert group_runs([], 4) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method=full"], "method=full has no frozen weights that runs could share"),
        (["trainer.precision=fp16"], "trainer.precision=fp16 scales the losses"),
        (["trainer.memory=lean"], "trainer.memory=lean computes activations a second time"),
        (["trainer.speed=auto"], "trainer.speed=auto may compile the model of one run"),
        (["trainer.compile=true"], "trainer.compile=true compiles the model of one run"),
    ],
)
def test_what_cannot_be_put_together_is_one_line(configure: Configure, words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.parallel_runs cannot be used: {reason}[^\n]*$"):
        group_runs([configure(), configure(*words)], 2)


def test_it_makes_no_other_run(configure: Configure) -> None:
    one, four = configure("run_name=null"), configure("run_name=null", "trainer.parallel_runs=4")
    assert one.folder == four.folder
    assert one.values == four.values
    assert "parallel_runs" not in four.values["trainer"]
    words = ["debug=smoke", "run_name=null"]
    named = load_config(compose_config([*words, "trainer.parallel_runs=4"]), compose_config(words))
    assert "parallel" not in named.run_name


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "many"])
def test_a_number_of_runs_that_is_none(configure: Configure, value: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.parallel_runs=.*: expected a whole number of 1 or more"):
        configure(f"trainer.parallel_runs={value}")


def groups_of(jobs: Sequence[Sequence[str]], size: int) -> list[list[int]]:
    launcher = ProcessLauncher(n_jobs=1)
    launcher.config = OmegaConf.create({"trainer": {"parallel_runs": size}})
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return launcher._groups(jobs)


def test_the_launcher_leaves_finished_and_refused_jobs_to_themselves(tmp_path: Path) -> None:
    common = ["debug=smoke", "run_name=null", f"paths.output_root={tmp_path}"]
    jobs = [[*common, word] for word in ("seed=0", "seed=1", "seed=-1", "seed=2", "optim.lr=1e-2")]
    assert groups_of(jobs, 1) == [[0], [1], [2], [3], [4]]
    assert groups_of(jobs, 3) == [[2], [0, 4, 1], [3]]
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        done = plan_job(jobs[0]).folder
    assert done is not None
    Path(done).mkdir(parents=True)
    Path(done, "result.json").touch()
    assert groups_of(jobs, 3) == [[0], [2], [4, 1, 3]]
