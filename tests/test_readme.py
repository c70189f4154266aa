"""The README's command blocks, run as they stand, made short by overrides that are appended."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from gift_vit.methods import apply_method, count_parameters, merge_method, registry
from gift_vit.methods.adapter import method_config
from tests.methods.method_examples import yaml_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python|yaml) test\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip() for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line
]
SHORT = ["debug=smoke", "trainer.batch_size=4", "run_name=null"]


def test_the_readme_has_the_blocks_it_should_have() -> None:
    assert [language for language, _ in BLOCKS] == [
        *["bash"] * 9,
        *["python", "yaml", "bash", "python", "yaml"],
    ]
    assert len(COMMANDS) == 20


@pytest.mark.parametrize(("file", "lines"), [("mini/chain/table.md", 7), ("bench/cpu_close.md", 12)])
def test_tables_are_those_made_from_result_files_and_measurements(file: str, lines: int) -> None:
    table = [line for line in (ROOT / "experiments" / file).read_text().splitlines() if line.startswith("|")]
    assert len(table) == lines
    assert "\n".join(table) in README


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a small CUB in its original layout and a person's own images."""
    folder = tmp_path_factory.mktemp("readme")
    names = {"001": "001.Black_footed_Albatross", "002": "002.Laysan_Albatross"}
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        listed = {}
        for number, name in names.items():
            for index in range(count):
                image = folder / "data/cub/CUB_200_2011/images" / name / f"{split}_{index}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (60, 40), (int(number) * 100, 10 * index, 0)).save(image)
                listed[f"{name}/{image.name}"] = number
        (folder / "data/cub/splits/paper").mkdir(parents=True, exist_ok=True)
        (folder / "data/cub/splits/paper" / f"{split}.json").write_text(json.dumps(listed))
    for label in ("cat", "dog"):
        (folder / "my_images/train" / label).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (40, 60), (20 * index, 0, 0)).save(folder / "my_images/train" / label / f"{index}.jpg")
    for block in (block for language, block in BLOCKS if language == "yaml"):
        file = folder / block.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block)
    return folder


def test_make_demo(tmp_path: Path) -> None:
    """The target itself, in the environment at hand and with one epoch."""
    assert "make demo" in COMMANDS
    binaries = Path(sys.executable).parent
    words = ["make", "-o", ".venv/.ready", "demo", f"BIN={binaries}", f"ARGS=epochs=1 output_root={tmp_path}"]
    wide = os.environ | {"COLUMNS": "160"}  # so that no heading of the table is wrapped
    done = subprocess.run(words, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for header in ("method", "trainable parameters", "adapter bytes", "test top-1 %", "seconds", "linear", "gift"):
        assert header in done.stdout
    files = {"config.yaml", "metrics.jsonl", "train.log", "adapter.safetensors", "result.json"}
    for method in ("linear", "gift"):
        assert {path.name for path in (tmp_path / "final/digits" / method / "vit_mini/demo").iterdir()} == files
    with Image.open(tmp_path / "cluster_maps.png") as picture:
        assert min(picture.size) > 500


COUNTS = {
    **{"gift": 24_576, "gift_v1": 28_368, "gift_gelu": 24_576, "gift_mlp_mixer": 124_784, "lora": 147_456, "lora_qv": 294_912},
    **{"bitfit": 82_944, "bitfit_all": 102_912, "vpt_deep": 46_080, "vpt_shallow": 3_840, "adaptformer": 1_189_632},
    **{"ssf": 205_824, "linear": 0, "full": 85_798_656},
}


@pytest.mark.parametrize("label", COUNTS)
def test_the_parameters_of_the_methods(label: str) -> None:
    with torch.device("meta"):
        vit = apply_method(timm.create_model("vit_base_patch16_224", num_classes=10), yaml_config(label))
    assert count_parameters(vit).adapter == COUNTS[label]
    rows = [row for row in README.splitlines() if row.startswith("| `") and f"`{label}`" in row]
    assert [f"{COUNTS[label]:,}" in row for row in rows] == [True]


def test_every_method_is_in_the_table() -> None:
    named = set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in README.splitlines() if row.startswith("| `"))))
    assert {file.stem for file in (ROOT / "conf/method").glob("*.yaml")} <= named


