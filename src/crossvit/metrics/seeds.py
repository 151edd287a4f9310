"""What several seeds of one recipe say together."""

from collections.abc import Sequence
from statistics import fmean, median, stdev
from typing import NamedTuple

from crossvit.metrics.student import t_quantile


class Spread(NamedTuple):
    """Mean, standard deviation, least value and t interval of the mean over `count` seeds. One seed has neither deviation nor interval."""

    mean: float
    sd: float | None
    least: float
    low: float | None
    high: float | None
    count: int


def spread(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Raises ValueError without values."""
    if not values:
        raise ValueError("no values, so no mean")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Spread(mean, None, mean, None, None, 1)
    sd = stdev(values)
    half = t_quantile(0.5 + confidence / 2, count - 1) * sd / count**0.5
    return Spread(mean, sd, min(values), mean - half, mean + half, count)


def share_at_least(values: Sequence[float], threshold: float) -> float:
    """Share of the seeds at or above `threshold`: on a task with a plateau, how many have left it. Raises ValueError without values."""
    if not values:
        raise ValueError("no values, so no share")
    return sum(value >= threshold for value in values) / len(values)


def first_step_at(curve: Sequence[tuple[int, float]], goal: float, mode: str = "max") -> int | None:
    """The step of the first validation at or above `goal` (at or below it for mode "min"); None where none is: the run was too short."""
    return next((step for step, value in curve if (value >= goal if mode == "max" else value <= goal)), None)


def median_step(steps: Sequence[int | None]) -> float | None:
    """The median over seeds, a seed that never got there (None) counting as later than all; None where the median seed is such a one."""
    middle = median(float("inf") if step is None else step for step in steps)
    return None if middle == float("inf") else middle
