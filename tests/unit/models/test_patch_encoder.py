import copy

import pytest
import torch
from torch import nn

from crossvit.models.conv_stem import ConvStem
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.timm_backbone import TimmBackbone
from crossvit.tasks.synced_norm import SyncedNorm


def test_three_readings_of_7x7_patches_at_224_pixels():
    image = torch.randn(1, 3, 224, 224)
    for encoder, count in (
        (PatchEncoder(TimmBackbone("resnet18"), 8), 49),
        (PatchEncoder(TimmBackbone("resnet18", stage=1), 8, mode="window"), 64),
        (PatchEncoder(None, 8, mode="pixel"), 1024),
    ):
        features = encoder(image)
        assert features.patches.shape == (1, count, 8)
        assert encoder.num_patches(224) == count
        assert features.feature_map.shape[1] == encoder.num_channels


@pytest.mark.parametrize("size", [56, 112])
def test_cells_average_to_the_pooled_map(size):
    encoder = PatchEncoder(ConvStem((8, 16, 16), groups=4), 8, (7, 7))
    feature_map = encoder.feature_map(torch.randn(2, 3, size, size))
    assert torch.allclose(encoder.cells(feature_map).mean((2, 3)), feature_map.mean((2, 3)), atol=1e-6)


def test_patches_are_the_projected_cells_row_by_row():
    encoder = PatchEncoder(ConvStem((8, 16), groups=4), 5, (4, 4))
    features = encoder(torch.randn(2, 3, 16, 16))
    cell = features.feature_map[:, :, 1, 2]
    expected = cell @ encoder.proj.weight[:, :, 0, 0].T + encoder.proj.bias
    assert torch.allclose(features.patches[:, 4 * 1 + 2], expected, atol=1e-5)


def test_another_map_is_pooled_to_the_grid_or_kept():
    image = torch.randn(1, 3, 40, 56)
    pooled = PatchEncoder(ConvStem((8, 16, 16), groups=4), 8, (4, 4))
    kept = PatchEncoder(ConvStem((8, 16, 16), groups=4), 8, (4, 4), interpolate=False)
    assert pooled(image).patches.shape[1] == 16 and pooled.grid((40, 56)) == (4, 4)
    assert kept(image).patches.shape[1] == 35 and kept.grid((40, 56)) == (5, 7)


@pytest.mark.parametrize("size", [(7, 7), (10, 20), (64, 64)])
def test_pixel_and_window_modes_cover_pictures_of_any_size(size):
    image = torch.randn(1, 3, *size)
    pixel = PatchEncoder(None, 8, mode="pixel")
    assert pixel(image).patches.shape[1] == pixel.num_patches(size)
    window = PatchEncoder(ConvStem((8,), groups=4), 8, mode="window", patch_size=3)
    assert window(image).patches.shape[1] == window.num_patches(size)


def test_pixel_patches_hold_every_pixel_once():
    image = torch.randn(1, 3, 14, 21)
    cells = PatchEncoder(None, 8, mode="pixel").feature_map(image)
    assert cells.shape == (1, 147, 2, 3)
    assert torch.equal(cells.flatten().sort().values, image.flatten().sort().values)
    assert torch.equal(cells[0, :, 1, 2].sort().values, image[0, :, 7:, 14:].flatten().sort().values)


def batch_norm_backbone() -> TimmBackbone:
    return TimmBackbone("test_resnet")


def test_frozen_norm_keeps_statistics_and_weights_in_training():
    encoder = PatchEncoder(batch_norm_backbone(), 8, freeze_norm=True).train()
    norms = [m for m in encoder.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [n.running_mean.clone() for n in norms]
    encoder(torch.randn(4, 3, 64, 64)).patches.sum().backward()
    assert norms and all(torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True))
    assert all(n.weight.grad is None for n in norms)
    assert any(p.grad is not None for p in encoder.backbone.parameters())


def test_frozen_norm_stays_frozen_where_it_is_replaced():
    """As trainer.sync_batchnorm does on several GPUs."""
    encoder = SyncedNorm().apply(PatchEncoder(batch_norm_backbone(), 8, freeze_norm=True)).train()
    norms = [m for m in encoder.backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert norms and not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_a_norm_that_holds_an_activation_keeps_it_where_it_is_replaced():
    """As trainer.sync_batchnorm does; timm's EfficientNets have such layers."""
    encoder = PatchEncoder(TimmBackbone("test_efficientnet"), 8).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(image).feature_map
        synced = SyncedNorm().apply(copy.deepcopy(encoder))
        assert torch.equal(synced(image).feature_map, expected)
        assert torch.equal(SyncedNorm().revert(synced)(image).feature_map, expected)
    assert not any(type(module).__name__ == "BatchNormAct2d" for module in synced.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert synced.state_dict().keys() == encoder.state_dict().keys()


def test_norm_moves_where_nothing_is_frozen():
    encoder = PatchEncoder(batch_norm_backbone(), 8).train()
    norm = next(m for m in encoder.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    encoder(torch.randn(4, 3, 64, 64))
    assert not torch.equal(norm.running_mean, before)


def test_freeze_at_freezes_the_stages_from_the_front():
    frozen = {}
    for stages in range(6):
        encoder = PatchEncoder(TimmBackbone("resnet18"), 8, freeze_at=stages)
        frozen[stages] = {name for name, p in encoder.backbone.named_parameters() if not p.requires_grad}
    assert frozen[0] == set()
    assert frozen[1] == {"net.conv1.weight", "net.bn1.weight", "net.bn1.bias"}
    assert {name.split(".")[1] for name in frozen[3]} == {"conv1", "bn1", "layer1", "layer2"}
    assert frozen[5] == {name for name, _ in encoder.backbone.named_parameters()}
    assert all(frozen[k] <= frozen[k + 1] for k in range(5))


def test_a_frozen_copy_stays_frozen():
    encoder = copy.deepcopy(PatchEncoder(batch_norm_backbone(), 8, freeze_at=5)).train()
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    encoder(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in encoder.backbone.state_dict().items())


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="choose grid, window or pixel"):
        PatchEncoder(ConvStem(), 8, mode="patch")
    with pytest.raises(ValueError, match="takes no backbone"):
        PatchEncoder(ConvStem(), 8, mode="pixel")
    with pytest.raises(ValueError, match="needs a backbone"):
        PatchEncoder(None, 8)
    with pytest.raises(ValueError, match="freeze_at 6"):
        PatchEncoder(ConvStem(), 8, freeze_at=6)
