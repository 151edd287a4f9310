"""What every loss term of the cross-modal task sees, and what it answers.

A task fills a `PairState` once a step. Its expensive parts are lazy: a term that is not active (weight 0) costs nothing, and two terms
that need the same thing share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossvit.distributed import gather, gather_with_grad, global_rows
from crossvit.objectives.randomness import Replay
from crossvit.objectives.tiled import Positives, list_positives


@dataclass
class TermOutput:
    """One term's loss (a scalar over the global batch) and figures to log beside it."""

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


class Term(nn.Module):
    """A weighted loss term. `weight` 0 means the term is never called.

    `modules_used` names the parts of the model that this term sends gradients to; parts that no active term uses are frozen by the task.
    `needs_label`, `needs_two_images`: of no use on data without a label, or with one picture a text. `needs_terms`: of each of these
    groups one must be active too. `needs_teacher`: reads `PairState.teacher`. `reads_negatives`: uses the false captions of the data.
    `reads_truth`: a pair of label 1 holds, any other does not; false for what tells more than two labels apart.
    """

    modules_used: tuple[str, ...] = ()
    needs_label = False
    needs_two_images = False
    needs_terms: tuple[tuple[str, ...], ...] = ()
    needs_teacher = False
    reads_negatives = False
    reads_truth = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must be >= 0, got {weight}")
        self.weight = weight

    def can_learn(self, labelled: bool, generated: bool) -> bool:
        """Whether this term has anything to tell apart where pairs have labels or not, and the data bring generated captions or not."""
        return True

    def forward(self, state: "PairState") -> TermOutput:
        raise NotImplementedError


class Perturbation(NamedTuple):
    """What is added to the inputs of a step: to the word embeddings (b, M, d_e), the patches (b, P, d) or the pixels (b, 3, H, W).

    With two pictures a text, patches and pixels have 2 b rows, the pictures of a text side by side.
    """

    text: Tensor | None = None
    patch: Tensor | None = None
    pixel: Tensor | None = None


def known_pairs(
    image_id: Tensor, text_id: Tensor, batch_image_id: Tensor, batch_text_id: Tensor, counts: Tensor
) -> Tensor:
    """(i, t) bool: some pair k of the batch with `counts[k]` says something of image i and caption t.

    image_id (i,) and text_id (t,) are looked up among the batch's pairs (batch_image_id[k], batch_text_id[k]), all (B,). With `counts` =
    "the pair is true" these are the positives; with all pairs they are what a negative must not be. So two captions of one picture are
    positives of each other's picture, and a picture whose caption reads the same as another's is a positive of that one too.
    """
    same_image = (image_id[:, None] == batch_image_id[None, :]) & counts[None, :]
    same_text = batch_text_id[:, None] == text_id[None, :]
    return (same_image.float() @ same_text.float()) > 0


