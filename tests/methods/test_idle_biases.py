"""A bias of φ or ψ that every LayerNorm subtracts is not trained: told by gradients."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from gift_vit.methods import GiftConfig, apply_method, count_parameters

PLAIN, SCALED = {}, {"init_values": 0.5}
# targets, the model's changes, share → whether each pair's bias has no effect
CASES: list[tuple[list[str], dict[str, Any], bool, list[bool]]] = [
    (["attn.proj"], PLAIN, False, [True]),
    (["mlp.fc2"], PLAIN, False, [True]),
    (["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], PLAIN, False, [False, True, False, True]),
    (["attn.v", "mlp.fc2"], PLAIN, False, [False, True]),
    (["attn.proj", "attn.v"], PLAIN, True, [False]),
    (["attn.proj", "mlp.fc2"], SCALED, False, [False, False]),
    (["attn.proj"], {"global_pool": "avg"}, False, [True]),
    (["attn.proj"], {"global_pool": "max"}, False, [False]),
    (["attn.proj"], {"global_pool": "avg", "fc_norm": False}, False, [True]),
    (["attn.proj"], {"norm_layer": "rmsnorm"}, False, [False]),
    (["attn.proj"], {"final_norm": False}, False, [False]),
]


@pytest.mark.parametrize("option", ["phi_bias", "psi_bias"])
@pytest.mark.parametrize(("targets", "changes", "share", "idle"), CASES)
def test_what_has_no_gradient_is_not_trained(
    targets: list[str], changes: dict[str, Any], share: bool, idle: list[bool], option: str
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5, img_size=32, **changes).double()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    cfg = GiftConfig(2, targets, share=share, phi_bias=option == "phi_bias", psi_bias=option == "psi_bias")
    apply_method(model, cfg).double()
    for name, parameter in model.named_parameters():
        if name.endswith(".psi"):
            parameter.data.normal_()
    biases = {name: p for name, p in model.named_parameters() if name.endswith(option)}
    trained = [bias.requires_grad for bias in biases.values()]
    for bias in biases.values():
        bias.requires_grad_(True)
        bias.data.normal_()
    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 5
    F.cross_entropy(model(images), labels).backward()
    gradients = [float(bias.grad.abs().max()) for bias in biases.values() if bias.grad is not None]
    assert [gradient < 1e-12 for gradient in gradients] == idle, gradients
    assert trained == [not nothing for nothing in idle]


def test_it_is_not_counted_but_kept(tiny_vit: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    apply_method(tiny_vit, GiftConfig(rank=4, target_modules=["attn.proj", "mlp.fc1"], psi_bias=True))
    assert count_parameters(tiny_vit).adapter == 2 * 2 * 64 * 4 + 64, "the bias of mlp.fc1"
    assert "gift.attn.proj.psi_bias" in tiny_vit.state_dict(), "files of older versions hold one"
    assert "method.psi_bias does nothing at attn.proj" in caplog.text
    assert "mlp.fc1" not in caplog.text


def test_between_phi_and_its_bias_s_use_a_function_keeps_it(tiny_vit: nn.Module) -> None:
    apply_method(tiny_vit, GiftConfig(rank=4, schema="gelu", phi_bias=True))
    assert tiny_vit.get_parameter("gift.attn.proj.phi_bias").requires_grad
