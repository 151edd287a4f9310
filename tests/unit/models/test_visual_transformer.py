import pytest
import torch

from crossvit.models.conv_stem import ConvStem
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.visual_transformer import VisualTransformer, resize_positions


def test_shapes():
    vision = VisualTransformer(16, 2, 2, (3, 5))
    assert vision(torch.randn(2, 15, 16)).shape == (2, 16, 16)
    assert vision(torch.randn(2, 49, 16)).shape == (2, 50, 16)  # a square of another size
    assert vision(torch.randn(2, 8, 16), grid=(2, 4)).shape == (2, 9, 16)
    with pytest.raises(ValueError, match="8 patches do not fill"):
        vision(torch.randn(2, 8, 16))


@pytest.mark.parametrize("pool", ["cls", "avg", "map", "concat"])
def test_every_parameter_receives_a_gradient_under_each_pooling(pool):
    vision = VisualTransformer(16, 2, 2, (3, 3), global_pool=pool)
    pooled = vision.pool(vision(torch.randn(4, 9, 16)))
    assert pooled.shape == (4, vision.pooled_width)
    (pooled * torch.randn_like(pooled)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vision.parameters())


def test_without_blocks_cls_is_the_mean_of_the_patches_and_nothing_is_left_untrained():
    vision = VisualTransformer(16, 0, 2, (3, 3), global_pool="avg", final_norm=False)
    tokens = vision(torch.randn(4, 9, 16))
    assert torch.allclose(tokens[:, 0], tokens[:, 1:].mean(1), atol=1e-6)
    (vision.pool(tokens) * torch.randn(4, 16)).sum().backward()
    assert [name for name, p in vision.named_parameters() if p.grad.abs().sum() > 0] == ["position"]


def test_pooling_reads_what_it_says():
    tokens = torch.randn(2, 10, 16)
    assert torch.equal(VisualTransformer(16, 1, 2, (3, 3)).pool(tokens), tokens[:, 0])
    average = VisualTransformer(16, 1, 2, (3, 3), global_pool="avg").pool(tokens)
    assert torch.allclose(average, tokens[:, 1:].mean(1))
    with pytest.raises(ValueError, match="built for 10 tokens and got 17"):
        VisualTransformer(16, 1, 2, (3, 3), global_pool="concat").pool(torch.randn(2, 17, 16))
    with pytest.raises(ValueError, match="choose cls, avg, map or concat"):
        VisualTransformer(16, 1, 2, (3, 3), global_pool="max")


def test_positions_are_laid_out_as_the_grid():
    table = torch.zeros(1, 1, 2, 2)
    table[0, 0, 0, 1] = 1.0  # top right
    resized = resize_positions(table, (4, 6))
    assert resized.shape == (1, 1, 4, 6)
    assert resized.argmax() == 5  # still top right
    assert resize_positions(table, (2, 2)) is table


def swapped_over_replaced(pool: str, **arguments) -> float:
    """How far the pooled feature moves when two squares change places, against one of them changing colour."""
    patches = PatchEncoder(ConvStem(), 64, (4, 4)).eval()
    vision = VisualTransformer(64, 2, 4, (4, 4), global_pool=pool, **arguments).eval()
    first, second, third = torch.randn(3, 32, 3, 1, 1)

    def feature(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        image = torch.zeros(32, 3, 32, 32)
        image[:, :, :8, :8], image[:, :, 16:24, 16:24] = left, right
        return vision.pool(vision(patches(image).patches))

    with torch.no_grad():
        start = feature(first, second)
        swap, replace = feature(second, first) - start, feature(third, second) - start
    return (swap.norm(dim=1) / replace.norm(dim=1)).mean().item()


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_places_matter_at_the_start(pool):
    assert swapped_over_replaced(pool) > 0.3
    assert swapped_over_replaced(pool, position_std=0.02) < 0.15  # the trap that the default avoids
