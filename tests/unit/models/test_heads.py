import torch

from crossvit.models.heads import ClassificationHead, MatchingHead, ProjectionHead, RelationHead, TwoImageHead


def test_classifier_pools_a_map_globally():
    head = ClassificationHead(6, 4)
    feature_map = torch.randn(2, 6, 3, 5)
    assert torch.allclose(head(feature_map), head(feature_map.mean((2, 3))), atol=1e-6)
    assert head(feature_map).shape == (2, 4)


def test_projection_has_no_bias_and_unit_rows():
    head = ProjectionHead(6, 4)
    assert head.bias is None
    pooled = torch.randn(3, 6)
    assert torch.allclose(head.unit(pooled).norm(dim=1), torch.ones(3))
    assert torch.allclose(head.unit(7 * pooled), head.unit(pooled), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert head.unit(pooled).dtype == torch.float32


def test_pair_heads():
    pooled = torch.randn(3, 12)
    assert MatchingHead(6)(pooled).shape == (3, 2)
    assert RelationHead(6, 5)(pooled).shape == (3, 5)
    assert TwoImageHead(6)(torch.cat([pooled, pooled], 1)).shape == (3, 2)
