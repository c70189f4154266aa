"""The kinds of method: the options of each, and the registry of what they do. Imports no torch.

The contract of the ``apply`` functions: ``apply(model, cfg)`` changes ``model`` in place. On entry every parameter is frozen;
on exit exactly the parameters the method tunes are trainable, and the outputs are unchanged unless the spec says
``identity_at_init=False``. It touches neither the head nor any random state beyond initialising its own parameters;
:func:`gift_vit.methods.apply_method` makes the head trainable. The file of a kind is imported when the kind is used.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gift_vit.common.checks import Options, at_least, expect, fraction, fulfils, one_of, positive
from gift_vit.common.errors import ConfigError
from gift_vit.common.kinds import Kinds

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILES = {"peft": "hf_peft", "adapter": "bottleneck"}  # the others have their kind's name
FOR_TEXT = ("gift_hf", "lora", "linear", "full", "bitfit", "peft", "linear_exact", "knn")  # for models of transformers too
QKV_SLICES = ("attn.q", "attn.k", "attn.v")  # rows of timm's fused projection
BITFIT_SCOPES = ("linear", "all")
NORMS = ("l2", "none")
POSITIONS = ("none", "learned")
GIFT_INITS = ("gift", "wegeft")
LORA_INITS = ("default", "gaussian", "pissa", "eva")
FACT_FORMS = ("tt", "tk")
FACT_ORDERS = ("reference", "paper")
ADAPTER_POSITIONS = ("post", "pre", "intermediate", "parallel", "houlsby")
ADAPTER_SCALES = ("channel", "scalar", "fixed")
ADAPTER_INITS = ("houlsby", "lora", "bert")
CONVPASS_BRANCHES = ("attn", "mlp")
CONVPASS_INITS = ("identity", "xavier")
CLUSTER_ACTIVATIONS = ("sigmoid", "hsigmoid", "softmax")

_other_than_zero = fulfils(lambda scale: scale != 0, "another number than 0, which switches the adapter off")


def _whole_layers(key: str, targets: list[str]) -> None:
    sliced = [target for target in targets if target in QKV_SLICES]
    if sliced:
        remedy = "name attn.qkv, or take kind gift or lora, which do"
        raise ConfigError(f"{key}: this method adapts whole layers and not {sliced[0]}; {remedy}")


_BLOCKS = ("num_blocks", "norm", "pos_embed")
_PACA = ("num_heads", "num_clusters", "cluster_activation")
# schema → the options it reads; any other must keep its default
SCHEMAS = {
    "linear": (),
    "gelu": (),
    "sigmoid": (),
    "transformer": (*_BLOCKS, "num_heads", "mlp_ratio"),
    "paca_transformer": (*_BLOCKS, *_PACA, "mlp_ratio"),
    "paca_attn": (*_BLOCKS, *_PACA),
    "mlp": (*_BLOCKS, "mlp_ratio"),
    "mlp_mixer": (*_BLOCKS, "channel_ratio", "num_mixed_tokens"),
}


@dataclass
class GiftConfig(Options, section="method"):
    """What GIFT adapts and how.

    Attributes:
        rank: r, the inner dimension of φ ψ; the paper uses 16.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`.
        blocks: Indices of the blocks to adapt; None: all.
        share: One (φ, ψ) and schema for all targets instead of one per target; they must agree in d_in.
        schema: What stands between φ and ψ. ``linear``: nothing, as in the paper's tables; ``gelu``, ``sigmoid``: that
            function; else residual blocks over the d_out rows of ω φ as tokens of width r (gift_schemas.py).
        phi_bias: Add a trainable bias (r) to the clusters.
        psi_bias: Add a trainable bias (d_in) to every row of the update. At attn.proj and mlp.fc2 of a ViT with LayerNorm and
            without LayerScale it has no effect, nor has ``phi_bias`` of the linear schema, since every norm subtracts what is
            the same in all channels: there they stay as they are drawn and are not counted. The output biases of a schema's
            last block have none there either; they are counted, as in the published numbers.
        num_blocks: Blocks of the schema, one after the other.
        norm: What every branch of a block sees: ``l2``: tokens scaled to unit length; ``none``: the tokens as they are.
        pos_embed: ``learned``: a trainable (d_out, r), zero at the start, added to the tokens.
        num_heads: Attention heads; they divide the rank.
        mlp_ratio: Hidden width of the MLP over r.
        num_clusters: M, the clusters that PaCa's tokens attend to.
        cluster_activation: How PaCa assigns tokens to clusters: ``sigmoid`` and ``hsigmoid`` each on its own, divided by the
            number of tokens; ``softmax`` over the tokens.
        channel_ratio: Hidden width of the mixer's channel MLP over r.
        num_mixed_tokens: Hidden width of the mixer's token MLP.
        init: ``gift``: φ drawn and ψ zero; ``wegeft``: φ zero and ψ drawn, for the linear schema.
        alpha: α; the update is scaled by α / r. None: not at all, as GIFT's is.
    """

    rank: Annotated[int, fulfils(lambda rank: rank >= 1, "a whole number from 1 to the layer's d_in")] = 16
    target_modules: list[str] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    share: bool = False
    schema: Annotated[str, one_of(SCHEMAS)] = "linear"
    phi_bias: bool = False
    psi_bias: bool = False
    num_blocks: Annotated[int, at_least(1)] = 1
    norm: Annotated[str, one_of(NORMS)] = "l2"
    pos_embed: Annotated[str, one_of(POSITIONS)] = "none"
    num_heads: Annotated[int, at_least(1)] = 1
    mlp_ratio: float = 2
    num_clusters: Annotated[int, at_least(1)] = 64
    cluster_activation: Annotated[str, one_of(CLUSTER_ACTIVATIONS)] = "sigmoid"
    channel_ratio: float = 2
    num_mixed_tokens: Annotated[int, at_least(1)] = 64
    init: Annotated[str, one_of(GIFT_INITS)] = "gift"
    alpha: Annotated[float | None, positive] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mlp_ratio", "channel_ratio"):
            ratio = getattr(self, name)
            expect(self.hidden(ratio) >= 1, f"method.{name}", ratio, f"a hidden width of 1 or more at rank {self.rank}")
        expect(self.rank % self.num_heads == 0, "method.num_heads", self.num_heads, f"a divisor of method.rank={self.rank}")
        for option in dict.fromkeys(option for options in SCHEMAS.values() for option in options):
            self._check_read(option, "schema", *(schema for schema, options in SCHEMAS.items() if option in options))
        if self.init == "wegeft" and (self.schema != "linear" or self.phi_bias):
            other = "method.phi_bias=true" if self.schema == "linear" else f"method.schema={self.schema}"
            raise ConfigError(
                f"method.init=wegeft starts from the backbone with the linear schema and no phi_bias, not with {other}"
            )

    def hidden(self, ratio: float) -> int:
        """Hidden width of an MLP over the channels."""
        return int(self.rank * ratio)

    @property
    def fixes_rows(self) -> bool:
        """Whether the schema's parameters depend on d_out, so that it serves layers of one d_out only."""
        return self.schema == "mlp_mixer" or self.pos_embed == "learned"


@dataclass
class LinearConfig:
    """Linear probing has nothing to choose."""


@dataclass
class FullConfig:
    """Full fine-tuning has nothing to choose."""


@dataclass
class LoraConfig(Options, section="method"):
    """What LoRA and its relatives adapt and how; lora.py says which is which.

    Attributes:
        rank: r, the inner dimension of B A.
        alpha: α; the update is scaled by α / r. With 1 and rank 8, as GIFT's authors compare, by 1/8.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`.
        blocks: Indices of the blocks to adapt; None: all.
        dropout: Probability that an input of A is dropped while training.
        rank_stabilized: Scale by α / √r instead.
        freeze_a: Train B alone.
        lr_ratio: Learning rate of B over that of everything else; :func:`gift_vit.engine.state.build_optimizer` reads it.
        init: ``default``: A as ``nn.Linear`` draws it, B zero; ``gaussian``: A normal with standard deviation 1 / r;
            ``pissa``: both from the frozen weight; ``eva``: A from the layer's inputs, before training starts.
        eva_images: Training images that ``eva`` looks at.
        whiten: Divide every row that ``eva`` finds by the root of its singular value.
    """

    rank: Annotated[int, at_least(1)] = 8
    alpha: Annotated[float, positive] = 1
    target_modules: list[str] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    dropout: Annotated[float, fraction] = 0.0
    rank_stabilized: bool = False
    freeze_a: bool = False
    lr_ratio: Annotated[float, positive] = 1.0
    init: Annotated[str, one_of(LORA_INITS)] = "default"
    eva_images: Annotated[int, at_least(1)] = 1024
    whiten: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_read("eva_images", "init", "eva")
        self._check_read("whiten", "init", "eva")

    @property
    def needs_start(self) -> bool:
        """Whether A is made from training images."""
        return self.init == "eva"


@dataclass
class PeftConfig(Options, section="method"):
    """A method of peft, by name, and its options.

    Attributes:
        peft_type: Its name in ``peft.PeftType``, such as ``VERA``.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`; whole layers only.
            For ``LN_TUNING`` those of layer norms, RMS norms among them: ``norm1``, ``norm2``, ``norm``; of a Llama
            ``input_layernorm``, ``post_attention_layernorm``, ``norm``.
        blocks: Indices of the blocks to adapt; None: all.
        options: Fields of peft's config class of that name, which checks them when the method is applied; what is left out
            has peft's default.
    """

    peft_type: str
    target_modules: Annotated[list[str], _whole_layers] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class GiftHfConfig(Options, section="method"):
    """GIFT as a method of peft, for models of transformers; :mod:`gift_vit.hf` says what its options do.

    Attributes:
        rank: r, the inner dimension of φ ψ.
        target_modules: Ends of the names of linear layers, the head's aside.
        share: ``target``: one pair for all layers of a target; ``all``: one for all; ``layer``: one each.
        init: ``gift``: ψ zero; ``wegeft``: φ zero.
        alpha: α; the update is scaled by α / r. None: not at all.
        compute: ``auto``, ``activation`` or ``weight``.
    """

    rank: Annotated[int, at_least(1)] = 16
    target_modules: list[str] = field(default_factory=lambda: ["query", "value"])
    share: Annotated[str, one_of(("target", "all", "layer"))] = "target"
    init: Annotated[str, one_of(GIFT_INITS)] = "gift"
    alpha: Annotated[float | None, positive] = None
    compute: Annotated[str, one_of(("auto", "activation", "weight"))] = "auto"


@dataclass
class VptConfig(Options, section="method"):
    """How many prompts, and where.

    Attributes:
        num_tokens: p, the prompts per block (deep) or at the first block (shallow); the GIFT paper's baseline has 5.
        deep: Prompts of its own for every block, instead of prompts at the first block that pass through all.
        dropout: Dropout of the prompts; 0 in the GIFT paper's baseline.
    """

    num_tokens: Annotated[int, at_least(1)] = 5
    deep: bool = True
    dropout: Annotated[float, fraction] = 0.0


@dataclass
class BitFitConfig(Options, section="method"):
    """Which biases.

    Attributes:
        scope: ``linear``: those of the ``nn.Linear`` layers in the blocks, as in the GIFT paper's baseline; ``all``: every bias
            of the backbone, with the norms', the patch embedding's, and those that BEiT and EVA keep beside their layers.
    """

    scope: Annotated[str, one_of(BITFIT_SCOPES)] = "linear"


@dataclass
class AdaptFormerConfig(Options, section="method"):
    """The bottleneck; the defaults are the paper's.

    Attributes:
        bottleneck: Width of the bottleneck.
        scale: s, the factor of its output.
        dropout: Dropout after its ReLU.
    """

    bottleneck: Annotated[int, at_least(1)] = 64
    scale: Annotated[float, _other_than_zero] = 0.1
    dropout: Annotated[float, fraction] = 0.1


@dataclass
class SsfConfig(Options, section="method"):
    """How scales and shifts start.

    Attributes:
        init_std: Standard deviation of γ around 1 and of β around 0; 0.02 in the authors' code, 0 leaves the model unchanged.
    """

    init_std: Annotated[float, at_least(0)] = 0.02


def _each(least: float, expected: str) -> Any:
    """A list of one or several values, each at least (or, for 0, above) ``least``."""
    return fulfils(lambda values: bool(values) and all(value > 0 and value >= least for value in values), expected)


class Candidates(Options, section="method"):
    """Options of a method that is fitted on features, not trained by gradient: each is a list, from which val chooses."""

    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the values, as option → value."""
        options: dict[str, list[Any]] = asdict(self)  # pyright: ignore[reportArgumentType] (its subclasses are dataclasses)
        return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


@dataclass
class KnnConfig(Candidates, section="method"):
    """Which numbers of neighbours and temperatures are tried.

    Attributes:
        k: Neighbours that vote; where there are fewer images all of them do.
        temperature: τ; a neighbour of cosine similarity s votes with exp(s / τ).
    """

    k: Annotated[list[int], _each(1, "[20], or several whole numbers of 1 or more")] = field(
        default_factory=lambda: [1, 3, 5, 10, 20, 50, 100, 200]
    )
    temperature: Annotated[list[float], _each(0, "[0.07], or several numbers above 0")] = field(
        default_factory=lambda: [0.02, 0.07, 0.2, 1.0]
    )


@dataclass
class LinearExactConfig(Candidates, section="method"):
    """Which penalties are tried.

    Attributes:
        penalty: λ, the factor of ‖W‖² / 2 beside the mean cross entropy; W is the head's weight for features scaled to unit
            variance, so that one grid fits every backbone.
    """

    penalty: Annotated[list[float], _each(0, "[0.01], or several numbers above 0")] = field(
        default_factory=lambda: [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0]
    )


@dataclass
class RepAdapterConfig(Options, section="method"):
    """RepAdapter's bottleneck; the defaults are the paper's.

    Attributes:
        bottleneck: h, the hidden width.
        groups: g, the groups of the second layer; they divide the bottleneck and the width of the targets.
        scale: s, the factor of the adapter's output; the paper searches it per task.
        dropout: Dropout of the hidden channels.
        target_modules: Layers with an adapter in front, see :func:`gift_vit.methods.targets.find_targets`; whole layers only.
        blocks: Indices of the blocks to adapt; None: all.
    """

    bottleneck: Annotated[int, at_least(1)] = 8
    groups: Annotated[int, at_least(1)] = 2
    scale: Annotated[float, _other_than_zero] = 1.0
    dropout: Annotated[float, fraction] = 0.1
    target_modules: Annotated[list[str], _whole_layers] = field(default_factory=lambda: ["attn.qkv", "mlp.fc1"])
    blocks: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        divides = self.bottleneck % self.groups == 0
        expect(divides, "method.groups", self.groups, f"a divisor of method.bottleneck={self.bottleneck}")


@dataclass
class AplaConfig(Options, section="method"):
    """How many rows of which layers APLA trains.

    Attributes:
        rank: r, the output channels that are trained in each layer; null: the whole layer.
        seed: Of the draw of these channels. All runs of one seed train the same ones, whatever the run's own seed; the authors
            draw anew for every run.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`; whole layers only.
        blocks: Indices of the blocks to adapt; None: all.
    """

    rank: Annotated[int | None, at_least(1)] = 8
    seed: Annotated[int, at_least(0)] = 0
    target_modules: Annotated[list[str], _whole_layers] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None


@dataclass
class FactConfig(Options, section="method"):
    """FacT's factors.

    Attributes:
        form: ``tt``: every piece of a weight has its own r × r matrix; ``tk``: these come of one core tensor.
        rank: r; the paper takes 8 or 16 for ``tt``, 16 or 32 for ``tk``.
        scale: s, the factor of the update; the paper searches it per task.
        dropout: Dropout of the r channels.
        order: Of the entries in the MLPs' matrices of ``tk``: as in the authors' code, ``reference``, or as in the paper's
            formula, ``paper``; see fact.py.
    """

    form: Annotated[str, one_of(FACT_FORMS)] = "tt"
    rank: Annotated[int, at_least(1)] = 16
    scale: Annotated[float, _other_than_zero] = 1.0
    dropout: Annotated[float, fraction] = 0.1
    order: Annotated[str, one_of(FACT_ORDERS)] = "reference"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_read("order", "form", "tk")


@dataclass
class AdapterConfig(Options, section="method"):
    """A bottleneck adapter; the defaults are those of Adapter+.

    Attributes:
        position: Where in the block: ``post``, ``pre``, ``intermediate``, ``parallel`` or ``houlsby``, see bottleneck.py.
        bottleneck: r, its hidden width.
        norm: A LayerNorm of its own in front.
        bias: Biases of its two layers.
        scale: γ: ``channel``, one trained number for each; ``scalar``, one for all; ``fixed``, ``factor``.
        factor: γ where it is fixed.
        init: ``houlsby``: weights of a truncated normal with 0.01; ``bert``: of a normal with 0.02; ``lora``: the second layer
            zero, which leaves the model unchanged.
        dropout: Dropout of the hidden channels.
        drop_path: Probability that a sample goes without the adapter in training, the same in every block.
        train_norms: Train all LayerNorms of the backbone too.
        blocks: Indices of the blocks to adapt; None: all.
    """

    position: Annotated[str, one_of(ADAPTER_POSITIONS)] = "post"
    bottleneck: Annotated[int, at_least(1)] = 8
    norm: bool = False
    bias: bool = True
    scale: Annotated[str, one_of(ADAPTER_SCALES)] = "channel"
    factor: Annotated[float, _other_than_zero] = 1.0
    init: Annotated[str, one_of(ADAPTER_INITS)] = "houlsby"
    dropout: Annotated[float, fraction] = 0.0
    drop_path: Annotated[float, fraction] = 0.1
    train_norms: bool = False
    blocks: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_read("factor", "scale", "fixed")


@dataclass
class ConvpassConfig(Options, section="method"):
    """Convpass's convolutions.

    Attributes:
        bottleneck: h, their channels.
        scale: s, the factor of what is added; the paper searches it per task.
        dropout: Dropout in front of the last layer.
        branches: What they stand beside: ``attn``, ``mlp`` or both.
        conv_init: The 3 × 3 kernel at the start: ``identity`` or ``xavier``; the paper searches it per task.
        blocks: Indices of the blocks to adapt; None: all.
    """

    bottleneck: Annotated[int, at_least(1)] = 8
    scale: Annotated[float, _other_than_zero] = 1.0
    dropout: Annotated[float, fraction] = 0.1
    branches: Annotated[list[str], one_of(CONVPASS_BRANCHES)] = field(default_factory=lambda: list(CONVPASS_BRANCHES))
    conv_init: Annotated[str, one_of(CONVPASS_INITS)] = "identity"
    blocks: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct = bool(self.branches) and len(set(self.branches)) == len(self.branches)
        expect(distinct, "method.branches", self.branches, "attn, mlp or both")


@dataclass
class ToastConfig(Options, section="method"):
    """TOAST's decoders.

    Attributes:
        lite_rank: None: the decoders are trained; a rank (the paper: 4): low-rank updates of frozen ones are, TOAST-Lite.
        train_transform: Train the matrix that selected tokens pass too, which the authors do with TOAST-Lite alone.
        decoder_std: Standard deviation of the random decoders.
        weights: A file of tuned decoders, prior and transform, by the authors or of this project's names; None: random ones,
            to which the published numbers do not apply. It is read when training starts, and never after.
    """

    lite_rank: Annotated[int | None, at_least(1)] = None
    train_transform: bool = False
    decoder_std: Annotated[float, positive] = 0.02
    weights: str | None = None

    @property
    def needs_start(self) -> bool:
        """Whether decoders are read from a file."""
        return self.weights is not None

    def check_present(self) -> None:
        """Refuse a file that is not there."""
        if self.weights is not None and not Path(self.weights).is_file():
            raise ConfigError(f"method.weights={self.weights}: no such file")


CONFIGS: dict[str, type[Any]] = {
    "gift": GiftConfig,
    "gift_hf": GiftHfConfig,
    "linear": LinearConfig,
    "full": FullConfig,
    "lora": LoraConfig,
    "peft": PeftConfig,
    "vpt": VptConfig,
    "bitfit": BitFitConfig,
    "adaptformer": AdaptFormerConfig,
    "ssf": SsfConfig,
    "knn": KnnConfig,
    "linear_exact": LinearExactConfig,
    "repadapter": RepAdapterConfig,
    "apla": AplaConfig,
    "fact": FactConfig,
    "adapter": AdapterConfig,
    "convpass": ConvpassConfig,
    "toast": ToastConfig,
}


@dataclass(frozen=True)
class MethodSpec:
    """One kind of method: its config class and what can be done with it.

    ``merge`` folds a trained adapter into the backbone and leaves a plain timm model; None: cannot be merged, and
    ``unmergeable`` says why.

    ``initialise`` is what a method does between being applied and being trained: ``initialise(model, cfg, batches)`` takes a
    model on its device in eval mode, and the training images (B, 3, H, W) in a random order, without augmentation, which are
    read as they are asked for. Nobody calls it for a model whose adapter is loaded. It gives the same whenever it is called.
    With a config whose ``needs_start`` is true a model is not trained before.

    ``fit(model, setting, features, labels)`` sets the head from features (N, d) and labels (N,) with one of the settings of its
    :class:`Candidates`; None: the method is trained by gradient.
    """

    kind: str
    config_cls: type[Any]
    apply: "Callable[[nn.Module, Any], None]"
    merge: "Callable[[nn.Module, Any], None] | None"
    identity_at_init: bool
    unmergeable: str = ""
    initialise: "Callable[[nn.Module, Any, Iterable[Tensor]], None] | None" = None
    fit: "Callable[[nn.Module, Any, Tensor, Tensor], None] | None" = None


_kinds: Kinds[MethodSpec] = Kinds("method", "gift_vit.methods", CONFIGS, _FILES)
config_class, get_method = _kinds.config_class, _kinds.get


def __getattr__(name: str) -> dict[str, MethodSpec]:
    """``METHODS``: the specs of all kinds; asking for it imports every method's file."""
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for kind in CONFIGS:
        get_method(kind)
    return _kinds.entries


def register_method(
    kind: str,
    config_cls: type[Any],
    merge: "Callable[[nn.Module, Any], None] | None",
    identity_at_init: bool = True,
    unmergeable: str = "",
    initialise: "Callable[[nn.Module, Any, Iterable[Tensor]], None] | None" = None,
    fit: "Callable[[nn.Module, Any, Tensor, Tensor], None] | None" = None,
) -> "Callable[[Callable[[nn.Module, Any], None]], Callable[[nn.Module, Any], None]]":
    """Register the decorated apply function under ``kind``; a kind or a config class is registered once."""

    def register(apply: "Callable[[nn.Module, Any], None]") -> "Callable[[nn.Module, Any], None]":
        spec = MethodSpec(kind, config_cls, apply, merge, identity_at_init, unmergeable, initialise, fit)
        _kinds.register(kind, config_cls, spec)
        return apply

    return register


def spec_of(cfg: object) -> MethodSpec:
    """The spec whose config class ``cfg`` is an instance of."""
    return get_method(_kinds.kind_of(cfg))


def merge_nothing(model: "nn.Module", cfg: Any) -> None:
    """The merge of a method that changes no layer: what it trains is the backbone's own, or the head alone."""
    del model, cfg
