"""The Visual Transformer: patches to global visual features (Dosovitskiy et al. 2021, on a CNN's patches)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossvit.models.transformer import MLP, Attention, TransformerBlock


class VisualTransformer(nn.Module):
    """[CLS; patches + positions] through pre-LN blocks and a final LayerNorm.

    depth: 0 leaves the patches as they are. No block then writes into CLS, so it is their mean and nothing learned.
    grid_size: rows and columns of the learned position table (1, d, rows, columns); another grid gets it by bicubic
        interpolation.
    position_std: its standard deviation at the start. Patches out of a CNN are of the order of 1, so positions of .02
        would leave a small model blind to places.
    global_pool: what `pool` makes of the tokens: `cls` the first, `avg` the mean of the patches, `map` attention of one
        learned query (Lee et al. 2019), `concat` a Linear on all of them side by side (needs the grid it was built
        for).

    final_norm: a LayerNorm on the tokens at the end. Without it and without blocks the mean of the tokens is a linear function of the
        backbone's pooled map, in which a strong cell weighs more than a weak one.

    Raises ValueError for an unknown global_pool.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        grid_size: Sequence[int],
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        position_std: float = 0.3,
        global_pool: Literal["cls", "avg", "map", "concat"] = "cls",
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        if global_pool not in ("cls", "avg", "map", "concat"):
            raise ValueError(f"global_pool {global_pool!r}: choose cls, avg, map or concat")
        self.width = self.pooled_width = width
        self.grid_size = tuple(grid_size)
        self.global_pool = global_pool
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02)) if depth else None
        self.position = nn.Parameter(torch.empty(1, width, *self.grid_size).normal_(std=position_std))
        self.drop = nn.Dropout(dropout)
        rates = [drop_path * layer / max(1, depth - 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        if global_pool == "map":
            self.pooler = AttentionPool(width, heads, mlp_ratio)
        elif global_pool == "concat":
            self.pooler = nn.Linear((1 + math.prod(self.grid_size)) * width, width)

    def forward(self, patches: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """patches (B, P, d), lying in `grid` rows and columns (default: the table's own, or a square) -> (B, 1 + P, d),
        CLS first."""
        x = patches + self._positions(patches.shape[1], grid)
        first = x.mean(dim=1, keepdim=True) if self.cls_token is None else self.cls_token.expand(x.shape[0], -1, -1)
        x = self.drop(torch.cat([first, x], dim=1))
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, 1 + P, d) -> (B, d)."""
        if self.global_pool == "cls":
            return tokens[:, 0]
        if self.global_pool == "avg":
            return tokens[:, 1:].mean(dim=1)
        if self.global_pool == "map":
            return self.pooler(tokens)
        expected = 1 + math.prod(self.grid_size)
        if tokens.shape[1] != expected:
            raise ValueError(f"global_pool concat was built for {expected} tokens and got {tokens.shape[1]}")
        return self.pooler(tokens.flatten(1))

    def _positions(self, patches: int, grid: Sequence[int] | None) -> Tensor:
        """(1, P, d) for that many patches."""
        if grid is None:
            side = math.isqrt(patches)
            grid = self.grid_size if patches == math.prod(self.grid_size) else (side, side)
        if math.prod(grid) != patches:
            raise ValueError(f"{patches} patches do not fill a grid of {grid[0]}x{grid[1]}")
        return resize_positions(self.position, tuple(grid)).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """One learned query reads all tokens, then an MLP: (B, N, d) -> (B, d)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.attention(self.query.expand(tokens.shape[0], -1, -1), tokens)
        return (x + self.mlp(self.norm(x))).squeeze(1)


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, d, rows, columns) -> (1, d, *grid), bicubic with antialiasing; the same tensor where the grid is already
    right."""
    if tuple(table.shape[-2:]) == grid:
        return table
    resized = F.interpolate(table.float(), size=grid, mode="bicubic", align_corners=False, antialias=True)
    return resized.to(table.dtype)
