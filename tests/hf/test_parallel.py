"""Shared pairs on several devices: under DistributedDataParallel, and where the layers of one model lie on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from gift_vit.hf.layer import GiftLayer
from tests.hf.conftest import adapted, inputs
from tests.runs.test_distributed import two_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def train_step(model: Any, rows: slice) -> None:
    """The gradients of a mean over some of the four samples."""
    batch = {name: values[rows] for name, values in inputs("bert").items()}
    model(**batch, labels=torch.tensor([0, 1, 1, 0])[rows]).loss.backward()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def test_two_processes_give_one_process_s_gradients(tmp_path: Path) -> None:
    """Three layers share each pair: its gradient is the sum over them, averaged over the processes once."""

    def act(rank: int) -> None:
        torch.set_num_threads(1)
        init_process_group("gloo")
        try:
            model = adapted("bert", ["query", "value"]).eval()
            train_step(DistributedDataParallel(model), slice(2 * rank, 2 * rank + 2))
            save_file(gradients(model), tmp_path / f"{rank}.safetensors")
        finally:
            destroy_process_group()

    codes, told = two_processes(act)
    assert codes == [0, 0], told
    alone = adapted("bert", ["query", "value"]).eval()
    train_step(alone, slice(0, 4))
    expected = gradients(alone)
    assert len([name for name in expected if "gift_pair" in name]) == 4
    for rank in range(2):
        torch.testing.assert_close(load_file(tmp_path / f"{rank}.safetensors"), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("compute", ["activation", "weight"])
def test_layers_of_two_devices_may_share_a_pair(compute: str) -> None:
    """Where the first of them lies, the pair does, or the last: here the CPU, and meta stands for the other."""
    model = adapted("bert", ["query", "value"], compute=compute)
    layer: Any = next(module for module in model.modules() if isinstance(module, GiftLayer))
    layer.base_layer.to("meta")
    made = layer(torch.zeros(2, 5, 32, device="meta"))
    assert (made.device.type, made.shape) == ("meta", (2, 5, 32))
    assert layer.get_delta_weight("default").device.type == "meta"
