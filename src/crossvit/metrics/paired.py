"""Two recipes compared over the same seeds: what is tested is the difference within each seed."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from crossvit.metrics.seeds import Spread, spread
from crossvit.metrics.student import t_probability

EXACT = 12  # most differences for which all 2^n signs are tried
DRAWS = 10_000


class Difference(NamedTuple):
    """Mean difference over `count` seeds, its t interval and the p value of the paired t test (None for one seed), and that of the
    sign-flip test, which assumes no distribution and needs six seeds to fall below .05."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    sign_flip: float | None
    count: int


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Difference:
    """first - second, seed by seed. Raises ValueError where the two do not have as many values, or none."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values do not pair")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    found = spread(differences, confidence)
    return Difference(found.mean, found.low, found.high, _t_p(found), sign_flip_p(differences), found.count)


def _t_p(found: Spread) -> float | None:
    """Two-sided p value of a mean of 0 (Student 1908)."""
    if found.sd is None:
        return None
    if found.sd == 0:
        return float(found.mean == 0)
    return max(0.0, 2 * t_probability(-abs(found.mean) / found.sd * found.count**0.5, found.count - 1))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p value of a mean difference of 0 (Fisher 1935): how often the sum is as far from 0 when each sign is tossed.

    Exact over all 2^n signs up to EXACT differences, so never below 2 / 2^n; over DRAWS tosses, drawn by `seed`, beyond.
    """
    if not differences:
        raise ValueError("no differences to test")
    size = len(differences)
    bound = abs(sum(differences)) * (1 - 1e-12)  # so that rounding keeps equal sums equal

    def reaches(signs: int) -> bool:
        return abs(sum(-d if signs >> i & 1 else d for i, d in enumerate(differences))) >= bound

    if size <= EXACT:
        return sum(map(reaches, range(2**size))) / 2**size
    tosses = Random(seed)
    return (1 + sum(reaches(tosses.getrandbits(size)) for _ in range(DRAWS))) / (1 + DRAWS)


def holm(p_values: Sequence[float], planned: int = 0) -> list[float]:
    """Adjusted p values of one family, in the given order (Holm 1979): the k-th least times the number of those not below it.

    planned: how many tests the family is to have, where some are not there yet; they count as the greatest.
    """
    adjusted = [0.0] * len(p_values)
    size = max(planned, len(p_values))
    running = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (size - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted
