"""What GIFT puts between φ and ψ: networks over the rows of ω φ.

The d_out rows of ω φ are taken as N tokens of width r; the L layers of a target are the batch: (L, N, r) in and out. Source:
arXiv 2312.00700; Parameter-to-Cluster Attention (PaCa) is its first version's. Names and parts follow timm.
"""

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.methods.config import GiftConfig

_ACTIVATIONS = {"linear": nn.Identity, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


class ClusterAssignment(nn.Linear):
    """Every token's score for every cluster. The authors exempt its weight from weight decay."""

    exempt_from_weight_decay = True


class PacaAttention(nn.Module):
    """Parameter-to-Cluster Attention: tokens attend to M weighted sums of the tokens, at cost O(N M r) and not O(N² r).

    With S = assign(u): A = act(S)ᵀ (M × N), Z = A u with rows scaled to unit length (M × r), and
    ``out = proj(softmax(q kᵀ / √(r / heads)) v)`` for q of u, k and v of Z.
    """

    def __init__(self, dim: int, num_heads: int = 1, num_clusters: int = 64, cluster_activation: str = "sigmoid") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.cluster_activation = cluster_activation
        self.assign = ClusterAssignment(dim, num_clusters)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def assignment(self, tokens: Tensor) -> Tensor:
        """A, how much each token (..., N, r) belongs to each cluster, shape (..., M, N)."""
        scores = self.assign(tokens)
        if self.cluster_activation == "softmax":
            return scores.softmax(dim=-2).mT
        activate = torch.sigmoid if self.cluster_activation == "sigmoid" else F.hardsigmoid
        return activate(scores).mT / tokens.shape[-2]

    def centres(self, tokens: Tensor) -> Tensor:
        """Z, the clusters as unit vectors, shape (..., M, r)."""
        return F.normalize(self.assignment(tokens) @ tokens, dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(L, N, r) to (L, N, r)."""
        centres = self.centres(tokens)
        q, k, v = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q(tokens), self.k(centres), self.v(centres))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TokenMlp(Mlp):
    """An MLP over the tokens instead of the channels, as in MLP-Mixer; N is fixed."""

    def forward(self, x: Tensor) -> Tensor:
        """(L, N, r) to (L, N, r)."""
        return super().forward(x.mT).mT


class ResidualBlock(nn.Module):
    """``x = x + branch(norm(x))`` for one branch after the other; ``norm`` scales tokens to unit length or does nothing."""

    def __init__(self, norm: str, branches: dict[str, nn.Module]) -> None:
        super().__init__()
        self.norm = norm
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """(L, N, r) to (L, N, r)."""
        for branch in self.children():
            x = x + branch(F.normalize(x, dim=-1) if self.norm == "l2" else x)
        return x


class BlockSchema(nn.Module):
    """Residual blocks over the tokens, after optional learned positions.

    Attributes:
        pos_embed: (N, r), zero at the start, or None.
        blocks: The blocks in their order.
    """

    pos_embed: nn.Parameter | None

    def __init__(self, cfg: GiftConfig, num_tokens: int) -> None:
        super().__init__()
        learned = cfg.pos_embed == "learned"
        self.pos_embed = nn.Parameter(torch.zeros(num_tokens, cfg.rank)) if learned else None
        self.blocks = nn.Sequential(*(ResidualBlock(cfg.norm, _branches(cfg, num_tokens)) for _ in range(cfg.num_blocks)))

    def forward(self, clusters: Tensor) -> Tensor:
        """G of every layer, (L, N, r), from ω φ of every layer, (L, N, r)."""
        return self.blocks(clusters if self.pos_embed is None else clusters + self.pos_embed)


def build_schema(cfg: GiftConfig, num_tokens: int, device: torch.device) -> nn.Module:
    """The network of ``cfg.schema``, (L, N, r) to (L, N, r), for N = ``num_tokens`` rows; weights as PyTorch draws them."""
    with device:
        activation = _ACTIVATIONS.get(cfg.schema)
        return BlockSchema(cfg, num_tokens) if activation is None else activation()


def _branches(cfg: GiftConfig, num_tokens: int) -> dict[str, nn.Module]:
    """The branches of one block, by timm's names, in the order they are added."""
    if cfg.schema == "mlp_mixer":
        return {
            "token_mlp": TokenMlp(num_tokens, cfg.num_mixed_tokens),
            "channel_mlp": Mlp(cfg.rank, cfg.hidden(cfg.channel_ratio)),
        }
    branches: dict[str, nn.Module] = {}
    if cfg.schema == "transformer":
        branches["attn"] = Attention(cfg.rank, num_heads=cfg.num_heads, qkv_bias=True)
    elif cfg.schema in {"paca_transformer", "paca_attn"}:
        branches["attn"] = PacaAttention(cfg.rank, cfg.num_heads, cfg.num_clusters, cfg.cluster_activation)
    if cfg.schema in {"transformer", "paca_transformer", "mlp"}:
        branches["mlp"] = Mlp(cfg.rank, cfg.hidden(cfg.mlp_ratio))
    return branches
