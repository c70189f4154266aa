"""A backbone from a file equals, with all random numbers that follow, what building and overwriting it gives."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from gift_vit.backbones import build
from gift_vit.backbones.build import build_backbone
from gift_vit.backbones.config import BackboneConfig


def built(model: str, weights: Path | None, num_classes: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    cfg = BackboneConfig("name", model, None if weights is None else str(weights), pretrained=True, img_size=None)
    torch.manual_seed(3)
    return build_backbone(cfg, num_classes, 0.1).state_dict(), torch.rand(5)


@pytest.mark.parametrize(("model", "from_file"), [("vit_mini_patch8_64", False), ("vit_tiny_patch16_224", True)])
@pytest.mark.parametrize("num_classes", [7, 1000])
def test_the_same_weights_and_the_same_random_numbers_after_them(
    model: str, from_file: bool, num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors" if from_file else None
    if file is not None:
        save_file(timm.create_model(model).state_dict(), file)
    state, following = built(model, file, num_classes)

    @contextmanager
    def computed() -> Any:
        yield

    monkeypatch.setattr(build, "_drawn_only", computed)
    expected, expected_following = built(model, file, num_classes)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert torch.equal(following, expected_following)


def test_it_draws_as_often_and_ends_with_its_context() -> None:
    with build._drawn_only():
        torch.manual_seed(0)
        drawn = timm.create_model("test_vit")
        after = torch.rand(3)
    torch.manual_seed(0)
    computed = timm.create_model("test_vit")
    assert torch.equal(torch.rand(3), after)
    assert not torch.equal(drawn.get_parameter("blocks.0.mlp.fc1.weight"), computed.get_parameter("blocks.0.mlp.fc1.weight"))
    assert computed.get_parameter("blocks.0.mlp.fc1.weight").std() < 0.03
