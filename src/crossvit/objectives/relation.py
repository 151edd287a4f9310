"""Relation classification: which of K relations holds between a picture (or two) and a sentence.

K = 2 over two pictures is the statement task of NLVR2; K = 3 the entailment task of SNLI-VE. The loss is plain cross-entropy.
"""

from torch import Tensor
from torch.nn import functional as F

from crossvit.objectives.term import PairState, Term, TermOutput


def relation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of (b, K) logits against label (b,) in [0, K)."""
    return F.cross_entropy(logits.float(), label)


class RelationLoss(Term):
    """Cross-entropy of the relation head on the fused pair; needs labelled pairs."""

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "relation")
    needs_label = True

    def forward(self, state: PairState) -> TermOutput:
        if state.label is None:
            raise ValueError("the relation term needs labelled pairs: this data has no label")
        logits = state.relation_logits(state.fuse(state.visual, state.text, state.text_pooled, state.text_mask))
        return TermOutput(
            relation_loss(logits, state.label), {"accuracy": (logits.argmax(1) == state.label).float().mean()}
        )


class TwoImageLoss(Term):
    """Cross-entropy of the two-image head: is the sentence true of the pair of pictures? Needs batches with two images a row."""

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "two_image")
    needs_label = True
    needs_two_images = True

    def forward(self, state: PairState) -> TermOutput:
        if state.label is None or state.second_visual is None:
            raise ValueError("the two-image term needs labelled sentences about two images")
        text = (state.text, state.text_pooled, state.text_mask)
        logits = state.two_image_logits(state.fuse(state.visual, *text), state.fuse(state.second_visual, *text))
        return TermOutput(
            relation_loss(logits, state.label), {"accuracy": (logits.argmax(1) == state.label).float().mean()}
        )
