"""Learning-rate schedules as factors of the base rate: f(step, total_steps) -> factor."""

import math


def cosine(step: int, total_steps: int, warmup: float = 0.05, floor: float = 0.0) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then half a cosine down to `floor` (a share of the base rate)."""
    warm = max(1, round(warmup * total_steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, total_steps - warm))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int, total_steps: int, warmup: float = 0.0) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then 1."""
    warm = max(1, round(warmup * total_steps))
    return min(1.0, (step + 1) / warm)