def test_the_status_of_the_data(workplace: Path) -> None:
    assert "python -m data_prep.status" in COMMANDS
    words = [sys.executable, "-m", "data_prep.status"]
    done = subprocess.run(words, cwd=workplace, capture_output=True, text=True, timeout=60, check=True)
    assert "0 of 24 datasets are ready" in done.stdout
    assert sum(line in done.stdout for line in COMMANDS) == 2  # the two preparing commands below are among the next steps


@pytest.mark.parametrize(
    ("module", "url"),
    [("data_prep.fgvc", "https://data.caltech.edu/"), ("data_prep.vtab", "https://www.cs.toronto.edu/~kriz/cifar-100-binary")],
)
def test_preparing_commands_without_a_network(tmp_path: Path, module: str, url: str) -> None:
    """They get as far as the first download, and say in one line what to do."""
    [line] = [line for line in COMMANDS if module in line]
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    words = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | dead, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    [told] = [told for told in done.stderr.splitlines() if told.startswith("error: ")]
    assert url in told
    assert str(Path("data/downloads")) in told


@pytest.mark.parametrize("line", [line for line in COMMANDS if "gift_vit.train" in line and "sweep=" not in line])
def test_training_commands(workplace: Path, line: str) -> None:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "gift_vit.train"]
    dataset = next(word for word in words if word.startswith("dataset="))
    words = [sys.executable, *words[1:], *SHORT, dataset, "dataset.num_classes=null", "paths.output_root=outputs"]
    done = subprocess.run(
        words,
        cwd=workplace,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    expected = 3 if "4,8,16" in line else 1
    assert len([told for told in done.stderr.splitlines() if told.startswith("finished")]) == expected


@pytest.mark.parametrize("line", [line for line in COMMANDS if "run=outputs" in line])
def test_commands_on_a_finished_run(workplace: Path, line: str) -> None:
    """On the run of the training command above it, wherever that landed with its appended overrides."""
    [run] = (workplace / "outputs/final/cub/gift/test_vit").glob("gift_paper_*")
    words = [f"run={run}" if word.startswith("run=") else word for word in shlex.split(line)[1:]]
    done = subprocess.run([sys.executable, *words], cwd=workplace, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout or "wrote cub.safetensors" in done.stdout


def test_python_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With random weights, since tests have no network."""
    [code] = [block for language, block in BLOCKS if language == "python" and "save_adapter" in block]
    assert code.count("pretrained=True") == 2
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("pretrained=True", "pretrained=False"), "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "ParameterCount(adapter=24576, head=153800, backbone=85798656)" in shown
    assert "['gift.attn.proj.phi', 'gift.attn.proj.psi', 'head.weight', 'head.bias']" in shown


def test_the_method_of_one_s_own(workplace: Path, tiny_vit: nn.Module) -> None:
    [code] = [block for language, block in BLOCKS if language == "python" and "register_method" in block]
    before = dict(registry.METHODS)
    try:
        exec(compile(code, "norms.py", "exec"), {"__name__": "norms"})
        values: Any = OmegaConf.to_container(OmegaConf.load(workplace / "my_conf/method/norms.yaml"))
        assert values.pop("name") == "norms"
        plain = {name: tensor.clone() for name, tensor in tiny_vit.state_dict().items()}
        apply_method(tiny_vit, method_config(values))
        trainable = {name for name, parameter in tiny_vit.named_parameters() if parameter.requires_grad}
        norms = {name for name in plain if "norm" in name}
        assert trainable == norms | {"head.weight", "head.bias"}
        assert count_parameters(tiny_vit).adapter == (2 * 6 + 1) * 2 * 64
        merge_method(tiny_vit)
        assert all(torch.equal(plain[name], tensor) for name, tensor in tiny_vit.state_dict().items())
    finally:
        registry.METHODS.clear()
        registry.METHODS.update(before)
