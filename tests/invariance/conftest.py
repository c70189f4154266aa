"""Finished runs, and the command over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gift_vit.config.loader import load_config
from gift_vit.invariance import __main__ as invariance
from gift_vit.runs.train import Call, train_run
from tests.conf.files import composed

METHODS = {method: [f"method={method}"] for method in ("lora", "linear", "vpt_deep", "toast")}
METHODS["lily"] = [  # of a kind that can be merged, which this one cannot
    *("method=ln_tuning", "method.name=lily", "method.peft_type=LILY", "method.target_modules=[attn.proj]"),
    "+method.options={r:2,stride_A:1,num_B:2}",
]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs on digits by their method; some seconds."""
    root, folders = tmp_path_factory.mktemp("outputs"), {}
    fixed = ["debug=smoke", "backbone.img_size=32", "phase=final", "optim.lr=0.05"]
    fixed += [f"paths.output_root={root}", f"paths.cache_root={root}/cache"]
    for method, words in METHODS.items():
        cfg = load_config(composed(*fixed, *words))
        train_run(cfg, Call("python -m gift_vit.train", []))
        folders[method] = cfg.folder
    return folders


@pytest.fixture
def call(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Any:
    def called(*words: str) -> tuple[int, str, str]:
        code = command(invariance, *words)
        streams = capsys.readouterr()
        return code, streams.out, (streams.err.splitlines() or [""])[-1]

    return called
