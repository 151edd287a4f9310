"""What frozen features know of the classes: a linear probe and a vote of nearest neighbours."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossvit.metrics.accuracy import classification_accuracy, count_true
from crossvit.metrics.exact_dot import ExactDot
from crossvit.metrics.logistic import logistic_logits
from crossvit.metrics.ranking import query_chunks

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 5  # one training row in so many of each class chooses the penalty


def linear_probe_logits(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, penalties: Sequence[float] = PENALTIES
) -> tuple[Tensor, float]:
    """Logistic regression whose L2 penalty is chosen on every fifth training row of each class, then fitted to all of them.

    Args:
        train_features, test_features: (N, D) and (B, D). train_labels: (N,) int64 from 0.
        penalties: to choose from, see `logistic_logits`; of equally good ones the strongest is taken.

    Returns:
        (B, K) float32 logits, and the penalty.
    """
    held = held_out(train_labels)
    best, chosen = -1.0, max(penalties)
    if held.any() and len(penalties) > 1:  # the first row of a class is never held out
        for l2 in sorted(penalties, reverse=True):
            logits = logistic_logits(train_features[~held], train_labels[~held], train_features[held], l2=l2)
            accuracy = classification_accuracy(logits, train_labels[held]).mean().item()
            if accuracy > best:
                best, chosen = accuracy, l2
    return logistic_logits(train_features, train_labels, test_features, l2=chosen), chosen


def held_out(labels: Tensor) -> Tensor:
    """(N,) bool: of each class the second row and every fifth after it. A class of one row holds none out."""
    order = labels.argsort(stable=True)
    _, counts = labels.unique(return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels), device=labels.device) - first
    return place % HELD_OUT == 1


def neighbour_votes(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Votes of the nearest training rows by cosine, each of weight exp(cosine / temperature) (Wu et al. 2018, section 3.4).

    Rows that tie for the last places share them: their votes count by the chance of being drawn, so constant features give every class
    its share of the training rows.

    Returns:
        (B, K) float64, K = largest training label + 1; weights are relative to the nearest row's.
    """
    train, test = (F.normalize(x.float().flatten(1), dim=1) for x in (train_features, test_features))
    cosine = ExactDot(test, train)
    classes = int(train_labels.max()) + 1
    everything, places = slice(0, len(train)), min(neighbours, len(train))
    votes = []
    for rows in query_chunks(range(len(test)), len(train)):
        scores = cosine(rows, everything)
        top, index = scores.topk(places, dim=1)
        cut = top[:, -1:]
        weight = ((top - top[:, :1]) / cosine.unit / temperature).exp()
        found = torch.zeros(len(top), classes, dtype=torch.float64, device=top.device)
        found.scatter_add_(1, train_labels[index], weight.masked_fill(top == cut, 0.0))
        equal = scores == cut
        # Rows at the cut are counted in whole numbers, so equal shares stay equal to the bit.
        row, column = equal.nonzero(as_tuple=True)
        shared = torch.zeros_like(found).index_put_((row, train_labels[column]), found.new_ones(()), accumulate=True)
        room = (top == cut).sum(1) / count_true(equal)
        votes.append(found + shared * (weight[:, -1] * room)[:, None])
    return torch.cat(votes)
