"""Acc@k with ties counted by expectation.

A model that gives every candidate the same score has learnt nothing, yet counting ties as right reports 100 % and
counting them as wrong 0 %. Here ties are broken uniformly at random and the exact expectation of that draw is reported,
so the collapsed model scores k/N.
"""

import torch
from torch import Tensor


def accuracy_at_k(scores: Tensor, positives: Tensor, k: int) -> Tensor:
    """Probability that at least one positive is among the k best candidates, ties being broken uniformly at random.

    With s* the best score of a positive, g negatives above it, and t negatives and m positives equal to it, the value
    is 0 for k <= g and 1 - C(t, k-g) / C(t+m, k-g) otherwise. NaN ranks below every number, -inf included.

    Args:
        scores: (Q, C), higher is better; any floating dtype, compared in at least float32.
        positives: (Q, C) bool, True where the candidate answers the query. A query without a positive scores 0.
        k: how many candidates count as found, at least 1; may exceed C.

    Returns:
        (Q,) float32 in [0, 1].

    Raises:
        ValueError: shapes differ, are not (Q, C), or k < 1.
    """
    greater, tied, matched = rank_counts(scores, positives)
    return hit_probability(greater, tied, matched, k).float()


def accuracy_at_k_bounds(scores: Tensor, positives: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The two ends that tie-breaking can reach: (pessimistic, optimistic), each (Q,) float32 of zeros and ones.

    Pessimistic puts every tied negative above the positive, optimistic below. They bracket `accuracy_at_k`, and equal
    it without ties.
    Same arguments and errors.
    """
    return hit_bounds(*rank_counts(scores, positives), k)


def chance_at_k(num_candidates: int | Tensor, num_positives: int | Tensor = 1, k: int = 1) -> float | Tensor:
    """Acc@k of a uniformly random ranking: 1 - C(N-P, k) / C(N, k).

    Args:
        num_candidates: N; an int, or an int tensor with one entry a query.
        num_positives: P, of the same kind or an int; 0 <= P <= N.
        k: at least 1.

    Returns:
        A float for two ints, else a float64 tensor of the broadcast shape.
    """
    candidates, positives = torch.broadcast_tensors(torch.as_tensor(num_candidates), torch.as_tensor(num_positives))
    if (positives > candidates).any() or (positives < 0).any():
        raise ValueError("num_positives must lie between 0 and num_candidates")
    chance = hit_probability(torch.zeros_like(candidates), candidates - positives, positives, k)
    scalar = isinstance(num_candidates, int) and isinstance(num_positives, int)
    return chance.item() if scalar else chance


def classification_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """`accuracy_at_k` where the candidates are K classes and `labels` (B,) names the right one. logits (B, K) -> (B,)
    float32.

    Raises:
        ValueError: a label lies outside [0, K), or the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (B, K) and labels (B,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    classes = torch.arange(logits.shape[1], device=logits.device)
    if labels.numel() and (labels.min() < 0 or labels.max() >= len(classes)):
        raise ValueError(f"labels must lie in [0, {len(classes)}), got {int(labels.min())} to {int(labels.max())}")
    return accuracy_at_k(logits, labels[:, None] == classes, k)


def nan_last(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in which NaN has become -inf and -inf the least finite number, so plain comparisons put NaN last.

    Returns:
        (scores, number of NaN in each row): the scores of at least float32, untouched where they hold no NaN.
    """
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if not scores.numel() or not scores.amax(-1).isnan().any():  # a maximum is NaN where one of its row is: one pass
        return scores, torch.zeros(scores.shape[:-1], dtype=torch.int64, device=scores.device)
    nan = scores.isnan()
    return scores.clamp_min(torch.finfo(scores.dtype).min).masked_fill(nan, -torch.inf), nan.sum(-1)


def rank_counts(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Place of the best positive, found by comparison and without sorting: (greater, tied, matched), each (Q,) int64.

    `greater` negatives score above the best positive, `tied` negatives equal it, and `matched` positives equal it (0:
    no positive).
    """
    if scores.ndim != 2 or positives.shape != scores.shape:
        raise ValueError(
            f"scores and positives must both be (Q, C), got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    scores, _ = nan_last(scores)
    positives = positives.bool()
    if not scores.shape[1]:
        empty = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        return empty, empty, empty
    best = scores.masked_fill(~positives, -torch.inf).amax(-1, keepdim=True)
    equal = scores == best
    matched = count_true(equal & positives)
    tied = count_true(equal) - matched
    return count_true(scores > best), tied, matched  # no positive is above the best one


def count_true(mask: Tensor) -> Tensor:
    """How many of each row, (..., C) bool -> (...) int64; as bytes, which the CPU adds several times faster than bools."""
    return mask.view(torch.uint8).sum(-1, dtype=torch.int32).long()


def hit_probability(greater: Tensor, tied: Tensor, matched: Tensor, k: int) -> Tensor:
    """Expected Acc@k from `rank_counts`, float64 of the same shape; 0 where `matched` is 0."""
    _check_k(k)
    places = (k - greater).clamp_min(0).double()
    tied, matched = tied.double(), matched.double()
    miss = torch.ones_like(tied)
    # C(t, j) / C(t+m, j) as a product of m factors or of j factors, whichever is shorter.
    if matched.numel() and matched.max() <= k:
        for i in range(1, int(matched.max()) + 1):
            factor = (tied - places + i) / (tied + i)
            miss = torch.where(matched >= i, miss * factor, miss)
        miss = torch.where(places > tied, 0.0, miss)
    else:
        for i in range(k):
            factor = (tied - i).clamp_min(0) / (tied + matched - i).clamp_min(1)
            miss = torch.where(places > i, miss * factor, miss)
    return torch.where(matched > 0, 1 - miss, 0.0)


def hit_bounds(greater: Tensor, tied: Tensor, matched: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(pessimistic, optimistic) Acc@k from `rank_counts`, float32 zeros and ones."""
    _check_k(k)
    found = matched > 0
    return (found & (greater + tied < k)).float(), (found & (greater < k)).float()


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
