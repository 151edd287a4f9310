"""From a score to a decision and a probability: threshold, Platt scaling, reliability, expected calibration error."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15


class Decision(NamedTuple):
    """From a score, (B,) float, higher = true, to an answer: the threshold, and p(true) = sigmoid(scale x score + offset)."""

    threshold: float
    scale: float
    offset: float

    def accepts(self, score: Tensor) -> Tensor:
        """(B,) bool: above the threshold."""
        return score > self.threshold

    def probability(self, score: Tensor) -> Tensor:
        """(B,) in [0, 1]."""
        return torch.sigmoid(self.scale * score + self.offset)


class Bin(NamedTuple):
    """Rows of neighbouring probabilities: their mean p(true), the share of them that is true, and how many they are."""

    probability: float
    share: float
    rows: int


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """The threshold of the highest `verification_accuracy`; of equally good ones the middle one.

    Tried are every score (at which it ties), the middles between neighbours, and one value below and one above them all.

    Args:
        scores: (B,), higher = true. labels: (B,) of 0 and 1, or bool.

    Raises:
        ValueError: the shapes do not fit, or there is no score.
    """
    _check(scores, labels)
    true = labels.bool()
    values, place = scores.double().unique(return_inverse=True)
    trues, falses = (
        torch.zeros(len(values), dtype=torch.float64).index_add_(0, place[mask], torch.ones(int(mask.sum())).double())
        for mask in (true, ~true)
    )
    below_true, below_false = (
        F.pad(count.cumsum(0), (1, 0)) for count in (trues, falses)
    )  # with a score below the i-th
    right = below_false + (trues.sum() - below_true)  # a threshold between the values i - 1 and i
    tied = right[:-1] + (falses - trues) / 2  # a threshold at value i
    reach = max((values[-1] - values[0]).item(), 1.0)
    ends = (values[:1] - reach, values[-1:] + reach)
    between = torch.cat([ends[0], (values[1:] + values[:-1]) / 2, ends[1]])
    thresholds = torch.cat([torch.stack([between[:-1], values], 1).flatten(), between[-1:]])
    correct = torch.cat([torch.stack([right[:-1], tied], 1).flatten(), right[-1:]])
    best = (correct == correct.max()).nonzero().flatten()
    return thresholds[best[(len(best) - 1) // 2]].item()


def platt_scaling(scores: Tensor, labels: Tensor, max_iter: int = 100) -> tuple[float, float]:
    """(a, b) of the maximum-likelihood p(true) = sigmoid(a s + b), towards Platt's smoothed targets, which keep a finite (Platt 1999).

    Arguments and errors as in `best_threshold`.
    """
    _check(scores, labels)
    with torch.inference_mode(False), torch.enable_grad():
        scores, true = scores.clone().double(), labels.clone().bool()
        positives, negatives = true.sum(), (~true).sum()
        target = torch.where(true, (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()
        mean, deviation = scores.mean(), scores.std(correction=0)
        flat = not deviation > 1e-12 * scores.abs().max()
        standard = torch.zeros_like(scores) if flat else (scores - mean) / deviation
        parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=max_iter, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = parameters[0] * standard + parameters[1]
            loss = F.binary_cross_entropy_with_logits(logits, target)
            loss.backward()
            return loss

        optimizer.step(closure)
        slope, offset = parameters.detach().tolist()
    if flat:
        return 0.0, offset
    return slope / deviation.item(), offset - slope * (mean / deviation).item()


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> list[Bin]:
    """How often it is true where p(true) is so much, in bins of equal size, by ascending probability (equal mass: Nixon et al. 2019).

    Equal probabilities share their labels, so the order of the rows plays no part.

    Args:
        probabilities: (B,) in [0, 1]. labels: (B,) of 0 and 1, or bool.
        bins: how many, of sizes that differ by one at most; fewer where there are fewer rows.
    """
    _check(probabilities, labels)
    values, place, count = probabilities.double().unique(return_inverse=True, return_counts=True)
    share = torch.zeros_like(values).index_add_(0, place, labels.double()) / count
    columns = torch.stack([values, share], dim=1).repeat_interleave(count, dim=0)
    return [Bin(*part.mean(dim=0).tolist(), len(part)) for part in columns.tensor_split(min(bins, len(columns)))]


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Mean distance of p(true) from the share that is true, over the bins of `reliability` (Naeini et al. 2015).

    Upward biased where bins hold few rows. Arguments as there. Returns a fraction; nan without rows.
    """
    if not len(probabilities):
        return float("nan")
    found = reliability(probabilities, labels, bins)
    return sum(one.rows * abs(one.share - one.probability) for one in found) / len(probabilities)


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 1 or not len(scores) or labels.shape != scores.shape:
        raise ValueError(f"scores and labels must both be (B,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
