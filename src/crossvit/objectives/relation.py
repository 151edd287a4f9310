"""Relation classification: which of K relations holds between a picture (or two) and a sentence.

K = 2 over two pictures is the statement task of NLVR2; K = 3 the entailment task of SNLI-VE. The loss is plain cross-entropy.
"""

from torch import Tensor
from torch.nn import functional as F

from crossvit.objectives.term import PairState, Term, TermOutput


def relation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of (b, K) logits against label (b,) in [0, K)."""
    return F.cross_entropy(logits.float(), label)


def relation_answers(state: PairState) -> Tensor:
    """(b, K) logits of the relation head. Raises ValueError for pairs without a label."""
    if state.label is None:
        raise ValueError("the relation term needs labelled pairs: this data has no label")
    if "relation" not in state.scored:
        fused = state.fuse(state.visual, state.text, state.text_pooled, state.text_mask)
        state.scored["relation"] = state.relation_logits(fused)
    return state.scored["relation"]


def two_image_answers(state: PairState) -> Tensor:
    """(b, 2) logits of the two-image head. Raises ValueError for pairs without a label or a second picture."""
    if state.label is None or state.second_visual is None:
        raise ValueError("the two-image term needs labelled sentences about two images")
    if "two_image" not in state.scored:
        text = (state.text, state.text_pooled, state.text_mask)
        first, second = state.fuse(state.visual, *text), state.fuse(state.second_visual, *text)
        state.scored["two_image"] = state.two_image_logits(first, second)
    return state.scored["two_image"]


class RelationLoss(Term):
    """Cross-entropy of the relation head on the fused pair; needs labelled pairs."""

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "relation")
    needs_label = True
    reads_truth = False

    def forward(self, state: PairState) -> TermOutput:
        logits = relation_answers(state)
        return TermOutput(
            relation_loss(logits, state.label), {"accuracy": (logits.argmax(1) == state.label).float().mean()}
        )


class TwoImageLoss(Term):
    """Cross-entropy of the two-image head: is the sentence true of the pair of pictures? Needs batches with two images a row."""

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "two_image")
    needs_label = True
    needs_two_images = True

    def forward(self, state: PairState) -> TermOutput:
        logits = two_image_answers(state)
        return TermOutput(
            relation_loss(logits, state.label), {"accuracy": (logits.argmax(1) == state.label).float().mean()}
        )
