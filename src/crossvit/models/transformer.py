"""Attention and the Transformer block that every part of the model is made of.

Masks are bool with True at real tokens. `norm_first=True` is the pre-LN block (Xiong et al. 2020), False the original
post-LN one, LN(x + sublayer(x)) (Vaswani et al. 2017).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of `x` over itself, or over `context` of the same width.

    One projection holds query, key and value, so self-attention is a single matrix product. Raises ValueError where
    `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        for part in self.in_proj.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, Q, d), context (B, K, d), mask (B, K) of the keys -> (B, Q, d) and, if asked for, the weights (B,
        heads, Q, K)."""
        if context is None:
            query, key, value = self.in_proj(x).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            query = F.linear(x, self.in_proj.weight[:width], self.in_proj.bias[:width])
            key, value = F.linear(context, self.in_proj.weight[width:], self.in_proj.bias[width:]).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        allowed = _allowed(query.shape[-2], key.shape[-2], mask, causal, x.device)
        dropout = self.dropout if self.training else 0.0
        out, weights = attend(query, key, value, allowed, dropout, need_weights)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights


def attend(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, dropout: float = 0.0, need_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """softmax(QK'/sqrt(d)) V over (B, h, Q, d), (B, h, K, d), (B, h, K, d); `allowed` broadcasts to (B, h, Q, K).

    Written out where the weights are wanted, and for bfloat16 on a CPU, where torch's fused kernel is 2 to 6 times
    slower.
    """
    explicit = need_weights or (query.device.type == "cpu" and query.dtype == torch.bfloat16)
    if not explicit:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout), None
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32)
    out = F.dropout(weights.to(value.dtype), dropout) @ value
    return out, weights if need_weights else None


def _allowed(queries: int, keys: int, mask: Tensor | None, causal: bool, device: torch.device) -> Tensor | None:
    """Which key a query may read, broadcastable to (B, heads, Q, K); None where it may read them all."""
    allowed = mask[:, None, None, :] if mask is not None else None
    if causal:
        past = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        allowed = past if allowed is None else allowed & past
    return allowed


class MLP(nn.Sequential):
    """Linear, GELU, Linear: the position-wise half of a block."""

    def __init__(self, width: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        hidden = int(width * ratio)
        super().__init__(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        for layer in (self[0], self[3]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training, and scales the kept ones (stochastic depth, Huang et
    al. 2016)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path {rate} is not in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * x.new_empty(shape).bernoulli_(keep) / keep


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each a residual branch with its LayerNorm."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio, dropout)
        self.drop = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        need_weights: bool = False,
        wanted: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, d) -> (B, N, d) and, if asked for, the attention weights (B, heads, N, N). wanted: compute these rows
        alone, N of them come back; all are read."""
        read, context = self.attention_norm(x) if self.norm_first else x, None
        if wanted is not None:
            x, read, context = x[:, wanted], read[:, wanted], read
        update, weights = self.attention(read, context, mask=mask, causal=causal, need_weights=need_weights)
        x = x + self.drop_path(self.drop(update))
        if not self.norm_first:
            x = self.attention_norm(x)
            return self.mlp_norm(x + self.drop_path(self.mlp(x))), weights
        return x + self.drop_path(self.mlp(self.mlp_norm(x))), weights
