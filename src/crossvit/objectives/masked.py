"""Masked language modelling through the fusion: hidden words of a caption are to be read from its picture (Devlin et al. 2019; ALBEF)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import global_mean, pad_to_longest
from crossvit.objectives.term import PairState, Term, TermOutput

STREAM = 1  # of the step's random numbers


def choose_masked(mask: Tensor, draw: Tensor, probability: float) -> Tensor:
    """(b, M) bool: the places whose number in `draw` (b, M) lies below `probability`, and in each row that has any the one with the least.

    mask (b, M): real tokens. The first and the last real token of a text frame it and are never chosen.
    """
    inner = mask.clone()
    inner[:, 0] = False
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    inner[torch.arange(len(mask), device=mask.device), last] = False
    draw = draw.masked_fill(~inner, 2.0)
    least = draw == draw.min(dim=1, keepdim=True).values
    return inner & ((draw < probability) | least)


def masked_word_loss(logits: Tensor, words: Tensor) -> Tensor:
    """(n,) cross-entropy in nats of logits (n, vocabulary) against word ids (n,)."""
    return F.cross_entropy(logits.float(), words, reduction="none")


class MaskedLanguageLoss(Term):
    """MLM on true pairs: of the words in `probability` of the places, 80 % are hidden, 10 % are replaced and 10 % stay, as in BERT.

    Every caption has at least one such place. The fusion's visual stream after its last exchange has no part in the answer, so a term that
    reads the fused pair has to be active beside this one.
    """

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "mlm")
    needs_terms = (("itm", "relation"),)

    def __init__(self, weight: float = 1.0, probability: float = 0.15) -> None:
        super().__init__(weight)
        if not 0 < probability < 1:
            raise ValueError(f"probability must lie between 0 and 1, got {probability}")
        self.probability = probability

    def forward(self, state: PairState) -> TermOutput:
        length = state.text_mask.shape[1]
        longest = pad_to_longest(state.text_mask, 1).shape[1]
        numbers = state.uniform(3 * len(state.all_ids[0]) * longest, STREAM).view(3, -1, longest)
        draw, kind, other = numbers[:, state.rows, :length].to(state.tokens.device)
        chosen = choose_masked(state.text_mask, draw, self.probability)
        replaced = chosen & (kind >= 0.8) & (kind < 0.9)
        words = state.embed(torch.where(replaced, (other * state.vocab_size).long(), state.tokens))
        words = torch.where((chosen & (kind < 0.8))[..., None], state.mask_embedding.to(words.dtype), words)
        fused = state.fuse_words(state.visual, *state.encode_words(words))
        logits = state.word_logits(fused[chosen])
        counted = state.true[:, None].expand_as(chosen)[chosen]
        loss, count = global_mean(masked_word_loss(logits, state.tokens[chosen]), counted)
        right = ((logits.argmax(dim=1) == state.tokens[chosen]) & counted).sum() / counted.sum().clamp(min=1)
        return TermOutput(loss, {"accuracy": right, "words": count})
