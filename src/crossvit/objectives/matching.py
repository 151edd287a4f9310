"""Image-text matching (ITM): a two-way softmax on the fused pair, against negatives that are hard to tell apart.

Li et al. 2021 (ALBEF) draw one caption for each image and one image for each caption, with probability given by the contrastive
similarity. Here a row that shares the image or the caption is never drawn, the draw is one vectorised step, and it is the same for any
number of processes. A row for which the batch holds no negative is skipped and counted.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import Fetch, global_mean, pad_to_longest
from crossvit.objectives.term import PairState, Term, TermOutput

Hard = bool | Literal["random"]
"""Whether negatives are drawn from the batch, and if so by likeness or at random."""


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
    """Pairs to be scored: what the fusion reads, what the towers say of them, and what the answer should be."""

    visual: Tensor  # (n, N, d)
    tokens: Tensor  # (n, M, d_t)
    pooled: Tensor  # (n, d_t)
    mask: Tensor  # (n, M) bool
    cosine: Tensor  # (n,) of the towers' embeddings
    label: Tensor  # (n,) int64, 1 = they belong together
    counted: Tensor  # (n,) bool

    @classmethod
    def join(cls, parts: "list[Pairs]") -> "Pairs":
        """All parts below each other, captions padded to the longest."""
        longest = max(part.mask.shape[1] for part in parts)
        tokens = [F.pad(part.tokens, (0, 0, 0, longest - part.mask.shape[1])) for part in parts]
        masks = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts]
        others = ("visual", "pooled", "cosine", "label", "counted")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in others}
        return cls(tokens=torch.cat(tokens), mask=torch.cat(masks), **joined)


class Drawn(NamedTuple):
    """The hard negatives of the local rows `own` (o,): places of a caption and an image in the global batch (its own where none was found),
    the caption's mask (o, M), as long as the longest caption of all ranks, and the way to what the towers say of them."""

    own: Tensor
    text: Tensor
    text_found: Tensor
    text_mask: Tensor
    image: Tensor
    image_found: Tensor
    fetch_text: Fetch
    fetch_image: Fetch


class Matching(NamedTuple):
    """The pairs of a step by where they come from (`given`, `by_text`, `by_image`, `generated`), and their logits (n, 2) in that order."""

    parts: dict[str, Pairs]
    pairs: Pairs
    logits: Tensor

    def logits_of(self, part: str) -> Tensor:
        """(m, 2) of one part."""
        sizes = [len(pairs.label) for pairs in self.parts.values()]
        return dict(zip(self.parts, self.logits.split(sizes), strict=True))[part]


def draw_negatives(state: PairState, random: bool = False) -> Drawn:
    """A caption for each true local pair's image and an image for its caption; drawn once a step, for every term that asks.

    random: as likely as any other, not by likeness.
    """
    key = ("drawn", random)
    if key not in state.shared:
        scale = 0.0 if random else state.logit_scale.detach().exp()
        batch = state.all_ids[0].shape[0]
        uniform = state.uniform(2 * batch)
        to_texts = scale * state.image_embedding @ state.all_text_embedding.t()
        to_images = scale * state.text_embedding @ state.all_image_embedding.t()
        text, text_found = draw_hard_negatives(to_texts, state.text_candidates, uniform[:batch][state.rows])
        image, image_found = draw_hard_negatives(to_images, state.image_candidates, uniform[batch:][state.rows])
        own = torch.arange(len(text), device=text.device) if state.label is None else state.true.nonzero().squeeze(1)
        # a row that has found none asks for its own: nobody is sent anything for it
        text, image = (
            torch.where(found, index, state.rows)[own] for index, found in ((text, text_found), (image, image_found))
        )
        fetch_text, fetch_image = Fetch(text), Fetch(image)
        mask = fetch_text(pad_to_longest(state.text_mask, 1))
        state.shared[key] = Drawn(own, text, text_found[own], mask, image, image_found[own], fetch_text, fetch_image)
    return state.shared[key]


