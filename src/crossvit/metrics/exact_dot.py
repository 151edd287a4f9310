"""Similarities of embeddings that no order of summation can move."""

import torch
from torch import Tensor

FRACTION_BITS = 25


class ExactDot:
    """Dot products of embeddings without rounding, so the order of summation (chunk, rank, device) cannot move a score.

    In floating point two equal candidates may differ in the last bit because they fell into different tiles of a matrix product, which
    would break the tie of a collapsed model. Here every element is rounded once to a multiple of 2^-25 of the largest norm (finer than
    float32 resolves a cosine); all partial sums are then integers below 2^53, which float64 adds exactly.

    Args:
        images, texts: (I, E) and (T, E), floating, on one device.
    """

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.images, self.texts = _fixed_point(images), _fixed_point(texts)

    def __call__(self, images: slice, texts: slice) -> Tensor:
        """(i, t) float64, proportional to the dot products."""
        return self.images[images].double() @ self.texts[texts].double().T

    def pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        """Row by row: (p,), (p,) -> (p,) float64."""
        device = self.images.device
        return (self.images[images.to(device)].double() * self.texts[texts.to(device)].double()).sum(1)


def _fixed_point(embeddings: Tensor) -> Tensor:
    """(n, E) integers in a floating dtype, every row of norm at most about 2^25."""
    embeddings = embeddings.detach()
    values = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
    norms = norms[norms.isfinite()]
    largest = norms.max().item() if len(norms) else 0.0
    if largest == 0.0:
        return values
    # A power of two, so that scaling itself rounds nothing.
    exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent.item()
    return torch.ldexp(values.double(), torch.tensor(FRACTION_BITS - exponent, device=values.device)).round()
