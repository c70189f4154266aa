from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from experiments import pretraining
from experiments.pretrain_mini import PretrainConfig
from experiments.pretraining import build_mixing, lr_scale, train
from tests.data.conftest import encode


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """Two training files and a validation file of noise images in the pretraining data's format."""
    generator = np.random.default_rng(0)
    for name, count in (("train-0", 8), ("train-1", 8), ("val", 6)):
        pixels = generator.integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)
        images = [{"bytes": encode(image), "path": None} for image in pixels]
        table = pa.table({"image": images, "label": pa.array(range(count), pa.int64())})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    return tmp_path


def test_learning_rate_rises_and_falls_as_torch_has_it() -> None:
    cfg = PretrainConfig(epochs=10, warmup_epochs=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rise = LinearLR(optimizer, 1 / 5, total_iters=4)
    schedule = SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, 45)], milestones=[5])
    for step in range(50):
        assert lr_scale(step, steps_per_epoch=5, cfg=cfg) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_labels_are_mixed_as_the_pixels_are(mixup: float, cutmix: float) -> None:
    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 64, 64)  # so that a mean is a share of the second image
    mixed, targets = build_mixing(PretrainConfig(mixup_alpha=mixup, cutmix_alpha=cutmix))(images, torch.tensor([3, 7]))
    if mixup or cutmix:
        assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 7])
        assert torch.allclose(targets.sum(1), torch.ones(2))
    else:
        assert targets.tolist() == [3, 7]


def test_interrupted_pretraining_goes_on_and_ships_weights_that_timm_loads(
    upstream: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = upstream / "package" / "vit_mini.safetensors"
    spans = {"epochs": 2, "plain_epochs": 1, "warmup_epochs": 0.5}
    recipe = PretrainConfig(data=str(upstream), out=str(upstream / "out"), batch_size=4, workers=0, **spans)
    monkeypatch.setattr(pretraining, "WEIGHTS_FILE", weights)
    monkeypatch.setattr(pretraining, "set_fused_attn", lambda _: None)  # it would be off for all that follows in this process
    save = pretraining.save_checkpoint

    def save_and_stop(path: Path, state: dict) -> None:
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    assert not weights.exists()
    train(recipe)
    assert "resuming after epoch 1" in capsys.readouterr().out
    state = load_file(weights)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert weights.stat().st_size <= 6_000_000
    model = timm.create_model("vit_mini_patch8_64", num_classes=164, checkpoint_path=str(weights))
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"].float())
    card = weights.with_suffix(".md").read_text()
    for word in ("Tiny-ImageNet", "Validation top-1", "| epochs | 2 |", "| seed | 0 |", "hours on", "| 1 |"):
        assert word in card
