"""Multinomial logistic regression, fitted by L-BFGS from zero, so that it has no seed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-6  # a feature that varies by less than this share of its size is constant up to rounding


def logistic_logits(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, *, l2: float, max_iter: int = 200
) -> Tensor:
    """Logits of a linear classifier on features standardised by the training mean and deviation.

    Args:
        train_features, test_features: (N, ...) and (B, ...), flattened to (N, D) and (B, D).
        train_labels: (N,) int64 from 0.
        l2: weight of half the squared norm of the weights, beside the mean cross-entropy.

    Returns:
        (B, K) float32 logits, K = largest training label + 1, at least 2.
    """
    train, test = train_features.float().flatten(1), test_features.float().flatten(1)
    mean, deviation = train.mean(0), train.std(0, correction=0)
    varies = deviation > FLAT * train.abs().amax(0)
    train, test = (torch.where(varies, (x - mean) / deviation, 0.0) for x in (train, test))
    return fit_logistic(F.linear, train, train_labels, test, train.shape[1], l2, max_iter)


def fit_logistic(
    linear: Callable[[Tensor, Tensor], Tensor],
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    num_features: int,
    l2: float,
    max_iter: int,
) -> Tensor:
    """Fit weights (K, D) and a bias, and return the test logits. `linear(rows, weight)` -> (n, K)."""
    if not len(train) or labels.shape != (len(train),):
        raise ValueError(f"{tuple(labels.shape)} labels for {len(train)} training rows")
    # An evaluation runs in inference mode, whose tensors cannot be learnt from; clones made outside it can.
    with torch.inference_mode(False), torch.enable_grad():
        train, labels, test = train.clone(), labels.clone(), test.clone()
        classes = max(2, int(labels.max()) + 1)
        weight = torch.zeros(classes, num_features, device=train.device, requires_grad=True)
        bias = torch.zeros(classes, device=train.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iter, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(linear(train, weight) + bias, labels) + l2 / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return (linear(test, weight) + bias).detach()
