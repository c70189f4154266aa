"""Recorded models of every method: whatever the batch, they compute with the tensors that they are given."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from gift_vit.export.formats import quiet
from gift_vit.export.graph import Graph, adapter_inputs, to_program
from gift_vit.methods import adapter_state_dict, apply_method
from tests.methods.checks import assert_close
from tests.methods.method_examples import all_examples

# what records in another way: without a merge, with frozen projections, in two passes, by several ranks
FAST = (
    "gift_several",
    "gift_wegeft",
    "gift_v1",
    "vera",
    "fact_tt",
    "vpt_deep",
    "adaptformer",
    "convpass",
    "toast",
)
UNRECORDED = ("hra",)  # peft builds an identity matrix that torch cannot follow; merged it is exported


def example(label: str) -> object:
    marks = [] if label in FAST else [pytest.mark.slow]
    if label == "lily":
        marks.append(pytest.mark.xfail(reason="logits of peft's Lily are 4e-4 off with another run's tensors; not understood"))
    return pytest.param(label, marks=marks)


def drawn(vit: nn.Module, label: str, seed: int) -> nn.Module:
    """The label's method, all that a seed decides drawn by it, away from its start."""
    torch.manual_seed(seed)
    model = apply_method(deepcopy(vit), all_examples()[label].config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("label", [example(label) for label in all_examples() if label not in UNRECORDED])
def test_a_recorded_model_serves_another_runs_tensors(tiny_vit: nn.Module, label: str) -> None:
    model, other = (drawn(tiny_vit, label, seed) for seed in (1, 2))
    images = torch.randn(8, 3, 160, 160, generator=torch.Generator().manual_seed(3))
    inputs = adapter_inputs(model)
    with torch.no_grad(), quiet():
        program = to_program(Graph(model, None, tuple(inputs.tensors)).eval(), images, inputs).module()
        for each in (model, other):
            tensors = tuple(adapter_state_dict(each).values())
            found = torch.cat([program(batch, tensors) for batch in images.split((1, 2, 5))])
            assert_close(found, each(images))
    assert not torch.allclose(model(images), other(images), atol=1e-3), "the tensors matter"
