"""Figures on minimal pairs: twins (a caption and a false one that differs in one thing), quads (two captions by two images) and
consistency (one statement, several images)."""

from collections.abc import Hashable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from crossvit.metrics.accuracy import accuracy_at_k, nan_last
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


QUAD_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""What four scores in random order give."""


def quad_accuracy(scores: Tensor) -> dict[str, Tensor]:
    """Winoground's three scores by expectation under ties (Thrush et al. 2022): {"text", "image", "group"}, each (B,) float32.

    text: for both images the caption that belongs to it scores higher than the other. image: for both captions the image does. group: both.
    Ties are broken by one random order of a quad's four scores, so a collapsed model gets `QUAD_CHANCE`, not 0.

    Args:
        scores: (B, 2, 2), [b, i, j] for image i and caption j; i = j belong together.
    """
    if scores.ndim != 3 or scores.shape[1:] != (2, 2):
        raise ValueError(f"scores must be (B, 2, 2), got {tuple(scores.shape)}")
    values, _ = nan_last(scores.flatten(1))
    orders = torch.tensor(list(permutations(range(4))), device=scores.device)

    def beats(a: int, b: int) -> Tensor:
        """(B, 24): score a is above score b, under each order of ties."""
        equal = values[:, a] == values[:, b]
        return (values[:, a] > values[:, b])[:, None] | (equal[:, None] & (orders[:, a] > orders[:, b]))

    first, first_other, second_other, second = 0, 1, 2, 3  # image 0 by captions 0 and 1, image 1 by captions 0 and 1
    text = beats(first, first_other) & beats(second, second_other)
    image = beats(first, second_other) & beats(second, first_other)
    return {name: right.float().mean(1) for name, right in (("text", text), ("image", image), ("group", text & image))}


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


def consistency_chance(group: Tensor) -> float:
    """Consistency of coin flips: the mean over the groups of 1/2 to the number of decisions."""
    return (0.5 ** group.unique(return_counts=True)[1].double()).mean().item()
