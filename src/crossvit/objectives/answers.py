"""The questions a step asks, as distributions over answers: what a teacher can be imitated in, and what an adversary can attack."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import global_mean
from crossvit.objectives.contrastive import contrastive_logits
from crossvit.objectives.matching import Hard, match
from crossvit.objectives.relation import relation_answers, two_image_answers
from crossvit.objectives.term import PairState


class Answers(NamedTuple):
    """One kind of question: logits (n, C), the right answer as a distribution (n, C), which rows (n,) count, and the share of the loss."""

    logits: Tensor
    target: Tensor
    counted: Tensor
    share: float = 1.0

    def loss(self, target: Tensor | None = None) -> Tensor:
        """Cross-entropy against `target` (n, C), by default the right answers: the mean over the counted rows of all processes, times the
        share."""
        log_p = torch.log_softmax(self.logits.float(), dim=1)
        loss = -((self.target if target is None else target) * log_p).sum(dim=1)
        return self.share * global_mean(loss, self.counted)[0]


def matching_answers(state: PairState, hard_negatives: Hard, generated_negatives: bool) -> list[Answers]:
    """Do picture and text belong together? (n, 2)"""
    matching = match(state, hard_negatives, generated_negatives)
    return [Answers(matching.logits, F.one_hot(matching.pairs.label, 2).float(), matching.pairs.counted)]


def contrastive_answers(state: PairState) -> list[Answers]:
    """Which caption of the global batch is the image's, (b, B), and which image is the caption's."""
    scale = state.logit_scale.exp()
    sides = (
        (state.image_embedding, state.all_text_embedding, state.image_positives),
        (state.text_embedding, state.all_image_embedding, state.text_positives),
    )
    return [
        Answers(
            contrastive_logits(query, candidates, scale),
            positives / positives.sum(dim=1, keepdim=True).clamp(min=1),
            positives.any(dim=1),
            share=0.5,
        )
        for query, candidates, positives in sides
    ]


def head_answers(state: PairState, head: str) -> list[Answers]:
    """Which relation holds (`relation`), or is the statement true of two pictures (`two_image`)? (b, K)"""
    logits = (relation_answers if head == "relation" else two_image_answers)(state)
    return [Answers(logits, F.one_hot(state.label, logits.shape[1]).float(), torch.ones_like(state.true))]


def answers(state: PairState, term: str, hard_negatives: Hard, generated_negatives: bool) -> list[Answers]:
    """What the term `itc`, `itm`, `relation` or `two_image` asks of this state."""
    if term == "itm":
        return matching_answers(state, hard_negatives, generated_negatives)
    return contrastive_answers(state) if term == "itc" else head_answers(state, term)
