"""How much of what comes first is right: precision at k, ties by expectation."""

import torch
from torch import Tensor

from crossvit.metrics.accuracy import count_true, nan_last


def precision_at_k(scores: Tensor, positives: Tensor, k: int | Tensor) -> Tensor:
    """Expected share of positives among the first k candidates, those that tie for the last places sharing them.

    Args:
        scores: (Q, C), higher is better; NaN ranks last.
        positives: (Q, C) bool.
        k: between 1 and C; or (Q,) int64, one for each query, where 0 gives 0.

    Returns:
        (Q,) float64 in [0, 1].

    Raises:
        ValueError: shapes differ, or k does not lie between 1 (0 in a tensor) and C.
    """
    if scores.ndim != 2 or positives.shape != scores.shape:
        raise ValueError(
            f"scores and positives must both be (Q, C), got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    scores, _ = nan_last(scores)
    wanted = k if isinstance(k, Tensor) else torch.full((len(scores),), k, device=scores.device)
    if len(wanted) and not (
        int(wanted.min()) >= int(not isinstance(k, Tensor)) and int(wanted.max()) <= scores.shape[1]
    ):
        raise ValueError(f"k must lie between 1 and the {scores.shape[1]} candidates, got {k}")
    if not wanted.any():
        return torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    top = scores.topk(int(wanted.max()), dim=1).values
    cut = top.gather(1, (wanted[:, None] - 1).clamp_min(0))
    above, equal = scores > cut, scores == cut
    room = (wanted - count_true(above)).double()
    hits = count_true(above & positives) + room * count_true(equal & positives) / count_true(equal)
    return hits / wanted.clamp_min(1)