def matching_pairs(state: PairState, hard_negatives: Hard, generated_negatives: bool) -> dict[str, Pairs]:
    """The pairs that the step asks about, by where they come from."""
    text = (state.text, state.text_pooled, state.text_mask)
    cosine = (state.image_embedding * state.text_embedding).sum(dim=1)
    parts = {"given": Pairs(state.visual, *text, cosine, state.true.long(), torch.ones_like(state.true))}
    if hard_negatives:
        parts |= hard_pairs(state, random=hard_negatives == "random")
    if generated_negatives and state.negatives is not None:
        parts["generated"] = generated_pairs(state)
    return parts


def hard_pairs(state: PairState, random: bool = False) -> dict[str, Pairs]:
    """Each true local pair's image with the caption drawn for it (`by_text`), and its caption with the image (`by_image`)."""
    drawn = draw_negatives(state, random)
    own, false = drawn.own, torch.zeros_like(drawn.text)
    mask = drawn.text_mask
    tokens = drawn.fetch_text(F.pad(state.text, (0, 0, 0, mask.shape[1] - state.text.shape[1])))
    pooled = drawn.fetch_text(state.text_pooled)
    to_text = (state.image_embedding[own] * state.all_text_embedding[drawn.text]).sum(dim=1)
    to_image = (state.text_embedding[own] * state.all_image_embedding[drawn.image]).sum(dim=1)
    captions = (state.text[own], state.text_pooled[own], state.text_mask[own])
    return {
        "by_text": Pairs(state.visual[own], tokens, pooled, mask, to_text, false, drawn.text_found),
        "by_image": Pairs(drawn.fetch_image(state.visual), *captions, to_image, false, drawn.image_found),
    }


def generated_pairs(state: PairState) -> Pairs:
    """Each local image with the false captions that came with it."""
    tokens, pooled, mask = state.negatives
    each = tokens.shape[0] // state.visual.shape[0]
    image = state.image_embedding.repeat_interleave(each, dim=0)
    false = torch.zeros(tokens.shape[0], dtype=torch.long, device=tokens.device)
    cosine = (image * state.negative_embedding).sum(dim=1)
    visual = state.visual.repeat_interleave(each, dim=0)
    return Pairs(visual, tokens, pooled, mask, cosine, false, state.negative_present)


def match(state: PairState, hard_negatives: Hard, generated_negatives: bool) -> Matching:
    """Scores the step's pairs by the fusion, once for all terms that ask for the same."""
    key = ("matching", hard_negatives, generated_negatives)
    if key not in state.scored:
        parts = matching_pairs(state, hard_negatives, generated_negatives)
        pairs = Pairs.join(list(parts.values()))
        fused = state.fuse(pairs.visual, pairs.tokens, pairs.pooled, pairs.mask)
        state.scored[key] = Matching(parts, pairs, state.match_logits(fused))
    return state.scored[key]


class MatchingLoss(Term):
    """ITM on given pairs, drawn negatives and generated negatives.

    hard_negatives: draw a caption for each image and an image for each caption from the global batch, by likeness; "random": any.
    generated_negatives: also use the false captions that the data brings (`PairBatch.negatives`), where it brings any.
    Where the data has labels, a pair's own label is its target and only true pairs draw negatives.
    """

    modules_used = ("patch_encoder", "vision", "text_encoder", "fusion", "itm")

    def __init__(self, weight: float = 1.0, hard_negatives: Hard = True, generated_negatives: bool = True) -> None:
        super().__init__(weight)
        self.hard_negatives = hard_negatives
        self.reads_negatives = generated_negatives

    def can_learn(self, labelled: bool, generated: bool) -> bool:
        """Not where every pair is true."""
        return labelled or bool(self.hard_negatives) or (self.reads_negatives and generated)

    def forward(self, state: PairState) -> TermOutput:
        matching = match(state, self.hard_negatives, self.reads_negatives)
        pairs, logits = matching.pairs, matching.logits
        loss, count = matching_loss(logits, pairs.label, pairs.counted)
        right = ((logits.argmax(dim=1) == pairs.label) & pairs.counted).sum() / pairs.counted.sum().clamp(min=1)
        skipped = sum(
            (~matching.parts[part].counted).sum() for part in ("by_text", "by_image") if part in matching.parts
        )
        return TermOutput(loss, {"accuracy": right, "pairs": count, "skipped": torch.as_tensor(skipped)})
