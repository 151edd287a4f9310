"""Image-text matching (ITM): a two-way softmax on the fused pair, against negatives that are hard to tell apart.

Li et al. 2021 (ALBEF) draw one caption for each image and one image for each caption, with probability given by the contrastive
similarity. Here a row that shares the image or the caption is never drawn, the draw is one vectorised step, and it is the same for any
number of processes. A row for which the batch holds no negative is skipped and counted.
"""

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
        # each entry: visual, text tokens, text pooled, text mask, label, counted
        true = state.true
        everyone = torch.ones_like(true)
        pairs = [(state.visual, state.text, state.text_pooled, state.text_mask, true.long(), everyone)]
        skipped = torch.zeros((), device=true.device)
        if self.hard_negatives:
            text_index, text_drawn, image_index, image_drawn = self._draw(state)
            tokens, pooled, mask = state.all_text
            negative = torch.zeros_like(true, dtype=torch.long)
            text_counted, image_counted = text_drawn & true, image_drawn & true
            pairs.append(
                (state.visual, tokens[text_index], pooled[text_index], mask[text_index], negative, text_counted)
            )
            pairs.append(
                (state.all_visual[image_index], state.text, state.text_pooled, state.text_mask, negative, image_counted)
            )
            skipped = (~text_drawn).sum() + (~image_drawn).sum()
        if self.generated_negatives and state.negatives is not None:
            tokens, pooled, mask = state.negatives
            times = tokens.shape[0] // state.visual.shape[0]
            visual = state.visual.repeat_interleave(times, dim=0)
            none = torch.zeros(tokens.shape[0], dtype=torch.long, device=tokens.device)
            pairs.append((visual, tokens, pooled, mask, none, mask.any(dim=1)))
        longest = max(pair[1].shape[1] for pair in pairs)
        fused = state.fuse(
            torch.cat([pair[0] for pair in pairs]),
            torch.cat([F.pad(pair[1], (0, 0, 0, longest - pair[1].shape[1])) for pair in pairs]),
            torch.cat([pair[2] for pair in pairs]),
            torch.cat([F.pad(pair[3], (0, longest - pair[3].shape[1])) for pair in pairs]),
        )
        logits = state.match_logits(fused)
        label, counted = torch.cat([pair[4] for pair in pairs]), torch.cat([pair[5] for pair in pairs])
        loss, count = matching_loss(logits, label, counted)
        right = ((logits.argmax(dim=1) == label) & counted).sum() / counted.sum().clamp(min=1)
        return TermOutput(loss, {"accuracy": right, "pairs": count, "skipped": skipped})

    @staticmethod
    def _draw(state: PairState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = state.logit_scale.detach().exp()
        batch = state.all_ids[0].shape[0]
        uniform = state.uniform(2 * batch)
        text_index, text_drawn = draw_hard_negatives(
            scale * state.image_embedding @ state.all_text_embedding.t(),
            state.text_candidates,
            uniform[:batch][state.rows],
        )
        image_index, image_drawn = draw_hard_negatives(
            scale * state.text_embedding @ state.all_image_embedding.t(),
            state.image_candidates,
            uniform[batch:][state.rows],
        )
        return text_index, text_drawn, image_index, image_drawn
