"""Image-text contrastive loss with a sigmoid for each pair (SigLIP, Zhai et al. 2023)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import global_mean
from crossvit.objectives.contrastive import check_tile, contrastive_logits, present_negatives
from crossvit.objectives.term import PairState, Term, TermOutput
from crossvit.objectives.tiled import tiled_sigmoid_loss


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """(b,) sum over the columns of -log sigmoid(z logits), z = 1 for a positive and -1 else; logits (b, B), -inf counts as nothing."""
    return -F.logsigmoid(torch.where(positives, logits, -logits).float()).sum(dim=1)


class SigmoidLoss(Term):
    """Is caption j true of picture i? One binary question for each pair of the global batch, with the model's `logit_scale` and
    `logit_bias`; the mean over pictures of the sum over captions, as published.

    generated_negatives: the false captions that the data brings are further captions to reject, where it brings any. tile: see
    `ContrastiveLoss`.
    """

    modules_used = ("patch_encoder", "vision", "text_encoder", "itc_image", "itc_text", "logit_scale", "logit_bias")

    def __init__(self, weight: float = 1.0, generated_negatives: bool = True, tile: int | None = None) -> None:
        super().__init__(weight)
        check_tile(tile)
        self.tile = tile
        self.reads_negatives = generated_negatives

    def forward(self, state: PairState) -> TermOutput:
        scale, bias = state.logit_scale.exp(), state.logit_bias
        figures = {"logit_scale": scale.detach(), "logit_bias": bias.detach()}
        if self.tile is not None:
            negatives = present_negatives(state) if self.reads_negatives else None
            pairs = (state.image_embedding, state.all_text_embedding)
            return TermOutput(tiled_sigmoid_loss(*pairs, scale, bias, state.positives, negatives, self.tile), figures)
        further = (state.all_negative_embedding, state.all_negative_present) if self.reads_negatives else (None, None)
        logits = contrastive_logits(state.image_embedding, state.all_text_embedding, scale, *further)
        logits = logits + bias
        positives = F.pad(state.image_positives, (0, logits.shape[1] - state.image_positives.shape[1]))
        mean, _ = global_mean(sigmoid_loss(logits, positives), torch.ones_like(state.true))
        return TermOutput(mean, figures)
