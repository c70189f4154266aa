"""Display names of methods and datasets, and which datasets a benchmark has. Everywhere else a thing has its label only.

Their order is the order of rows and columns; what is not named here follows under its own label.
"""

from collections.abc import Iterable, Mapping

METHOD_NAMES = {
    "full": "Full fine-tuning",
    "knn": "k-NN",
    "linear": "Linear probing",
    "linear_exact": "Linear probing (exact)",
    "bitfit": "BitFit",
    "bitfit_all": "BitFit (all biases)",
    "ln_tuning": "LayerNorm tuning",
    "vpt_shallow": "VPT-Shallow",
    "vpt_deep": "VPT-Deep",
    "adaptformer": "AdaptFormer",
    "adapter_houlsby": "Adapter (Houlsby)",
    "adapter_pfeiffer": "Adapter (Pfeiffer)",
    "adapter_plus": "Adapter+",
    "convpass_attn": "Convpass (attention)",
    "convpass": "Convpass",
    "repadapter_attn": "RepAdapter (attention)",
    "repadapter": "RepAdapter",
    "apla": "APLA",
    "apla_full": "APLA (whole layer)",
    "fact_tt": "FacT-TT",
    "fact_tk": "FacT-TK",
    "toast_lite": "TOAST-Lite",
    "toast": "TOAST",
    "ssf": "SSF",
    "ia3": "(IA)³",
    "lora": "LoRA",
    "lora_qv": "LoRA (q, v)",
    "lora_text": "LoRA (query, value)",
    "gift_qv": "GIFT (query, value)",
    "gift_qv_llm": "GIFT (QV)",
    "gift_proj": "GIFT (Proj)",
    "gift_qkvud": "GIFT (QKVUD)",
    "wegeft_qkvud": "WeGeFT (QKVUD)",
    "lora_qkvud": "LoRA (QKVUD)",
    "lora_rs": "rsLoRA",
    "lora_fa": "LoRA-FA",
    "lora_plus": "LoRA+",
    "pissa": "PiSSA",
    "lora_eva": "EVA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "vera": "VeRA",
    "vblora": "VB-LoRA",
    "randlora": "RandLoRA",
    "tinylora": "TinyLoRA",
    "gralora": "GraLoRA",
    "glora": "GLoRA",
    "delora": "DeLoRA",
    "hira": "HiRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "miss": "MiSS",
    "oft": "OFT",
    "boft": "BOFT",
    "hra": "HRA",
    "road": "RoAd",
    "fourierft": "FourierFT",
    "c3a": "C³A",
    "gift_gelu": "GIFT (GELU)",
    "gift_sigmoid": "GIFT (sigmoid)",
    "gift_mlp": "GIFT (MLP)",
    "gift_mlp_mixer": "GIFT (MLP-Mixer)",
    "gift_transformer": "GIFT (Transformer)",
    "gift_paca_attn": "GIFT (PaCa)",
    "gift_wegeft": "GIFT (WeGeFT's start)",
    "gift_v1": "GIFT v1",
    "gift": "GIFT",
}
MINI = {
    "digits": "Digits",
    "tiny_mammals": "Tiny mammals",
    "tiny_insects": "Tiny insects",
    "tiny_vehicles": "Tiny vehicles",
    "cifar10_1k": "CIFAR-10 (1k)",
}
FGVC = {"cub": "CUB", "nabirds": "NABirds", "flowers": "Flowers", "dogs": "Dogs", "cars": "Cars"}
VTAB_GROUPS = {
    "Natural": {
        "vtab_cifar100": "CIFAR-100",
        "vtab_caltech101": "Caltech101",
        "vtab_dtd": "DTD",
        "vtab_flowers102": "Flowers102",
        "vtab_pets": "Pets",
        "vtab_svhn": "SVHN",
        "vtab_sun397": "Sun397",
    },
    "Specialized": {
        "vtab_patch_camelyon": "Patch Camelyon",
        "vtab_eurosat": "EuroSAT",
        "vtab_resisc45": "Resisc45",
        "vtab_retinopathy": "Retinopathy",
    },
    "Structured": {
        "vtab_clevr_count": "Clevr/count",
        "vtab_clevr_distance": "Clevr/distance",
        "vtab_dmlab": "DMLab",
        "vtab_kitti_distance": "KITTI/distance",
        "vtab_dsprites_location": "dSprites/loc",
        "vtab_dsprites_orientation": "dSprites/ori",
        "vtab_smallnorb_azimuth": "SmallNORB/azi",
        "vtab_smallnorb_elevation": "SmallNORB/ele",
    },
}
VTAB = {label: name for group in VTAB_GROUPS.values() for label, name in group.items()}
GLUE = {
    "glue_sst2": "SST-2",
    "glue_mrpc": "MRPC",
    "glue_cola": "CoLA",
    "glue_qnli": "QNLI",
    "glue_rte": "RTE",
    "glue_stsb": "STS-B",
    "glue_qqp": "QQP",
    "glue_mnli": "MNLI",
}
LEFT_OUT = ("glue_qqp", "glue_mnli")  # of GLUE's table, as the paper has it
COMMONSENSE = {"commonsense": "Commonsense170k"}
COMMONSENSE_COLUMNS = {  # its test sets
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "ARC-Easy": "ARC-e",
    "ARC-Challenge": "ARC-c",
    "openbookqa": "OBQA",
}
DATASET_NAMES = {**MINI, **FGVC, **VTAB, **GLUE, **COMMONSENSE}


class Value(str):
    """A row's label that is a value of the configuration: shown as it is, whatever method is called so."""

    __slots__ = ()


def method_name(label: str) -> str:
    """The method's name in tables; its label where it has none."""
    return label if isinstance(label, Value) else METHOD_NAMES.get(label, label)


def dataset_name(label: str) -> str:
    """The dataset's name in tables; its label where it has none."""
    return DATASET_NAMES.get(label, label)


def ordered(labels: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Labels in the order of the display names, others after them as they come."""
    rank = {label: index for index, label in enumerate(names)}
    return sorted(labels, key=lambda label: rank.get(label, len(rank)))


def titled(score: str) -> str:
    """A score as a heading."""
    return f"{score[:1].upper()}{score[1:]} (%)"
