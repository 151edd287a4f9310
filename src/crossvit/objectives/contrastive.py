"""Image-text contrastive loss (ITC): InfoNCE in both directions with several positives a row.

Radford et al. 2021 (CLIP) give the symmetric form; the multi-positive targets are those of ALBEF's retrieval model (Li et al. 2021).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import global_mean
from crossvit.objectives.term import PairState, Term, TermOutput


def soft_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """(q,) negative log-likelihood against targets that are uniform over each row's positives.

    logits (q, c) float; positives (q, c) bool. Rows without a positive give 0.
    """
    log_p = torch.log_softmax(logits.float(), dim=1)
    count = positives.sum(dim=1)
    return -torch.where(positives, log_p, 0).sum(dim=1) / count.clamp(min=1)


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
) -> Tensor:
    """Mean of both directions over the rows that have a positive, a scalar in nats.

    image, text (b, E) are this rank's L2-normalised rows; all_image, all_text (B, E) those of the global batch; scale is the factor on
    the cosine, exp(logit_scale); image_positives[i, j] says that caption j holds of image i, text_positives[i, j] that caption i holds
    of image j, both (b, B). negative_text (n, E) are captions that are false of the images, further wrong answers for each image
    (NegCLIP, Yuksekgonul et al. 2023), those where negative_present (n,) is true. Logits are fp32. The value is this rank's share: its
    average over ranks is the global loss.
    """
    with torch.autocast(image.device.type, enabled=False):
        scale = scale.float()
        image_logits = scale * image.float() @ all_text.float().t()
        text_logits = scale * text.float() @ all_image.float().t()
        if negative_text is not None:
            negative_logits = scale * image.float() @ negative_text.float().t()
            if negative_present is not None:
                negative_logits = negative_logits.masked_fill(~negative_present, -torch.inf)
            image_logits = torch.cat([image_logits, negative_logits], dim=1)
            image_positives = F.pad(image_positives, (0, negative_text.shape[0]))
        loss_image, _ = global_mean(soft_cross_entropy(image_logits, image_positives), image_positives.any(dim=1))
        loss_text, _ = global_mean(soft_cross_entropy(text_logits, text_positives), text_positives.any(dim=1))
        return (loss_image + loss_text) / 2


class ContrastiveLoss(Term):
    """ITC over the global batch, with the model's learnable `logit_scale`.

    generated_negatives: the false captions that the data brings (`PairBatch.negatives`) are further wrong answers, where it brings any.
    """

    modules_used = ("patch_encoder", "vision", "text_encoder", "itc_image", "itc_text", "logit_scale")

    def __init__(self, weight: float = 1.0, generated_negatives: bool = True) -> None:
        super().__init__(weight)
        self.generated_negatives = generated_negatives

    def forward(self, state: PairState) -> TermOutput:
        loss = contrastive_loss(
            state.image_embedding,
            state.text_embedding,
            state.all_image_embedding,
            state.all_text_embedding,
            state.logit_scale.exp(),
            state.image_positives,
            state.text_positives,
            state.all_negative_embedding if self.generated_negatives else None,
            state.all_negative_present if self.generated_negatives else None,
        )
        return TermOutput(loss, {"logit_scale": state.logit_scale.detach().exp()})