@dataclass
class PairState:
    """The step's pairs in this rank's rows (b) and, where a term asks, in the rows of all ranks (B).

    visual (b, N, d) and text (b, M, d_t) are the towers' tokens; image_embedding, text_embedding (b, E) are L2-normalised. `inputs` are
    what the towers read, `perturb` runs them again on changed inputs. A perturbed state, and that of the teacher, share what was drawn.
    """

    visual: Tensor
    text: Tensor
    text_pooled: Tensor
    text_mask: Tensor
    image_embedding: Tensor
    text_embedding: Tensor
    logit_scale: Tensor  # log of the scale
    logit_bias: Tensor
    tokens: Tensor  # (b, M)
    image_id: Tensor
    text_id: Tensor
    label: Tensor | None
    fuse: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # visual, text, pooled, mask -> the fused pair (n, 2d)
    fuse_words: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # the same -> the text stream after fusion (n, M, d)
    match_logits: Callable[[Tensor], Tensor]  # (n, 2d) -> (n, 2)
    relation_logits: Callable[[Tensor], Tensor]  # (n, 2d) -> (n, K)
    two_image_logits: Callable[[Tensor, Tensor], Tensor]  # two (n, 2d) -> (n, 2)
    second_visual: Tensor | None = None  # (b, N, d), the second picture of a two-image statement
    negatives: tuple[Tensor, Tensor, Tensor] | None = (
        None  # tokens (b K, M', d_t), pooled, mask of generated false captions
    )
    negative_embedding: Tensor | None = None  # (b K, E), L2-normalised
    negative_present: Tensor | None = None  # (b K,) bool: false for the fillers of a row that has fewer false captions
    uniform: Callable[..., Tensor] | None = None  # n, stream=0 -> (n,) numbers in [0, 1), the same on every rank
    inputs: Perturbation | None = None  # the clean word embeddings, patches and pixels
    before: Replay | None = None  # torch's random state before the pass through the towers
    perturb: Callable[[Perturbation, bool], "PairState"] | None = (
        None  # what is added, whether patches lead on into the CNN
    )
    embed: Callable[[Tensor], Tensor] | None = None  # (b, M) word ids -> (b, M, d_e)
    vocab_size: int = 0
    encode_words: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None  # (b, M, d_e) -> tokens, pooled, mask
    mask_embedding: Tensor | None = None  # (d_e,)
    word_logits: Callable[[Tensor], Tensor] | None = None  # fused text tokens (n, d) -> (n, vocabulary)
    make_teacher: Callable[[], "PairState"] | None = None
    parameters: list[Tensor] = field(default_factory=list)  # of the model, those that are trained
    loss_scale: float = 1.0  # what fp16 training multiplies a loss by before it differentiates it
    step: int = 0  # optimiser steps taken so far
    shared: dict[Any, Any] = field(default_factory=dict)  # what was drawn, by who drew it

    @property
    def true(self) -> Tensor:
        """(b,) bool: the pair is a match (all are where the data has no label)."""
        return torch.ones_like(self.image_id, dtype=torch.bool) if self.label is None else self.label == 1

    @cached_property
    def teacher(self) -> "PairState":
        """The same pairs through the momentum teacher, without gradients."""
        return self.make_teacher()

    @cached_property
    def scored(self) -> dict[Any, Any]:
        """What the fusion has answered so far, so that two terms that ask the same pay once."""
        return {}

    @cached_property
    def rows(self) -> Tensor:
        """(b,) places of the local rows in the global batch."""
        return global_rows(self.image_id.shape[0], self.image_id.device)

    @cached_property
    def all_image_embedding(self) -> Tensor:
        return gather_with_grad(self.image_embedding)

    @cached_property
    def all_text_embedding(self) -> Tensor:
        return gather_with_grad(self.text_embedding)

    @cached_property
    def all_negative_embedding(self) -> Tensor | None:
        return None if self.negative_embedding is None else gather_with_grad(self.negative_embedding)

    @cached_property
    def all_negative_present(self) -> Tensor | None:
        return None if self.negative_present is None else gather(self.negative_present)

    @cached_property
    def all_ids(self) -> tuple[Tensor, Tensor, Tensor]:
        """image_id, text_id and truth (B,) of all ranks' pairs."""
        return gather(self.image_id), gather(self.text_id), gather(self.true)

    @cached_property
    def positives(self) -> Positives:
        """The same pairs as `image_positives` and `text_positives`, as a list."""
        return list_positives(self.rows, *self.all_ids)

    @cached_property
    def image_positives(self) -> Tensor:
        """(b, B) bool: caption j is known to be true of local image i."""
        images, texts, true = self.all_ids
        return known_pairs(self.image_id, texts, images, texts, true)

    @cached_property
    def text_positives(self) -> Tensor:
        """(b, B) bool: local caption i is known to be true of image j."""
        images, texts, true = self.all_ids
        return known_pairs(images, self.text_id, images, texts, true).t()

    @cached_property
    def text_candidates(self) -> Tensor:
        """(b, B) bool: caption j may serve local image i as a negative, the batch says nothing of the two."""
        images, texts, true = self.all_ids
        return ~known_pairs(self.image_id, texts, images, texts, torch.ones_like(true))

    @cached_property
    def image_candidates(self) -> Tensor:
        """(b, B) bool: image j may serve local caption i as a negative."""
        images, texts, true = self.all_ids
        return ~known_pairs(images, self.text_id, images, texts, torch.ones_like(true)).t()
