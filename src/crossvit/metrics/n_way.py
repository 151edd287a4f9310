"""The candidates of N-way matching, drawn once and for every model."""

import torch
from torch import Tensor


def n_way(positives: Tensor, queries: Tensor, ways: int, seed: int) -> Tensor:
    """Candidate rows for each query: a positive drawn at random, then `ways - 1` negatives drawn without repeats.

    Args:
        positives: (q, C) bool. queries: (q,) int64, their rows in the corpus; with the seed they fix the draw.

    Returns:
        (q, ways) int64, the positive first; a query without a positive has -1 throughout.
    """
    if ways < 2:
        raise ValueError(f"ways must be at least 2, got {ways}")
    answerable = positives.any(1)
    negatives = (~positives).sum(1)
    if (negatives[answerable] < ways - 1).any():
        raise ValueError(
            f"{ways}-way matching needs {ways - 1} negatives, a query has {int(negatives[answerable].min())}"
        )
    keys = _random_keys(queries, positives.shape[1], seed)
    last = torch.iinfo(torch.int64).max
    positive = keys.masked_fill(~positives, last).argmin(1, keepdim=True)
    # topk of fewer than `ways - 1` negatives happens only where the row is blanked below.
    drawn = keys.masked_fill(positives, last).topk(min(ways - 1, keys.shape[1]), largest=False).indices
    candidates = torch.full((len(queries), ways), -1)
    candidates[answerable] = torch.cat([positive, drawn], 1)[answerable] if answerable.any() else candidates[answerable]
    return candidates


def _random_keys(queries: Tensor, num_candidates: int, seed: int) -> Tensor:
    """(q, C) int64 in [0, 2^62): a hash of (seed, query, candidate), the same on every machine and under any chunking (splitmix64)."""
    rows = _mix(queries.cpu().long() + _wrap(0x9E3779B97F4A7C15 * (seed + 1)))
    columns = torch.arange(num_candidates) * _wrap(0xD1B54A32D192ED03)
    return _mix(rows[:, None] ^ columns) >> 2 & (2**62 - 1)


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        # int64 shifts carry the sign; the mask makes them the unsigned shifts of the original.
        x = (x ^ (x >> shift & (2 ** (64 - shift) - 1))) * _wrap(factor)
    return x ^ (x >> 31 & (2**33 - 1))


def _wrap(value: int) -> int:
    """A 64-bit unsigned number as the int64 of the same bits."""
    return (value + 2**63) % 2**64 - 2**63
