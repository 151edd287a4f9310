"""Figures on minimal pairs: twins (a caption and a false one that differs in one thing) and consistency (one statement, several images)."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from crossvit.metrics.accuracy import accuracy_at_k
from crossvit.metrics.intervals import Estimate, estimate


def two_way_accuracy(true_scores: Tensor, false_scores: Tensor) -> Tensor:
    """Chance that the true caption beats its twin, a tie counting one half: (B,), (B,) -> (B,) float32.

    Published twin benchmarks count a tie as wrong (SugarCrepe), as right (CLIP_benchmark) or either (ARO), which lets a collapsed model
    score 0 or 100 %; here it scores 50 %.
    """
    if true_scores.ndim != 1 or true_scores.shape != false_scores.shape:
        raise ValueError(f"both must be (B,), got {tuple(true_scores.shape)} and {tuple(false_scores.shape)}")
    scores = torch.stack([true_scores, false_scores], 1)
    return accuracy_at_k(scores, torch.tensor([True, False], device=scores.device).expand_as(scores), 1)


def by_kind(
    values: Tensor, kinds: Sequence[Hashable], clusters: Tensor | None = None, confidence: float = 0.95
) -> dict[Hashable, Estimate]:
    """Mean and interval of `values` (B,) for each kind ("swap_att", "replace_rel", ...), in order of the kinds' first appearance.

    Args:
        kinds: B of them, one a value.
        clusters: (B,) int64, values that are not independent (the twins of one image); see `intervals.estimate`.
    """
    if len(kinds) != len(values):
        raise ValueError(f"{len(values)} values for {len(kinds)} kinds")
    rows: dict[Hashable, list[int]] = {}
    for row, kind in enumerate(kinds):
        rows.setdefault(kind, []).append(row)
    return {
        kind: estimate(values[chosen], None if clusters is None else clusters[chosen], confidence)
        for kind, chosen in rows.items()
    }


def consistency(correct: Tensor, group: Tensor) -> Tensor:
    """Chance that every decision of a group is right: NLVR's consistency, a group being one statement (Suhr et al. 2019).

    Args:
        correct: (B,) in [0, 1], as `verification_accuracy` gives them; ties are broken independently, so chances multiply.
        group: (B,) int64, equal for the examples of one statement.

    Returns:
        (G,) float32, in ascending order of the group id.
    """
    if correct.ndim != 1 or correct.shape != group.shape:
        raise ValueError(f"both must be (B,), got {tuple(correct.shape)} and {tuple(group.shape)}")
    ids, place = group.unique(return_inverse=True)
    ones = torch.ones(len(ids), dtype=torch.float32, device=correct.device)
    return ones.scatter_reduce(0, place, correct.float(), "prod")
