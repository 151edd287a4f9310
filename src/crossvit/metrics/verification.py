"""True-or-false decisions on image-text pairs (VSR, NLVR, NLVR2)."""

import torch
from torch import Tensor

from crossvit.metrics.accuracy import classification_accuracy, nan_last
from crossvit.metrics.intervals import Estimate, estimate_by_influence


def verification_accuracy(logits: Tensor, labels: Tensor, threshold: float = 0.0) -> Tensor:
    """Chance that each decision is right, a tie counting one half, (B,) float32.

    Args:
        logits: (B, 2) for false and true, or (B,) scores compared with `threshold` (0 for a logit or a logit difference).
        labels: (B,) int64 or bool, 1 = true.

    Raises:
        ValueError: the shapes do not fit, or a label is neither 0 nor 1.
    """
    if logits.ndim == 1:
        logits = torch.stack([torch.full_like(logits, threshold), logits], 1)
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise ValueError(f"logits must be (B,) or (B, 2), got {tuple(logits.shape)}")
    return classification_accuracy(logits, labels.long())


def balanced_accuracy(correct: Tensor, labels: Tensor) -> float:
    """Mean over the labels present of the mean of `correct` (B,), so that an always-true model scores 1/2; nan when empty."""
    shares = [correct[labels == label].double().mean() for label in labels.unique()]
    return torch.stack(shares).mean().item() if shares else float("nan")


def f1_score(scores: Tensor, labels: Tensor, threshold: float = 0.0) -> float:
    """F1 of saying true above a threshold: 2 TP / (2 TP + FP + FN), all of them expected counts where a score ties with the threshold.

    Args:
        scores: (B,), higher = true. NaN says false.
        labels: (B,) of 0 and 1, or bool.

    Returns:
        A float; nan where no label is 1.
    """
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"scores and labels must both be (B,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    said = (scores > threshold).double() + 0.5 * (scores == threshold).double()
    true = labels.double()
    positives = true.sum().item()
    return 2 * (said * true).sum().item() / (said.sum().item() + positives) if positives else float("nan")


def f1_chance(labels: Tensor) -> float:
    """F1 of a fair coin on these labels, by expected counts."""
    return f1_score(torch.zeros(len(labels)), labels)


def macro_f1(scores: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the F1 of choosing the class of the highest score, (B, K) and (B,); ties share the choice.

    nan without rows.
    """
    scores, _ = nan_last(scores)
    best = scores == scores.amax(dim=1, keepdim=True)
    chosen = best.double() / best.sum(dim=1, keepdim=True)
    true = torch.nn.functional.one_hot(labels, scores.shape[1]).double()
    occurs = true.sum(0) > 0
    f1 = 2 * (chosen * true).sum(0) / (chosen.sum(0) + true.sum(0))
    return f1[occurs].mean().item()


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the chance that a true pair scores above a false one, ties one half (Mann-Whitney).

    Args:
        scores: (B,), higher = true; for (B, 2) logits pass `logits[:, 1] - logits[:, 0]`. NaN ranks last.
        labels: (B,) of 0 and 1, or bool.

    Returns:
        A float; nan unless both labels occur.
    """
    return _placements(scores, labels)[labels.bool()].mean().item()


def estimate_auroc(
    scores: Tensor, labels: Tensor, clusters: Tensor | None = None, confidence: float = 0.95
) -> Estimate:
    """`auroc` with an interval: its variance is DeLong's (1988), that of whole clusters where they are given (Obuchowski 1997).

    The interval is Wilson's of as many queries as would give a share this variance, at least the pairs or clusters of the rarer label: a
    perfect ranking of few pairs is not known to be perfect.

    Args:
        clusters: (B,) int64; pairs of one cluster (of one picture) are not independent.

    Returns:
        (nan, 0, 1) unless both labels occur.
    """
    true = labels.bool()
    if true.all() or not true.any():
        return Estimate(float("nan"), 0.0, 1.0, len(true))
    place = _placements(scores, labels)
    value = place[true].mean().item()
    members = torch.arange(len(true), device=true.device) if clusters is None else clusters.flatten()
    least = min(len(members[mask].unique()) for mask in (true, ~true))
    influence = torch.where(true, (place - value) / true.sum(), (place - value) / (~true).sum())
    return estimate_by_influence(value, influence, least, clusters, confidence)


def _placements(scores: Tensor, labels: Tensor) -> Tensor:
    """(B,) float64: the share of the pairs of the other label that a pair is on the right side of, ties one half; nan without such."""
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"scores and labels must both be (B,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    true = labels.bool()
    scores, _ = nan_last(scores[:, None])
    values, place = scores.squeeze(1).unique(return_inverse=True)
    trues, falses = (torch.bincount(place[mask], minlength=len(values)).double() for mask in (true, ~true))
    falses_below = falses.cumsum(0) - falses / 2
    trues_above = trues.sum() - trues.cumsum(0) + trues / 2
    return torch.where(true, (falses_below / falses.sum())[place], (trues_above / trues.sum())[place])
