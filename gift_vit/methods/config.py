"""The kinds of method: the options of each, and the registry of what they do. Imports no torch.

The contract of the ``apply`` functions: ``apply(model, cfg)`` changes ``model`` in place. On entry every parameter is frozen;
on exit exactly the parameters the method tunes are trainable, and the outputs are unchanged unless the spec says
``identity_at_init=False``. It touches neither the head nor any random state beyond initialising its own parameters;
:func:`gift_vit.methods.apply_method` makes the head trainable. The file of a kind is imported when the kind is used.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from gift_vit.common.checks import Options, at_least, between, expect, fulfils, one_of, positive
from gift_vit.common.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILES = {"peft": "hf_peft"}  # the others have their kind's name
QKV_SLICES = ("attn.q", "attn.k", "attn.v")  # rows of timm's fused projection
BITFIT_SCOPES = ("linear", "all")
NORMS = ("l2", "none")
POSITIONS = ("none", "learned")
CLUSTER_ACTIVATIONS = ("sigmoid", "hsigmoid", "softmax")

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
            without LayerScale it has no effect, since every norm subtracts it: there it stays zero and is not counted.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mlp_ratio", "channel_ratio"):
            ratio = getattr(self, name)
            expect(self.hidden(ratio) >= 1, f"method.{name}", ratio, f"a hidden width of 1 or more at rank {self.rank}")
        expect(self.rank % self.num_heads == 0, "method.num_heads", self.num_heads, f"a divisor of method.rank={self.rank}")
        self._check_options_are_read()

    def hidden(self, ratio: float) -> int:
        """Hidden width of an MLP over the channels."""
        return int(self.rank * ratio)

    @property
    def fixes_rows(self) -> bool:
        """Whether the schema's parameters depend on d_out, so that it serves layers of one d_out only."""
        return self.schema == "mlp_mixer" or self.pos_embed == "learned"

    def _check_options_are_read(self) -> None:
        defaults = {option.name: option.default for option in fields(self)}
        for option in dict.fromkeys(option for options in SCHEMAS.values() for option in options):
            value = getattr(self, option)
            if option not in SCHEMAS[self.schema] and value != defaults[option]:
                readers = ", ".join(schema for schema, options in SCHEMAS.items() if option in options)
                raise ConfigError(
                    f"method.{option}={value} has no effect with method.schema={self.schema}; it belongs to {readers}"
                )


@dataclass
class LinearConfig:
    """Linear probing has nothing to choose."""


@dataclass
class FullConfig:
    """Full fine-tuning has nothing to choose."""


@dataclass
class LoraConfig(Options, section="method"):
    """What LoRA adapts and how.

    Attributes:
        rank: r, the inner dimension of B A.
        alpha: α; the update is scaled by α / r. With 1 and rank 8, as GIFT's authors compare, by 1/8.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`.
        blocks: Indices of the blocks to adapt; None: all.
        dropout: Probability that an input of A is dropped while training.
    """

    rank: Annotated[int, at_least(1)] = 8
    alpha: Annotated[float, positive] = 1
    target_modules: list[str] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    dropout: Annotated[float, between(0, 1)] = 0.0


@dataclass
class PeftConfig(Options, section="method"):
    """A method of peft, by name, and its options.

    Attributes:
        peft_type: Its name in ``peft.PeftType``, such as ``VERA``.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`; whole layers only.
            For ``LN_TUNING`` those of layer norms: ``norm1``, ``norm2``, ``norm``.
        blocks: Indices of the blocks to adapt; None: all.
        options: Fields of peft's config class of that name, which checks them when the method is applied; what is left out
            has peft's default.
    """

    peft_type: str
    target_modules: list[str] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        sliced = [target for target in self.target_modules if target in QKV_SLICES]
        if sliced:
            raise ConfigError(
                f"target {sliced[0]!r}: {self.peft_type} of peft adapts whole layers; name attn.qkv, "
                "or take kind gift or lora, which adapt the slices attn.q, attn.k and attn.v"
            )


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
    dropout: Annotated[float, between(0, 1)] = 0.0


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
    scale: Annotated[float, fulfils(lambda scale: scale != 0, "another number than 0, which switches the adapter off")] = 0.1
    dropout: Annotated[float, between(0, 1)] = 0.1


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


CONFIGS: dict[str, type[Any]] = {
    "gift": GiftConfig,
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
}


def config_class(kind: str) -> type[Any]:
    """The dataclass of a kind's options; an unknown kind is an error that lists the known ones.

    A kind that is not in :data:`CONFIGS` may be a file ``methods/<kind>.py`` that registers options of its own.
    """
    if kind not in CONFIGS and kind.isidentifier() and find_spec(f"gift_vit.methods.{kind}"):
        import_module(f"gift_vit.methods.{kind}")
    if kind not in CONFIGS:
        hint = did_you_mean(kind, CONFIGS)
        raise ConfigError(f"unknown method kind {kind!r}{hint} (known: {', '.join(sorted(CONFIGS))})")
    return CONFIGS[kind]


@dataclass(frozen=True)
class MethodSpec:
    """One kind of method: its config class and what can be done with it.

    ``merge`` folds a trained adapter into the backbone and leaves a plain timm model; None: cannot be merged, and
    ``unmergeable`` says why. ``fit(model, setting, features, labels)`` sets the head from features (N, d) and labels (N,) with
    one of the settings of its :class:`Candidates`; None: the method is trained by gradient.
    """

    kind: str
    config_cls: type[Any]
    apply: "Callable[[nn.Module, Any], None]"
    merge: "Callable[[nn.Module, Any], None] | None"
    identity_at_init: bool
    unmergeable: str = ""
    fit: "Callable[[nn.Module, Any, Tensor, Tensor], None] | None" = None


_specs: dict[str, MethodSpec] = {}


def __getattr__(name: str) -> dict[str, MethodSpec]:
    """``METHODS``: the specs of all kinds; asking for it imports every method's file."""
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for kind in CONFIGS:
        get_method(kind)
    return _specs


def register_method(
    kind: str,
    config_cls: type[Any],
    merge: "Callable[[nn.Module, Any], None] | None",
    identity_at_init: bool = True,
    unmergeable: str = "",
    fit: "Callable[[nn.Module, Any, Tensor, Tensor], None] | None" = None,
) -> "Callable[[Callable[[nn.Module, Any], None]], Callable[[nn.Module, Any], None]]":
    """Register the decorated apply function under ``kind``; a kind or a config class is registered once."""

    def register(apply: "Callable[[nn.Module, Any], None]") -> "Callable[[nn.Module, Any], None]":
        if kind in _specs or any((known == kind) != (cls is config_cls) for known, cls in CONFIGS.items()):
            raise ValueError(f"method {kind!r} or its {config_cls.__name__} is registered already")
        CONFIGS[kind] = config_cls
        _specs[kind] = MethodSpec(kind, config_cls, apply, merge, identity_at_init, unmergeable, fit)
        return apply

    return register


def get_method(kind: str) -> MethodSpec:
    """The spec of a kind; an unknown one is an error that lists the known kinds."""
    config_class(kind)
    if kind not in _specs:
        import_module(f"gift_vit.methods.{_FILES.get(kind, kind)}")
    return _specs[kind]


def spec_of(cfg: object) -> MethodSpec:
    """The spec whose config class ``cfg`` is an instance of."""
    for kind, config_cls in CONFIGS.items():
        if type(cfg) is config_cls:
            return get_method(kind)
    known = ", ".join(sorted(config_cls.__name__ for config_cls in CONFIGS.values()))
    raise ConfigError(f"{type(cfg).__name__} is not a method config (known: {known})")
