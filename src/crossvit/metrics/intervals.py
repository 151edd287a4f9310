"""Confidence intervals: of a mean over queries, and of statistics that are none."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean with its interval. All are fractions; `queries` is how many values were averaged."""

    value: float
    low: float
    high: float
    queries: int


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927). `successes` may be fractional, as expected accuracy under ties is.

    Returns:
        (low, high) fractions; (0, 1) without trials.

    Raises:
        ValueError: successes outside [0, trials] or confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials], got {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    p = successes / trials
    centre = p + z2 / (2 * trials)
    half = (z2 * p * (1 - p) / trials + z2 * z2 / (4 * trials * trials)) ** 0.5
    scale = 1 + z2 / trials
    # At the ends the exact bound is the end itself; rounding must not push it inside.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + half) / scale)
    return low, high


def estimate(values: Tensor, clusters: Tensor | None = None, confidence: float = 0.95) -> Estimate:
    """Mean of per-query values in [0, 1] with a Wilson interval; (nan, 0, 1) without queries.

    Args:
        values: (Q,) in [0, 1].
        clusters: (Q,) int64; queries of one cluster (five captions of one image) are not independent. Their number then counts as the
            effective sample size n / deff, deff being the cluster-robust variance over the binomial one (Kish 1965), never less than the
            number of clusters or more than Q.
    """
    values = values.double().flatten()
    count = len(values)
    if count == 0:
        _check_confidence(confidence)
        return Estimate(float("nan"), 0.0, 1.0, 0)
    mean = min(max(values.mean().item(), 0.0), 1.0)
    size = count if clusters is None else _effective_size(values, clusters.flatten(), mean)
    low, high = wilson(min(mean * size, size), size, confidence)
    return Estimate(mean, low, high, count)


def bootstrap(
    values: Tensor, clusters: Tensor | None = None, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Q,) (Efron 1979); any range, so differences a - b give the paired bootstrap.

    Args:
        clusters: (Q,) int64; whole clusters are drawn when given.
        seed: of the draw; the same arguments give the same interval.

    Returns:
        (low, high); (nan, nan) without values.
    """
    _check_confidence(confidence)
    values = values.detach().double().flatten().cpu()
    if not len(values):
        return float("nan"), float("nan")
    sums, sizes = values, torch.ones_like(values)
    if clusters is not None:
        sums, sizes = _cluster_sums(values, clusters.flatten().cpu())
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, 2**21 // len(sums))
    means = []
    for start in range(0, resamples, chunk):
        draw = torch.randint(len(sums), (min(chunk, resamples - start), len(sums)), generator=generator)
        means.append(sums[draw].sum(1) / sizes[draw].sum(1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def estimate_statistic(
    statistic: Callable[..., float],
    *columns: Tensor,
    clusters: Tensor | None = None,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic in [0, 1] that is no mean of the rows (F1, calibration error), with a basic bootstrap interval.

    The basic interval (Davison and Hinkley 1997, section 5.2) mirrors the percentiles at the value and so takes the bias of the resamples
    off; it is widened to hold the value. Where every resample gives the value (a perfect F1) it is Wilson's, as if each row, or cluster,
    were one query.

    Args:
        statistic: `columns`, all (Q, ...), -> a float; nan where it is not defined, and such resamples are left out.
        clusters: (Q,) int64; whole clusters are drawn when given.
    """
    _check_confidence(confidence)
    count = len(columns[0])
    value = statistic(*columns)
    if value != value:
        return Estimate(float("nan"), 0.0, 1.0, count)
    ids = torch.arange(count) if clusters is None else clusters.flatten().cpu().unique(return_inverse=True)[1]
    order, sizes = ids.argsort(stable=True), ids.bincount()
    first = sizes.cumsum(0) - sizes
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(resamples):
        drawn = torch.randint(len(sizes), (len(sizes),), generator=generator)
        length = sizes[drawn]
        offset = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
        rows = order[first[drawn].repeat_interleave(length) + offset]
        found.append(statistic(*(column[rows] for column in columns)))
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.tensor(found, dtype=torch.float64).nanquantile(ends).tolist()
    if low == high == value:
        return Estimate(value, *wilson(value * len(sizes), len(sizes), confidence), count)
    return Estimate(value, max(0.0, min(2 * value - high, value)), min(1.0, max(2 * value - low, value)), count)


def estimate_by_influence(
    value: float, influence: Tensor, least: int, clusters: Tensor | None = None, confidence: float = 0.95
) -> Estimate:
    """A statistic in [0, 1] with Wilson's interval of the effective sample size: as many queries as would give a share so small a variance.

    Args:
        value: the statistic.
        influence: (Q,) how far each row moves it; the sum of their squares, or of those of their sums in clusters, is its variance.
        least: the effective size is no less than that, and no more than Q; it is that where the value is 0 or 1, and Q where no row moves
            another value.
        clusters: (Q,) int64.
    """
    count = len(influence)
    sums = influence if clusters is None else _cluster_sums(influence, clusters.flatten())[0]
    groups = len(sums)
    variance = sums.square().sum().item() * groups / max(groups - 1, 1)
    binomial = value * (1 - value)
    size = least if binomial == 0 else min(count, max(least, binomial / variance)) if variance > 0 else count
    return Estimate(value, *wilson(value * size, size, confidence), count)


def _effective_size(values: Tensor, clusters: Tensor, mean: float) -> float:
    sums, sizes = _cluster_sums(values, clusters)
    groups, count = len(sums), len(values)
    binomial = mean * (1 - mean) / count
    if groups == count:
        return count
    if groups == 1 or binomial == 0:
        return groups
    residual = sums - mean * sizes
    robust = (residual.square().sum() / count**2 * groups / (groups - 1)).item()
    return max(groups, min(count, count * binomial / robust)) if robust > 0 else count


def _cluster_sums(values: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the values of each cluster and its size, both (G,) float64."""
    if clusters.shape != values.shape:
        raise ValueError(f"clusters {tuple(clusters.shape)} must have one entry a value {tuple(values.shape)}")
    ids, rows = clusters.unique(return_inverse=True)
    zeros = values.new_zeros(len(ids))
    return zeros.index_add(0, rows, values), zeros.index_add(0, rows, torch.ones_like(values))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
