"""What the benchmark compares: ways to fine-tune one ViT, and the forms they are measured against. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from gift_vit.common.errors import ConfigError

REFERENCE, FLOOR, PLAIN = "reference", "floor", "plain"  # the methods that are no method of the project


@dataclass(frozen=True)
class Variant:
    """One way to compute a training step, or a forward pass.

    Attributes:
        method: A choice of ``method=``; ``reference``, GIFT as its authors' code computes it; ``floor``, a frozen backbone that
            only passes a gradient through, from block 0's projection on; or ``plain``, timm's own model.
        precision: As ``trainer.precision``.
        memory: As ``trainer.memory``.
        accelerated: With what :func:`gift_vit.acceleration.accelerate.accelerate` does; otherwise as timm computes.
        compiled: By ``torch.compile``, as one graph.
        cuda_graphs: Compiled, and its kernels launched as CUDA graphs (mode ``reduce-overhead``).
        captured: The whole step recorded as one CUDA graph; with frozen products held in bf16 where that is the precision, and
            ``compiled`` by block: as a run on a GPU is.
        drop_path: Drop path rate.
        training: A training step; otherwise a forward pass in eval mode.
        merged: With the adapter merged.
        explained: A forward pass that also makes GIFT's maps, of all adapted layers and clusters before and after the update.
    """

    name: str
    method: str
    precision: str = "fp32"
    memory: str = "fast"
    accelerated: bool = True
    compiled: bool = False
    cuda_graphs: bool = False
    captured: bool = False
    drop_path: float = 0.0
    training: bool = True
    merged: bool = False
    explained: bool = False


def _timm(name: str, method: str, **kwargs: Any) -> Variant:
    return Variant(name, method, accelerated=False, **kwargs)


def _inference(name: str, method: str, **kwargs: Any) -> Variant:
    return Variant(name, method, training=False, **kwargs)


VARIANTS = (
    _timm("reference", REFERENCE),
    _timm("floor", FLOOR),
    Variant("gift", "gift"),
    Variant("gift lean", "gift", memory="lean"),
    Variant("gift minimal", "gift", memory="minimal"),
    _timm("gift, timm's forward", "gift"),
    _timm("lora", "lora"),
    Variant("lora, accelerated", "lora"),
    _timm("dora", "dora"),
    _timm("oft", "oft"),
    _timm("vpt_deep", "vpt_deep"),
    _timm("bitfit", "bitfit"),
    _timm("linear", "linear"),
    _timm("full", "full"),
    _timm("reference, drop path", REFERENCE, drop_path=0.1),
    Variant("gift, drop path", "gift", drop_path=0.1),
    Variant("gift compiled", "gift", compiled=True),
    _timm("reference bf16", REFERENCE, precision="bf16"),
    _timm("floor bf16", FLOOR, precision="bf16"),
    Variant("gift bf16", "gift", precision="bf16"),
    Variant("gift lean bf16", "gift", precision="bf16", memory="lean"),
    _timm("lora bf16", "lora", precision="bf16"),
    _timm("floor bf16 compiled", FLOOR, precision="bf16", compiled=True),
    Variant("gift bf16 compiled", "gift", precision="bf16", compiled=True),
    Variant("gift bf16 CUDA graphs", "gift", precision="bf16", compiled=True, cuda_graphs=True),
    _timm("reference tf32", REFERENCE, precision="tf32"),
    _timm("reference tf32 captured", REFERENCE, precision="tf32", captured=True),
    Variant("gift bf16 captured", "gift", precision="bf16", captured=True),
    Variant("gift bf16 compiled captured", "gift", precision="bf16", compiled=True, captured=True),
    Variant("gift bf16 compiled captured, drop path", "gift", precision="bf16", compiled=True, captured=True, drop_path=0.1),
    Variant("lora bf16 captured", "lora", precision="bf16", captured=True),
    _inference("plain, inference", PLAIN, accelerated=False),
    _inference("gift merged, inference", "gift", merged=True),
    _inference("gift, inference", "gift"),
    _inference("gift explained, inference", "gift", explained=True),
    _inference("lora, inference", "lora", accelerated=False),
    _inference("vpt_deep, inference", "vpt_deep", accelerated=False),
    _inference("reference, inference", REFERENCE, accelerated=False),
)
# The project's methods beside LoRA, each as a run trains it
METHODS = (
    *(Variant("lora, accelerated", "lora"), Variant("gift", "gift")),
    *(
        Variant(name, name)
        for name in (
            *("gift_wegeft", "lora_fa", "lora_plus", "pissa", "repadapter", "repadapter_attn", "apla", "fact_tt", "fact_tk"),
            *("adapter_plus", "adapter_houlsby", "adapter_pfeiffer", "adaptformer", "convpass", "convpass_attn", "ssf"),
            *("toast", "toast_lite"),
        )
    ),
)
NEEDS_GPU = {v.name for v in VARIANTS if v.precision == "tf32" or v.cuda_graphs or v.captured}
SLOW_TO_COMPILE = {"gift compiled", "floor bf16 compiled"}  # left out on a GPU unless they are named
QUICK = ("reference", "floor", "gift", "gift lean", "lora", "linear", "gift bf16", "plain, inference", "gift merged, inference")


def choose_variants(names: list[str] | None) -> list[Variant]:
    """The variants of these names, of which ``methods`` stands for :data:`METHODS`; for None all, but for these.

    Raises:
        ConfigError: For a name that is not known.
    """
    if names is None:
        return list(VARIANTS)
    known = {variant.name: variant for variant in (*VARIANTS, *METHODS)}
    wanted = list(dict.fromkeys(one for name in names for one in ([v.name for v in METHODS] if name == "methods" else [name])))
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"unknown variant {unknown[0]!r} (known: {'; '.join(known)}; methods)")
    return [known[name] for name in wanted]
