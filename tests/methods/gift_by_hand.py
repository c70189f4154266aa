"""GIFT's schemas written out by hand, to compare with."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.methods import GiftConfig

Array = NDArray[np.float64]


class ByHand:
    """The schemas of one weight after the specification's formulas, token by token in numpy."""

    def __init__(self, cfg: GiftConfig, state: dict[str, Tensor]) -> None:
        self.cfg = cfg
        self.state = {name: tensor.detach().double().numpy() for name, tensor in state.items()}

    def generated(self, weight: Array) -> Array:
        tokens = weight @ self.state["phi"] + self.state.get("phi_bias", 0)
        if self.cfg.schema == "gelu":
            return self.gelu(tokens)
        if self.cfg.schema == "sigmoid":
            return 1 / (1 + np.exp(-tokens))
        tokens = tokens + self.state.get("schema.pos_embed", 0)
        for block in range(0 if self.cfg.schema == "linear" else self.cfg.num_blocks):
            tokens = self.block(tokens, f"schema.blocks.{block}")
        return tokens

    def delta_weight(self, weight: Array) -> Array:
        return self.generated(weight) @ self.state["psi"] + self.state.get("psi_bias", 0)

    def block(self, g: Array, at: str) -> Array:
        match self.cfg.schema:
            case "transformer":
                qkv = self.linear(self.norm(g), f"{at}.attn.qkv")
                g = g + self.linear(self.attend(*np.split(qkv, 3, axis=1)), f"{at}.attn.proj")
            case "paca_transformer" | "paca_attn":
                g = g + self.paca(self.norm(g), f"{at}.attn")
            case "mlp_mixer":
                g = g + self.mlp(self.norm(g).T, f"{at}.token_mlp").T
                return g + self.mlp(self.norm(g), f"{at}.channel_mlp")
        return g if self.cfg.schema == "paca_attn" else g + self.mlp(self.norm(g), f"{at}.mlp")

    def norm(self, x: Array) -> Array:
        return np.stack([row / math.sqrt(sum(row**2)) for row in x]) if self.cfg.norm == "l2" else x

    def linear(self, x: Array, name: str) -> Array:
        return np.stack([self.state[f"{name}.weight"] @ row + self.state[f"{name}.bias"] for row in x])

    def gelu(self, x: Array) -> Array:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def mlp(self, x: Array, name: str) -> Array:
        return self.linear(self.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        width = self.cfg.rank // self.cfg.num_heads
        out = np.zeros_like(q)
        for token in range(len(q)):
            for head in (slice(start, start + width) for start in range(0, self.cfg.rank, width)):
                scores = np.exp([q[token, head] @ key / math.sqrt(width) for key in k[:, head]])
                out[token, head] = scores / sum(scores) @ v[:, head]
        return out

    def paca(self, u: Array, name: str) -> Array:
        scores = self.linear(u, f"{name}.assign")
        if self.cfg.cluster_activation == "softmax":
            assignment = np.stack([np.exp(column) / sum(np.exp(column)) for column in scores.T])
        elif self.cfg.cluster_activation == "sigmoid":
            assignment = 1 / (1 + np.exp(-scores.T)) / len(u)
        else:
            assignment = np.clip(scores.T + 3, 0, 6) / 6 / len(u)
        centres = np.stack([centre / (math.sqrt(sum(centre**2)) or 1) for centre in assignment @ u])
        q, k, v = (self.linear(x, f"{name}.{part}") for x, part in ((u, "q"), (centres, "k"), (centres, "v")))
        return self.linear(self.attend(q, k, v), f"{name}.proj")
