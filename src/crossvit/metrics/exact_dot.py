"""Similarities of embeddings that no order of summation can move."""

import math

import torch
from torch import Tensor

FRACTION_BITS = 26


class ExactDot:
    """Dot products of embeddings without rounding, so the order of summation (chunk, rank, device) cannot move a score.

    In floating point two equal candidates may differ in the last bit because they fell into different tiles of a matrix product, which
    would break the tie of a collapsed model. Here every element is rounded once, to a multiple of about 2^-26 of the largest norm, which
    moves a cosine by less than a float32 product does; all partial sums are then integers below 2^53, which float64 adds exactly.

    Args:
        images, texts: (I, E) and (T, E), floating, on one device.

    Attributes:
        unit: what a dot product of 1 comes out as.
    """

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        (self.images, first), (self.texts, second) = _fixed_point(images), _fixed_point(texts)
        self.unit = first * second

    def __call__(self, images: slice, texts: slice) -> Tensor:
        """(i, t) float64, the dot products times `unit`."""
        return self.images[images] @ self.texts[texts].T

    def pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        """Row by row: (p,), (p,) -> (p,) float64."""
        device = self.images.device
        return (self.images[images.to(device)] * self.texts[texts.to(device)]).sum(1)


def _fixed_point(embeddings: Tensor) -> tuple[Tensor, float]:
    """(n, E) whole numbers in float64, every row of norm at most 2^26.25, so that two rows multiply to less than 2^53; and their scale."""
    values = embeddings.detach().double()
    norms = torch.linalg.vector_norm(values, dim=1)
    norms = norms[norms.isfinite()]
    largest = norms.max().item() if len(norms) else 0.0
    if largest == 0.0:
        return values, 1.0
    # A power of two, so that scaling itself rounds nothing; the quarter keeps rows normalised in float32 (1 + 1e-7) at full resolution.
    exponent = math.ceil(math.log2(largest) - 0.25)
    bits = FRACTION_BITS - exponent
    return torch.ldexp(values, torch.tensor(bits, device=values.device)).round(), 2.0**bits
