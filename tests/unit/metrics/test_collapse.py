"""Spread of embeddings, against the definitions."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossvit.metrics import embedding_spread


def by_eigenvalues(embedding: torch.Tensor) -> tuple[float, float]:
    values = torch.linalg.eigvalsh(torch.cov(embedding.double().t(), correction=0)).clamp(min=0)
    return math.sqrt(values.sum()), float(values.sum() ** 2 / values.square().sum())


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_is_what_the_covariance_says(shape):
    embedding = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5, dim=1)
    std, rank = by_eigenvalues(embedding)
    found = embedding_spread(embedding)
    assert float(found.std) == pytest.approx(std, rel=1e-4)
    assert float(found.rank) == pytest.approx(rank, rel=1e-4)


def test_directions_that_are_taken_alike_count_fully():
    cross = torch.cat([torch.eye(5), -torch.eye(5)])  # 5 directions, mean 0
    assert embedding_spread(cross) == pytest.approx((1.0, 5.0), rel=1e-5)


def test_two_points_are_a_line_and_one_is_nothing():
    points = F.normalize(torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.0, 0.3]]).repeat(8, 1), dim=1)
    assert float(embedding_spread(points).rank) == pytest.approx(1.0, rel=1e-4)
    assert embedding_spread(torch.eye(3)[:1].repeat(16, 1)) == (0, 0)


def test_in_bfloat16_and_without_a_gradient():
    embedding = F.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(1)), dim=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = embedding_spread(embedding.bfloat16())
    assert found.rank.dtype == torch.float32 and not found.rank.requires_grad
    assert float(found.rank) == pytest.approx(float(embedding_spread(embedding).rank), rel=0.02)
