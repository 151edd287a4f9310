"""The inner maximisation of an adversary: steps along a gradient within a ball around the clean input.

Madry et al. 2018 (PGD), Zhu et al. 2020 (FreeLB), Miyato et al. 2018 (VAT). A perturbation (n, ...) is one vector a row; all arithmetic is
fp32. Normalised steps do not depend on the scale of the loss, so a loss scaler needs no undoing.
"""

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]


def row_norm(x: Tensor, norm: Norm = "l2") -> Tensor:
    """(n,) of x (n, ...): Euclidean, or the greatest magnitude."""
    flat = x.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(dim=1)


def radius(x: Tensor, eps: float | None, relative: bool, norm: Norm) -> Tensor | None:
    """(n,) the ball's radius for clean inputs x (n, ...): `eps`, or that share of a row's own size; None for no ball.

    The size of a row is its norm for `l2` and the root mean square of its elements other than 0 for `linf`, so that padding does not count.
    """
    if eps is None:
        return None
    if not relative:
        return torch.full((len(x),), float(eps), device=x.device)
    size = row_norm(x.float())
    if norm == "linf":
        size = size / (x != 0).flatten(1).sum(dim=1).clamp(min=1).sqrt()
    return eps * size


def project(delta: Tensor, bound: Tensor | None, norm: Norm) -> Tensor:
    """The nearest point of the ball: delta (n, ...), bound (n,) or None for no ball."""
    if bound is None:
        return delta
    bound = _like(bound, delta)
    if norm == "linf":
        return torch.maximum(torch.minimum(delta, bound), -bound)
    length = _like(row_norm(delta), delta)
    return delta * torch.minimum(torch.ones_like(length), bound / length.clamp(min=1e-12))


def direction(grad: Tensor, norm: Norm) -> Tensor:
    """The step of size 1 that raises a linear function most: grad / |grad|, or its sign. A row that is not finite, or 0, gives 0."""
    grad = grad.float()
    if norm == "linf":
        step = grad.sign() + 0 * grad  # the sign alone would hide what is not finite
    else:  # the greatest element first, so that squares of tiny gradients do not vanish
        grad = grad / _like(row_norm(grad, "linf"), grad)
        step = grad / _like(row_norm(grad), grad)
    bad = ~torch.isfinite(step.flatten(1)).all(dim=1)
    return torch.where(_like(bad, step), 0.0, step)


def ascend(delta: Tensor, grad: Tensor, step: Tensor, bound: Tensor | None, norm: Norm) -> Tensor:
    """One step of size step (n,) along grad (n, ...), back into the ball of radius bound (n,)."""
    return project(delta + _like(step, delta) * direction(grad, norm), bound, norm)


def fosc(delta: Tensor, grad: Tensor, bound: Tensor, norm: Norm) -> Tensor:
    """(n,) first-order stationary condition bound |grad|_q - <delta, grad>, 0 where the maximisation has converged (Wang et al. 2019).

    q is the dual norm: 2 for `l2`, 1 for `linf`. grad: of the loss whose maximum is looked for, unscaled.
    """
    flat = grad.float().flatten(1)
    dual = flat.norm(dim=1) if norm == "l2" else flat.abs().sum(dim=1)
    return bound * dual - (delta.flatten(1) * flat).sum(dim=1)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (x.dim() - 1))
