from types import SimpleNamespace

import pytest
import torch

from crossvit.data.batches import ImageBatch
from crossvit.errors import UserError
from crossvit.evaluation.probe import PATCH_MAP, VISION, Probe
from crossvit.evaluation.subject import Subject
from tests.small import cross_vit


@pytest.fixture
def data():
    """Two classes, bright above or bright below; two batches a split."""

    def image_loader(split):
        generator = torch.Generator().manual_seed(len(split))
        for start in range(0, 24, 12):
            label = torch.arange(12) % 2
            image = 0.1 * torch.randn(12, 3, 32, 32, generator=generator)
            image[label == 0, 0, :16] += 1
            image[label == 1, 2, 16:] += 1
            yield ImageBatch(image, label, torch.arange(start, start + 12))

    return SimpleNamespace(image_loader=image_loader, normalize=lambda image: image)


def subject(trained=("patch_encoder", "vision")):
    return Subject(cross_vit().train(), frozenset(trained), torch.device("cpu"))


def test_both_features_by_both_ways(data):
    found = Probe(data)(subject())
    assert [(m.task, m.direction, m.metric) for m in found] == [
        (task, direction, f"Acc@{k}")
        for task in ("linear_probe", "knn")
        for direction in (PATCH_MAP, VISION)
        for k in (1, 5)
    ]
    assert all(m.candidates == 2 and m.estimate.queries == 24 for m in found)
    assert all(m.estimate.value > 0.9 for m in found)


def test_every_picture_passes_once_in_eval_mode(data):
    one = subject()
    passes = []
    one.model.patch_encoder.backbone.register_forward_hook(lambda module, *_: passes.append(module.training))
    Probe(data)(one)
    assert passes == [False] * 4


def test_what_is_not_trained_is_not_probed(data):
    assert {m.direction for m in Probe(data)(subject(["patch_encoder"]))} == {PATCH_MAP}
    assert Probe(data)(subject([])) == []


@pytest.mark.parametrize("options", [{"penalties": []}, {"penalties": [-1.0]}, {"neighbours": 0}, {"temperature": 0}])
def test_nonsense(data, options):
    with pytest.raises(UserError, match=next(iter(options))):
        Probe(data, **options)
