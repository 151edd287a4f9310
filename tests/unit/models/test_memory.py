import copy

import pytest
import torch
from torch import nn

from crossvit.errors import UserError
from crossvit.models import memory as module
from crossvit.models.memory import RowMemory, row_keys
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.timm_backbone import TimmBackbone


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", {})


def test_answers_in_order_and_computes_a_row_once():
    rows = torch.arange(4.0)[:, None]
    memory, asked = RowMemory(10, nn.Identity()), []

    def double(places):
        asked.append(places)
        return 2 * current[places]

    for order in ([0, 1, 2], [2, 3, 0], [3, 3]):
        current = rows[order]
        assert torch.equal(torch.stack(memory.answer(row_keys(current), double)), 2 * current)
    assert asked == [[0, 1, 2], [1]]
    assert len(memory) == 4


def test_keeps_no_more_than_its_limit():
    memory = RowMemory(2, nn.Identity())
    rows = torch.arange(5.0)[:, None]
    for _ in range(2):
        assert torch.stack(memory.answer(row_keys(rows), lambda places: rows[places])).equal(rows)
    assert len(memory) == 2
    with pytest.raises(ValueError, match="limit"):
        RowMemory(0, nn.Identity())


def test_networks_of_equal_weights_share_a_memory_and_others_do_not():
    first, other = nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2).eval()
    other.running_mean += 1
    rows = torch.randn(3, 2)

    def answers(memory: RowMemory, fail: bool = False) -> torch.Tensor:
        def compute(places):
            assert not fail
            return memory.network(rows[places])

        return torch.stack(memory.answer(row_keys(rows), compute))

    expected = answers(RowMemory(9, first))
    copied = copy.deepcopy(RowMemory(9, first))
    assert copied.network is not first
    assert torch.equal(answers(copied, fail=True), expected)
    assert torch.equal(answers(RowMemory(9, other)), other(rows))
    assert torch.equal(answers(RowMemory(9, first), fail=True), first(rows))


def test_a_remembered_backbone_gives_what_it_would_compute():
    encoder = PatchEncoder(TimmBackbone("test_resnet"), 8, (2, 2), freeze_at=5, remember=3)
    image = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        expected = encoder.backbone(image)
        first = encoder(image)
    again = encoder(image.flip(0))
    assert torch.allclose(first.feature_map, expected, atol=1e-6)
    assert torch.allclose(again.feature_map, expected.flip(0), atol=1e-5)
    again.patches.sum().backward()
    assert encoder.proj.weight.grad is not None
    assert not [name for name in encoder.state_dict() if "memory" in name]


def test_every_precision_has_a_memory_of_its_own():
    encoder = PatchEncoder(TimmBackbone("test_resnet"), 8, (2, 2), freeze_at=5, remember=9)
    image = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.backbone(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder.feature_map(image[:3])
        assert half.dtype == torch.bfloat16
        for some in (image[:3], image):
            found = encoder.feature_map(some)
            assert found.dtype == torch.float32 and torch.allclose(found, expected[: len(some)], atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder.feature_map(image[:3]), half)


def test_passing_pictures_are_not_kept():
    encoder = PatchEncoder(TimmBackbone("test_resnet"), 8, (2, 2), freeze_at=5, remember=3)
    image = torch.randn(2, 3, 64, 64)
    passing = encoder(image, passing=True).patches
    assert len(encoder._memory) == 0
    assert torch.allclose(passing, encoder(image).patches, atol=1e-6)
    assert len(encoder._memory) == 2


def test_pixels_that_need_a_gradient_get_it():
    encoder = PatchEncoder(TimmBackbone("test_resnet"), 8, (2, 2), freeze_at=5, remember=3)
    image = torch.randn(2, 3, 64, 64)
    encoder(image)
    encoder(image.requires_grad_()).patches.sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_backbone_that_learns_is_not_remembered():
    with pytest.raises(UserError, match=r"set patch_encoder\.freeze_at=5"):
        PatchEncoder(TimmBackbone("test_resnet"), 8, freeze_at=4, remember=3)
