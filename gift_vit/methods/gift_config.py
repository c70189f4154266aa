"""GIFT's options, and which of them each schema reads."""

from dataclasses import dataclass, field, fields

from gift_vit.errors import ConfigError

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
class GiftConfig:
    """What GIFT adapts and how.

    Attributes:
        rank: r, the inner dimension of φ ψ; the paper uses 16.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`.
        blocks: Indices of the blocks to adapt; None: all.
        share: One (φ, ψ) and schema for all targets instead of one per target; they must agree in d_in.
        schema: What stands between φ and ψ. ``linear``: nothing, as in the paper's tables; ``gelu``, ``sigmoid``: that
            function; else residual blocks over the d_out rows of ω φ as tokens of width r (gift_schemas.py).
        phi_bias: Add a trainable bias (r) to the clusters.
        psi_bias: Add a trainable bias (d_in) to every row of the update.
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

    rank: int = 16
    target_modules: list[str] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    share: bool = False
    schema: str = "linear"
    phi_bias: bool = False
    psi_bias: bool = False
    num_blocks: int = 1
    norm: str = "l2"
    pos_embed: str = "none"
    num_heads: int = 1
    mlp_ratio: float = 2.0
    num_clusters: int = 64
    cluster_activation: str = "sigmoid"
    channel_ratio: float = 2.0
    num_mixed_tokens: int = 64

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"method.rank={self.rank}: expected a whole number from 1 to the layer's d_in")
        self._check_name("schema", tuple(SCHEMAS))
        self._check_name("norm", NORMS)
        self._check_name("pos_embed", POSITIONS)
        self._check_name("cluster_activation", CLUSTER_ACTIVATIONS)
        for name in ("num_blocks", "num_heads", "num_clusters", "num_mixed_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"method.{name}={getattr(self, name)}: expected a whole number of 1 or more")
        for name in ("mlp_ratio", "channel_ratio"):
            if self.hidden(getattr(self, name)) < 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} leaves no hidden width at rank {self.rank}; raise it")
        if self.rank % self.num_heads:
            raise ConfigError(f"method.num_heads={self.num_heads} does not divide method.rank={self.rank}")
        self._check_options_are_read()

    def hidden(self, ratio: float) -> int:
        """Hidden width of an MLP over the channels."""
        return int(self.rank * ratio)

    @property
    def fixes_rows(self) -> bool:
        """Whether the schema's parameters depend on d_out, so that it serves layers of one d_out only."""
        return self.schema == "mlp_mixer" or self.pos_embed == "learned"

    def _check_name(self, option: str, known: tuple[str, ...]) -> None:
        value = getattr(self, option)
        if value not in known:
            raise ConfigError(f"unknown method.{option} {value!r} (known: {', '.join(known)})")

    def _check_options_are_read(self) -> None:
        defaults = {option.name: option.default for option in fields(self)}
        for option in dict.fromkeys(option for options in SCHEMAS.values() for option in options):
            value = getattr(self, option)
            if option not in SCHEMAS[self.schema] and value != defaults[option]:
                readers = ", ".join(schema for schema, options in SCHEMAS.items() if option in options)
                raise ConfigError(
                    f"method.{option}={value} has no effect with method.schema={self.schema}; it belongs to {readers}"
                )
