"""Parameters on ViT-B/16 with 200 classes by the closed formulas, and in percent as the papers print them.

Of peft's methods the contract counts test_vit's; here are those whose formula is another for this width.
"""

import re
from pathlib import Path

import pytest
import timm
import torch

from experiments import methods as command
from gift_vit.methods import GiftConfig, ParameterCount, apply_method, count_parameters
from gift_vit.methods.config import PeftConfig
from tests.methods.method_examples import yaml_config, yaml_configs

# label of conf/method → adapter parameters
LABELS = {
    "linear": 0,
    "linear_exact": 0,
    "knn": 0,
    "full": 85_798_656,
    "gift": 24_576,
    "gift_v1": 27_824 + 32 * 17,  # 96 clusters instead of 64
    "lora": 12 * 8 * (768 + 768),
    "lora_qv": 2 * 12 * 8 * (768 + 768),
    "vpt_deep": 12 * 5 * 768,
    "vpt_shallow": 5 * 768,
    "bitfit": 12 * (2304 + 768 + 3072 + 768),
    "bitfit_all": 82_944 + 12 * 2 * 768 + 768 + 768,  # and norms of the blocks, last norm, patch embedding
    "adaptformer": 12 * (2 * 768 * 64 + 64 + 768),
    "ssf": 2 * (768 + 12 * (768 + 2304 + 768 + 768 + 3072 + 768) + 768),
    "ia3": 12 * (2304 + 3072),
    "lokr": 12 * (24 * 24 + 8 * (32 + 32)),  # 768 = 24 × 32
    "vblora": 12 * 2 * (768 // 64) * 4 * 256 + 256 * 64,
    "repadapter": 239_808,
    "repadapter_attn": 119_904,
    "apla": 73_824,
    "apla_full": 7_087_104,
    "fact_tt": 61_440,
    "fact_tk": 86_528,
    "adapter_plus": 165_984,
    "adapter_houlsby": 204_384,
    "adapter_pfeiffer": 175_200,
    "convpass": 327_552,
    "convpass_attn": 163_776,
    "toast": 14_156_544,
    "toast_lite": 738_048,
    "lora_rs": 147_456,
    "lora_fa": 73_728,
    "lora_plus": 147_456,
    "lora_eva": 147_456,
    "pissa": 147_456,
    "gift_wegeft": 24_576,
}
# schema: parameters between phi and psi at rank 16 and at rank 96, and the percentages
SCHEMAS = {
    "linear": (0, 0, "0.0286", "0.1719"),
    "gelu": (0, 0, "0.0286", "0.1719"),
    "sigmoid": (0, 0, "0.0286", "0.1719"),
    "mlp": (1_072, 37_152, "0.0299", "0.2152"),
    "paca_attn": (2_176, 43_456, "0.0312", "0.2225"),
    "transformer": (2_160, 74_400, "0.0312", "0.2586"),
    "paca_transformer": (3_248, 80_608, "0.0324", "0.2658"),
    "mlp_mixer": (100_208, 136_288, "0.1454", "0.3307"),
}
# in percent of the backbone, to the digits that the papers print
PERCENT = {"lora": "0.1719", "vpt_deep": "0.0537", "vpt_shallow": "0.0045", "bitfit": "0.0967", "bitfit_all": "0.1199"}
PERCENT |= {"gift": "0.0286", "ssf": "0.2399"}


PEFTS = {"ia3", "lokr", "vblora"}


def count(config: object) -> ParameterCount:
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=200)
    apply_method(vit, config)
    devices = {parameter.device.type for parameter in vit.parameters()}
    assert devices == {"meta"} or isinstance(config, PeftConfig)  # peft draws some of its tensors on the CPU
    return count_parameters(vit)


def test_the_page_and_the_command_have_these_counts(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/methods.md").read_text()
    table = {
        row[1]: int(row[2].replace(",", "")) for row in re.finditer(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", page, re.MULTILINE)
    }
    between = {f"gift_{schema}": 24_576 + sizes[0] for schema, sizes in SCHEMAS.items()}
    expected = {label: size for label, size in LABELS.items() if label not in PEFTS}
    assert table == expected | {label: between[label] for label in table if label in between}
    assert set(table) == own_methods() | {"lora", "lora_qv", "lora_rs"}
    command.print_counts(command.Arguments(methods=["vpt_deep", "gift", "c3a", "gift_qv"], model="vit_tiny_patch16_224"))
    *_, deep, gift, _, of_texts = lines = capsys.readouterr().out.splitlines()
    assert [deep, gift] == ["| `vpt_deep` | 11,520 | 0.2085 |", "| `gift` | 6,144 | 0.1112 |"]
    assert of_texts.startswith("| `gift_qv`: ")
    assert {line.count("|") for line in lines} == {4}, "three columns"
    assert of_texts.endswith(" | – | – |")


def test_of_all_methods_those_that_do_not_fit_stand_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command.Arguments(model="vit_tiny_patch16_224")
    assert {"gift", "gift_qv"} < set(arguments.known)
    arguments.known = ["gift", "gift_qv", "lora_text"]
    command.print_counts(arguments)
    *_, row, empty, others = capsys.readouterr().out.splitlines()
    assert (row[:8], empty, others) == ("| `gift`", "", "Not for this model: `gift_qv`, `lora_text`")


def own_methods() -> set[str]:
    """The labels of conf/method that are not peft's."""
    return {label for label, config in yaml_configs().items() if not isinstance(config, PeftConfig)}


@pytest.mark.parametrize("label", LABELS)
def test_every_label(label: str) -> None:
    counted = count(yaml_config(label))
    head = 0 if label == "knn" else 153_800  # which has a bank of features in its place
    assert counted == ParameterCount(adapter=LABELS[label], head=head, backbone=85_798_656)
    assert label not in PERCENT or f"{counted.percent:.4f}" == PERCENT[label]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema(schema: str) -> None:
    for rank, between, percent in zip((16, 96), SCHEMAS[schema][:2], SCHEMAS[schema][2:], strict=True):
        counted = count(GiftConfig(rank=rank, schema=schema))
        assert (counted.adapter, f"{counted.percent:.4f}") == (2 * 768 * rank + between, percent)
