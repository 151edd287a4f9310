"""Cross-modal fusion: how the visual and the text stream read each other.

Every fusion maps the text to the visual width (`text_to_vision`, the embedding matrix) and has one interface,
forward(visual (B, N, d), text (B, M, d_t), text_mask (B, M), need_weights, pooled_only) -> FusionOutput. With `pooled_only` the
last layer computes the two CLS tokens alone, which are all that `pooled` holds; the streams then end in (B, 1, d).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossvit.models.transformer import MLP, Attention, TransformerBlock


class FusionOutput(NamedTuple):
    """Both streams after fusion.

    `pairing` holds one dict a layer: `image_to_text` (B, heads, N, M), how visual tokens weigh the text tokens, and
    `text_to_image` (B, heads, M, N). Rows sum to 1; padding has weight 0. None where it was not asked for or the fusion
    pairs nothing.
    """

    visual: Tensor  # (B, N, d)
    text: Tensor  # (B, M, d)
    pooled: Tensor  # (B, 2d)
    pairing: list[dict[str, Tensor]] | None = None


class CrossModalFusion(nn.Module):
    """What every fusion has: the embedding matrix from text to visual width.

    `is_joint` says whether a fused score can depend on which picture and which text come together.
    """

    is_joint = True

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.width = width
        self.text_width = text_width
        self.text_to_vision = nn.Linear(text_width, width)
        nn.init.xavier_uniform_(self.text_to_vision.weight)
        nn.init.zeros_(self.text_to_vision.bias)


class StreamBlock(nn.Module):
    """One stream's share of a layer: self-attention, attention to a context, its own MLP; residual and LayerNorm around
    each."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, norm_first: bool = True) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio, dropout)
        self.drop = nn.Dropout(dropout)

    def attend_self(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        update, _ = self.attention(self.attention_norm(x) if self.norm_first else x, mask=mask)
        x = x + self.drop(update)
        return x if self.norm_first else self.attention_norm(x)

    def state(self, x: Tensor) -> Tensor:
        """What this stream shows to cross-attention, as query and as context."""
        return self.cross_norm(x) if self.norm_first else x

    def attend_context(
        self, x: Tensor, state: Tensor, context: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, N, d), its `state`, context (B, K, d) -> (B, N, d) and, if asked for, the weights (B, heads, N, K)."""
        update, weights = self.cross_attention(state, context, mask=mask, need_weights=need_weights)
        x = x + self.drop(update)
        return (x if self.norm_first else self.cross_norm(x)), weights

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        return x + self.mlp(self.mlp_norm(x)) if self.norm_first else self.mlp_norm(x + self.mlp(x))

    def forward(
        self, x: Tensor, mask: Tensor, context: Tensor, need_weights: bool = False, first_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """A layer of this stream alone: x (B, M, d) with its mask reads context (B, N, d). first_only: of the first token, (B, 1, d)."""
        x = self.attend_self(x, mask)
        if first_only:
            x = x[:, :1]
        x, weights = self.attend_context(x, self.state(x), context, None, need_weights)
        return self.feed_forward(x), weights


class TwoStreamLayer(nn.ModuleList):
    """One `StreamBlock` a stream, or one for both; the streams read each other (`exchanges`), or themselves a second time.

    Both read the states from before the exchange, so neither comes first.
    """

    def __init__(self, blocks: Iterable[StreamBlock], exchanges: bool) -> None:
        super().__init__(blocks)
        self.exchanges = exchanges

    def forward(
        self, v: Tensor, t: Tensor, text_mask: Tensor, need_weights: bool = False, first_only: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """v (B, N, d), t (B, M, d) -> both, and the weights image to text and text to image. first_only: of the first token of each,
        (B, 1, d)."""
        visual_block, text_block = self[0], self[-1]
        v, t = visual_block.attend_self(v), text_block.attend_self(t, text_mask)
        v_state, t_state = visual_block.state(v), text_block.state(t)
        wanted = slice(1 if first_only else None)
        v, t, v_query, t_query = v[:, wanted], t[:, wanted], v_state[:, wanted], t_state[:, wanted]
        image_to_text = text_to_image = None
        if self.exchanges:
            v, image_to_text = visual_block.attend_context(v, v_query, t_state, text_mask, need_weights)
            t, text_to_image = text_block.attend_context(t, t_query, v_state, None, need_weights)
        else:
            v, _ = visual_block.attend_context(v, v_query, v_state)
            t, _ = text_block.attend_context(t, t_query, t_state, text_mask)
        return visual_block.feed_forward(v), text_block.feed_forward(t), image_to_text, text_to_image


class CoAttentionFusion(CrossModalFusion):
    """Two streams, each with self-attention, attention to the other and an MLP of its own (LXMERT, Tan and Bansal 2019;
    METER, Dou et al. 2022).

    norm_first: False gives LN(x + sublayer(x)). tie_streams: both streams share one set of weights.
    """

    exchanges = True

    def __init__(
        self,
        width: int,
        text_width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_first: bool = True,
        tie_streams: bool = False,
    ) -> None:
        super().__init__(width, text_width)
        self.modality = nn.Parameter(torch.empty(2, width).normal_(std=0.02))
        streams = 1 if tie_streams else 2
        self.layers = nn.ModuleList(
            TwoStreamLayer(
                (StreamBlock(width, heads, mlp_ratio, dropout, norm_first) for _ in range(streams)), self.exchanges
            )
            for _ in range(depth)
        )
        self.visual_norm, self.text_norm = _final_norms(width, norm_first)

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, need_weights: bool = False, pooled_only: bool = False
    ) -> FusionOutput:
        v = visual + self.modality[0]
        t = self.text_to_vision(text) + self.modality[1]
        pairing = []
        for place, layer in enumerate(self.layers, start=1):
            last = pooled_only and place == len(self.layers)
            v, t, image_to_text, text_to_image = layer(v, t, text_mask, need_weights, last)
            if self.exchanges:
                pairing.append({"image_to_text": image_to_text, "text_to_image": text_to_image})
        v, t = self.visual_norm(v), self.text_norm(t)
        return FusionOutput(v, t, torch.cat([v[:, 0], t[:, 0]], dim=-1), pairing if need_weights and pairing else None)


class LateFusion(CoAttentionFusion):
    """The control of co-attention: the same layers with the same parameters, but each stream reads itself a second time
    instead of the other one. The streams meet once, after the last layer: [visual CLS; text CLS] through an MLP, without which a linear
    head would see a sum of what each side says by itself.

    meeting_ratio: width of that MLP's hidden layer over 2 x width.
    """

    exchanges = False

    def __init__(
        self,
        width: int,
        text_width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_first: bool = True,
        tie_streams: bool = False,
        meeting_ratio: float = 2.0,
    ) -> None:
        super().__init__(width, text_width, depth, heads, mlp_ratio, dropout, norm_first, tie_streams)
        self.meeting = MLP(2 * width, meeting_ratio, dropout)

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, need_weights: bool = False, pooled_only: bool = False
    ) -> FusionOutput:
        apart = super().forward(visual, text, text_mask, need_weights, pooled_only)
        return apart._replace(pooled=apart.pooled + self.meeting(apart.pooled))


class MergedFusion(CrossModalFusion):
    """One stream: visual and text tokens side by side through ordinary blocks (UNITER, Chen et al. 2020).

    The pairing is the part of the joint attention that goes to the other modality, scaled to rows that sum to 1.
    """

    def __init__(
        self,
        width: int,
        text_width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_first: bool = True,
    ) -> None:
        super().__init__(width, text_width)
        self.modality = nn.Parameter(torch.empty(2, width).normal_(std=0.02))
        self.layers = nn.ModuleList(
            TransformerBlock(width, heads, mlp_ratio, dropout, norm_first=norm_first) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, need_weights: bool = False, pooled_only: bool = False
    ) -> FusionOutput:
        cut = visual.shape[1]
        x = torch.cat([visual + self.modality[0], self.text_to_vision(text) + self.modality[1]], dim=1)
        mask = torch.cat([text_mask.new_ones(visual.shape[:2]), text_mask], dim=1)
        pairing, visual_rows = [], cut
        for place, layer in enumerate(self.layers, start=1):
            wanted = None
            if pooled_only and place == len(self.layers):
                wanted, visual_rows = [0, cut], 1
            x, weights = layer(x, mask=mask, need_weights=need_weights, wanted=wanted)
            if need_weights:
                from_visual, from_text = weights[:, :, :visual_rows, cut:], weights[:, :, visual_rows:, :cut]
                across = {"image_to_text": from_visual, "text_to_image": from_text}
                pairing.append({name: part / part.sum(dim=-1, keepdim=True) for name, part in across.items()})
        x = self.norm(x)
        v, t = x[:, :visual_rows], x[:, visual_rows:]
        return FusionOutput(v, t, torch.cat([v[:, 0], t[:, 0]], dim=-1), pairing if need_weights else None)


class TextSideFusion(CrossModalFusion):
    """Only the text reads the picture; the visual tokens stay as they are (ALBEF, Li et al. 2021)."""

    def __init__(
        self,
        width: int,
        text_width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_first: bool = True,
    ) -> None:
        super().__init__(width, text_width)
        self.modality = nn.Parameter(torch.empty(2, width).normal_(std=0.02))
        self.layers = nn.ModuleList(StreamBlock(width, heads, mlp_ratio, dropout, norm_first) for _ in range(depth))
        self.visual_norm = nn.LayerNorm(width)
        self.text_norm = _final_norms(width, norm_first)[1]

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, need_weights: bool = False, pooled_only: bool = False
    ) -> FusionOutput:
        v = self.visual_norm(visual + self.modality[0])
        t = self.text_to_vision(text) + self.modality[1]
        pairing = []
        for place, layer in enumerate(self.layers, start=1):
            t, weights = layer(t, text_mask, v, need_weights, pooled_only and place == len(self.layers))
            pairing.append({"text_to_image": weights})
        v, t = v[:, :1] if pooled_only else v, self.text_norm(t)
        return FusionOutput(v, t, torch.cat([v[:, 0], t[:, 0]], dim=-1), pairing if need_weights else None)


class NoFusion(CrossModalFusion):
    """No fusion: [visual CLS; mean of the mapped text tokens], without any term in which both occur.

    A linear head on it cannot tell a pair that fits from one that does not; `CrossViT.match` uses the towers' cosine
    instead.
    """

    is_joint = False

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, need_weights: bool = False, pooled_only: bool = False
    ) -> FusionOutput:
        t = self.text_to_vision(text)
        weight = text_mask.unsqueeze(-1).to(t.dtype)
        mean = (t * weight).sum(dim=1) / weight.sum(dim=1)
        visual, t = (visual[:, :1], t[:, :1]) if pooled_only else (visual, t)
        return FusionOutput(visual, t, torch.cat([visual[:, 0], mean], dim=-1))


def _final_norms(width: int, norm_first: bool) -> tuple[nn.Module, nn.Module]:
    """The norms after the last layer; a post-LN layer has normed its output already."""
    return (nn.LayerNorm(width), nn.LayerNorm(width)) if norm_first else (nn.Identity(), nn.Identity())
