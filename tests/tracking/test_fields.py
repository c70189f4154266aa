import pytest

from gift_vit.config import load_config
from gift_vit.config.compose import compose_config
from gift_vit.tracking.fields import config_fields, summary_fields

SHARED = {
    **{"dataset": "cub", "benchmark": "fgvc", "backbone": "vit_b16_in21k", "protocol": "gift_paper", "phase": "final"},
    **{"seed": 42, "lr": 0.0025, "weight_decay": 0.01},
}


@pytest.mark.parametrize(
    ("label", "own"),
    [
        ("gift", {"method": "gift", "kind": "gift", "rank": 16}),
        ("dora", {"method": "dora", "kind": "peft", "rank": 8}),
        ("vpt_shallow", {"method": "vpt_shallow", "kind": "vpt", "num_tokens": 5}),
        ("linear", {"method": "linear", "kind": "linear"}),
    ],
)
def test_config_fields_are_flat_and_the_configuration_is_whole(label: str, own: dict[str, object]) -> None:
    words = ["dataset=cub", "protocol=gift_paper", "phase=final", "optim.lr=2.5e-3", "optim.weight_decay=0.01"]
    cfg = load_config(compose_config([*words, f"method={label}"]))
    assert config_fields(cfg.values) == {**SHARED, **own, "config": cfg.values}


def test_summary_fields_join_sections() -> None:
    record = {"test_top1": 84.5, "val_top1": None, "params": {"adapter": 24576, "percent": 0.0286}, "cost": {}}
    assert summary_fields(record) == {"test_top1": 84.5, "val_top1": None, "params/adapter": 24576, "params/percent": 0.0286}
