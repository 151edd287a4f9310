"""How far embeddings fill their space, from cheap sums: no eigenvalue is computed."""

from typing import NamedTuple

import torch
from torch import Tensor


class EmbeddingSpread(NamedTuple):
    """std: root mean square distance of L2-normalised rows from their mean, 0 where all are one and near 1 where they fill the sphere.
    rank: participation ratio of their covariance C, tr(C)^2 / tr(C^2), 1 on a line and E where all directions are taken alike; 0 where
    all rows are one. It is a lower bound of the effective rank of Roy and Vetterli (2007).
    """

    std: Tensor
    rank: Tensor


def embedding_spread(embedding: Tensor) -> EmbeddingSpread:
    """Of (B, E) L2-normalised rows; both answers are scalars on their device, in float32."""
    with torch.no_grad(), torch.autocast(embedding.device.type, enabled=False):
        centred = embedding.float() - embedding.float().mean(dim=0)
        rows, width = centred.shape
        products = centred @ centred.t() if rows < width else centred.t() @ centred  # both have the same eigenvalues
        total = centred.square().sum()
        rank = total.square() / products.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        return EmbeddingSpread((total / rows).sqrt(), rank)
