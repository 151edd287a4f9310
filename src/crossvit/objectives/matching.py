"""Image-text matching (ITM): a two-way softmax on the fused pair, against negatives that are hard to tell apart.

Li et al. 2021 (ALBEF) draw one caption for each image and one image for each caption, with probability given by the contrastive
similarity. Here a row that shares the image or the caption is never drawn, the draw is one vectorised step, and it is the same for any
number of processes. A row for which the batch holds no negative is skipped and counted.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import global_mean
from crossvit.objectives.term import PairState, Term, TermOutput


def draw_hard_negatives(similarity: Tensor, allowed: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One column for each row, with probability softmax(similarity) over the allowed columns.

    similarity (b, B) float; allowed (b, B) bool; uniform (b,) in [0, 1), the random number of each row. Returns (index (b,) int64,
    drawn (b,) bool); `drawn` is false where a row allows no column, its index is then 0.
    """
    drawn = allowed.any(dim=1)
    logits = similarity.detach().float().masked_fill(~allowed, -torch.inf)
    p = torch.softmax(logits.masked_fill(~drawn[:, None], 0.0), dim=1) * allowed
    cdf = p.double().cumsum(dim=1)
    # the first column whose cumulative probability exceeds u x total: never one of probability 0
    index = (cdf <= uniform.double()[:, None] * cdf[:, -1:]).sum(dim=1)
    last = similarity.shape[1] - 1 - allowed.flip(1).to(torch.int8).argmax(dim=1)
    return torch.where(drawn, torch.minimum(index, last), torch.zeros_like(index)), drawn


def matching_loss(logits: Tensor, label: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of (n, 2) logits against label (n,) in {0, 1}, averaged over the counted pairs of all ranks; and their count."""
    loss = F.cross_entropy(logits.float(), label, reduction="none")
    return global_mean(loss, counted)


class Pairs(NamedTuple):
    """Pairs to be scored: what the fusion reads, and what the answer should be."""

    visual: Tensor  # (n, N, d)
    tokens: Tensor  # (n, M, d_t)
    pooled: Tensor  # (n, d_t)
    mask: Tensor  # (n, M) bool
    label: Tensor  # (n,) int64, 1 = they belong together
    counted: Tensor  # (n,) bool

    @classmethod
    def join(cls, parts: "list[Pairs]") -> "Pairs":
        """All parts below each other, captions padded to the longest."""
        longest = max(part.mask.shape[1] for part in parts)
        tokens = [F.pad(part.tokens, (0, 0, 0, longest - part.mask.shape[1])) for part in parts]
        masks = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts]
        visual, pooled, label, counted = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("visual", "pooled", "label", "counted")
        )
        return cls(visual, torch.cat(tokens), pooled, torch.cat(masks), label, counted)


class MatchingLoss(Term):
    """ITM on given pairs, drawn negatives and generated negatives.

    hard_negatives: draw a caption for each image and an image for each caption from the global batch.
    generated_negatives: also use the false captions that the data brings (`PairBatch.negatives`), where it brings any.
    Where the data has labels, a pair's own label is its target and only true pairs draw negatives.
    """

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "itm")

    def __init__(self, weight: float = 1.0, hard_negatives: bool = True, generated_negatives: bool = True) -> None:
        super().__init__(weight)
        self.hard_negatives = hard_negatives
        self.generated_negatives = generated_negatives

    def forward(self, state: PairState) -> TermOutput:
        text = (state.text, state.text_pooled, state.text_mask)
        parts = [Pairs(state.visual, *text, state.true.long(), torch.ones_like(state.true))]
        skipped = torch.zeros((), dtype=torch.long, device=state.visual.device)
        if self.hard_negatives:
            drawn = self._hard_pairs(state)
            skipped = sum((~part.counted).sum() for part in drawn)
            parts += drawn
        if self.generated_negatives and state.negatives is not None:
            parts.append(self._generated_pairs(state))
        pairs = Pairs.join(parts)
        logits = state.match_logits(state.fuse(pairs.visual, pairs.tokens, pairs.pooled, pairs.mask))
        loss, count = matching_loss(logits, pairs.label, pairs.counted)
        right = ((logits.argmax(dim=1) == pairs.label) & pairs.counted).sum() / pairs.counted.sum().clamp(min=1)
        return TermOutput(loss, {"accuracy": right, "pairs": count, "skipped": skipped})

    @staticmethod
    def _hard_pairs(state: PairState) -> list[Pairs]:
        """Each true local pair's image with a drawn caption, and its caption with a drawn image."""
        scale, batch = state.logit_scale.detach().exp(), state.all_ids[0].shape[0]
        uniform = state.uniform(2 * batch)
        to_texts = scale * state.image_embedding @ state.all_text_embedding.t()
        to_images = scale * state.text_embedding @ state.all_image_embedding.t()
        text, text_drawn = draw_hard_negatives(to_texts, state.text_candidates, uniform[:batch][state.rows])
        image, image_drawn = draw_hard_negatives(to_images, state.image_candidates, uniform[batch:][state.rows])
        own = slice(None) if state.label is None else state.true.nonzero().squeeze(1)
        text, text_drawn, image, image_drawn = text[own], text_drawn[own], image[own], image_drawn[own]
        tokens, pooled, mask = state.all_text
        false = torch.zeros_like(text)
        return [
            Pairs(state.visual[own], tokens[text], pooled[text], mask[text], false, text_drawn),
            Pairs(
                state.all_visual[image],
                state.text[own],
                state.text_pooled[own],
                state.text_mask[own],
                false,
                image_drawn,
            ),
        ]

    @staticmethod
    def _generated_pairs(state: PairState) -> Pairs:
        """Each local image with the false captions that came with it."""
        tokens, pooled, mask = state.negatives
        visual = state.visual.repeat_interleave(tokens.shape[0] // state.visual.shape[0], dim=0)
        false = torch.zeros(tokens.shape[0], dtype=torch.long, device=tokens.device)
        return Pairs(visual, tokens, pooled, mask, false, state.negative_present)
