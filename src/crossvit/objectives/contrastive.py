"""Image-text contrastive loss (ITC): InfoNCE in both directions with several positives a row.

Radford et al. 2021 (CLIP) give the symmetric form; the multi-positive targets are those of ALBEF's retrieval model (Li et al. 2021), and so
is the queue.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import global_mean
from crossvit.objectives.queue import PairQueue, Queued
from crossvit.objectives.term import PairState, Term, TermOutput, known_pairs
from crossvit.objectives.tiled import tiled_contrastive_loss


def soft_cross_entropy(logits: Tensor, positives: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(q,) negative log-likelihood against targets that are uniform over each row's positives.

    logits (q, c) float; positives (q, c) bool. label_smoothing: the share of each target that goes to all columns alike, those of logit
    -inf left out (Szegedy et al. 2016). Rows without a positive give 0.
    """
    log_p = torch.log_softmax(logits.float(), dim=1)
    count = positives.sum(dim=1)
    loss = -torch.where(positives, log_p, 0).sum(dim=1) / count.clamp(min=1)
    if label_smoothing:
        open_columns = logits > -torch.inf
        spread = -torch.where(open_columns, log_p, 0).sum(dim=1) / open_columns.sum(dim=1)
        loss = torch.where(count > 0, (1 - label_smoothing) * loss + label_smoothing * spread, 0.0)
    return loss


def contrastive_logits(
    query: Tensor, candidates: Tensor, scale: Tensor, further: Tensor | None = None, present: Tensor | None = None
) -> Tensor:
    """fp32 logits (b, B) of queries (b, E) against candidates (B, E), and beside them (b, n) against `further` (n, E) wrong answers, -inf
    where `present` (n,) is false."""
    with torch.autocast(query.device.type, enabled=False):
        scale, query = scale.float(), query.float()
        logits = scale * query @ candidates.float().t()
        if further is None:
            return logits
        wrong = scale * query @ further.float().t()
        if present is not None:
            wrong = wrong.masked_fill(~present, -torch.inf)
        return torch.cat([logits, wrong], dim=1)


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    all_image: Tensor,
    all_text: Tensor,
    scale: Tensor,
    image_positives: Tensor,
    text_positives: Tensor,
    negative_text: Tensor | None = None,
    negative_present: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean of both directions over the rows that have a positive, a scalar in nats.

    image, text (b, E) are this rank's L2-normalised rows; all_image, all_text (B, E) those of the global batch; scale is the factor on
    the cosine, exp(logit_scale); image_positives[i, j] says that caption j holds of image i, text_positives[i, j] that caption i holds
    of image j, both (b, B). negative_text (n, E) are captions that are false of the images, further wrong answers for each image
    (NegCLIP, Yuksekgonul et al. 2023), those where negative_present (n,) is true. Logits are fp32. The value is this rank's share: its
    average over ranks is the global loss.
    """
    image_logits = contrastive_logits(image, all_text, scale, negative_text, negative_present)
    text_logits = contrastive_logits(text, all_image, scale)
    if negative_text is not None:
        image_positives = F.pad(image_positives, (0, negative_text.shape[0]))
    loss_image = soft_cross_entropy(image_logits, image_positives, label_smoothing)
    loss_text = soft_cross_entropy(text_logits, text_positives, label_smoothing)
    mean_image, _ = global_mean(loss_image, image_positives.any(dim=1))
    mean_text, _ = global_mean(loss_text, text_positives.any(dim=1))
    return (mean_image + mean_text) / 2


def check_tile(tile: int | None) -> None:
    """Raises ValueError for a number of columns that is none."""
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, or null, got {tile}")


def present_negatives(state: PairState) -> Tensor | None:
    """(n, E) the false captions of all ranks, without the fillers."""
    found, present = state.all_negative_embedding, state.all_negative_present
    return found if found is None or present is None else found[present]


class ContrastiveLoss(Term):
    """ITC over the global batch, with the model's learnable `logit_scale`.

    generated_negatives: the false captions that the data brings (`PairBatch.negatives`) are further wrong answers, where it brings any.
    label_smoothing: see `soft_cross_entropy`. queue_size: also compare with so many pairs of the batches before, as the momentum teacher
    embedded them (He et al. 2020); their ids say which of them are positives. tile: columns of the matrix of logits that are held at a
    time, for global batches whose square does not fit; null holds it whole.
    """

    modules_used = ("patch_encoder", "vision", "text_encoder", "itc_image", "itc_text", "logit_scale")

    def __init__(
        self,
        weight: float = 1.0,
        generated_negatives: bool = True,
        label_smoothing: float = 0.0,
        queue_size: int = 0,
        tile: int | None = None,
    ) -> None:
        super().__init__(weight)
        check_tile(tile)
        if tile is not None and queue_size:
            raise ValueError(f"tile={tile} is for batches too large for a queue: set queue_size=0 or tile=null")
        self.tile = tile
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.reads_negatives = generated_negatives
        self.label_smoothing = label_smoothing
        self.needs_teacher = queue_size > 0
        self.queue = PairQueue(queue_size) if queue_size else None

    def forward(self, state: PairState) -> TermOutput:
        if self.tile is not None:
            scale, negatives = state.logit_scale.exp(), present_negatives(state) if self.reads_negatives else None
            loss = tiled_contrastive_loss(
                state.image_embedding,
                state.all_text_embedding,
                scale,
                state.positives,
                negatives,
                self.label_smoothing,
                self.tile,
            )
            return TermOutput(loss, {"logit_scale": scale.detach()})
        image, text = state.all_image_embedding, state.all_text_embedding
        image_positives, text_positives = state.image_positives, state.text_positives
        figures = {"logit_scale": state.logit_scale.detach().exp()}
        if self.queue is not None:
            old = self.queue.read(state.image_embedding.shape[1], state.image_embedding.device)
            image, text = torch.cat([image, old.image]), torch.cat([text, old.text])
            images, texts, true = self._all_pairs(state, old)
            image_positives = known_pairs(state.image_id, texts, images, texts, true)
            text_positives = known_pairs(images, state.text_id, images, texts, true).t()
            figures["queue"] = torch.as_tensor(len(old.image_id))
            if self.training:
                self.queue.add(state)
        loss = contrastive_loss(
            state.image_embedding,
            state.text_embedding,
            image,
            text,
            state.logit_scale.exp(),
            image_positives,
            text_positives,
            state.all_negative_embedding if self.reads_negatives else None,
            state.all_negative_present if self.reads_negatives else None,
            self.label_smoothing,
        )
        return TermOutput(loss, figures)

    @staticmethod
    def _all_pairs(state: PairState, old: Queued) -> tuple[Tensor, Tensor, Tensor]:
        """image_id, text_id and truth of the batch's pairs and the queue's, which are all true."""
        images, texts, true = state.all_ids
        return (
            torch.cat([images, old.image_id]),
            torch.cat([texts, old.text_id]),
            torch.cat([true, torch.ones_like(old.image_id, dtype=torch.bool)]),
        )
