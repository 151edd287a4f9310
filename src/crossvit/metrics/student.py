"""Student's t distribution for whole degrees of freedom, where it has a closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""

from math import atan, cos, pi, sin, sqrt


def t_probability(t: float, degrees: int) -> float:
    """P(T <= t). Raises ValueError for less than one degree of freedom."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {degrees}")
    angle = atan(t / sqrt(degrees))
    odd = degrees % 2
    term = total = cos(angle) if odd else 1.0
    if degrees == 1:
        total = 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):  # the last power of the cosine is degrees - 2
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    inside = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return 0.5 + inside / 2


def t_quantile(probability: float, degrees: int) -> float:
    """The t that T stays below with this probability, by bisection. Raises ValueError where it does not lie in (0, 1)."""
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie in (0, 1), got {probability}")
    low, high = -1.0, 1.0
    while t_probability(low, degrees) > probability:
        low *= 2
    while t_probability(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2
