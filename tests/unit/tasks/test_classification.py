"""The two image-classification stages."""

import pytest
import torch

from crossvit.data.batches import ImageBatch
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.timm_backbone import TimmBackbone
from crossvit.objectives.classification import ClassificationLoss
from crossvit.tasks.base import parameter_groups
from crossvit.tasks.patch_encoder import PatchEncoderTask
from crossvit.tasks.visual_transformer import VisualTransformerTask
from tests.small import SETTINGS, patch_encoder, visual_transformer

CLASSES = 7


def make(kind: str, **arguments):
    torch.manual_seed(0)
    settings = {"loss": ClassificationLoss(), **SETTINGS, **arguments}
    if kind == "patch_encoder":
        return PatchEncoderTask(patch_encoder(), CLASSES, **settings)
    return VisualTransformerTask(patch_encoder(), visual_transformer(), CLASSES, **settings)


@pytest.fixture
def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch(torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6), torch.arange(6))


@pytest.mark.parametrize("kind", ["patch_encoder", "visual_transformer"])
def test_every_trained_parameter_receives_a_gradient(kind, batch, monkeypatch):
    task = make(kind)
    monkeypatch.setattr(task, "log_figures", lambda figures: None)
    task.training_step(batch, 0).backward()
    for name, parameter in task.named_parameters():
        waits = kind == "patch_encoder" and name.startswith("patch_encoder.proj.")
        assert parameter.requires_grad != waits, name
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) != waits, name
    optimised = {id(p) for group in parameter_groups(task.network, 1.0, {}) for p in group["params"]}
    assert optimised == {id(p) for p in task.parameters() if p.requires_grad}


def test_a_resnet_receives_gradients_too(batch, monkeypatch):
    encoder = PatchEncoder(TimmBackbone("resnet18"), 16, (1, 1))
    for norm in encoder.modules():  # timm starts the last norm of each block at 0: nothing passes it in the first step
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(norm.weight)
    task = PatchEncoderTask(encoder, CLASSES, loss=ClassificationLoss(), **SETTINGS)
    monkeypatch.setattr(task, "log_figures", lambda figures: None)
    task.training_step(batch, 0).backward()
    without = [n for n, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def test_frozen_stages_are_not_optimised():
    encoder = PatchEncoder(TimmBackbone("resnet18"), 16, (1, 1), freeze_at=3)
    task = PatchEncoderTask(encoder, CLASSES, loss=ClassificationLoss(), **SETTINGS)
    optimised = {id(p) for group in parameter_groups(task.network, 1.0, {}) for p in group["params"]}
    frozen = [n for n, p in task.patch_encoder.named_parameters() if id(p) not in optimised]
    assert any("conv1" in name for name in frozen)
    assert not any("layer4" in name for name in frozen)


def test_the_classifier_reads_the_map_whose_cells_are_the_patches(batch):
    task = make("patch_encoder").eval()
    pooled = task.patch_encoder(batch.image).feature_map.mean(dim=(2, 3))
    assert torch.allclose(task(batch.image), task.classifier.linear(pooled), atol=1e-6)


@pytest.mark.parametrize("kind", ["patch_encoder", "visual_transformer"])
def test_the_weight_is_applied_and_the_raw_loss_is_logged(kind, batch, monkeypatch):
    seen = {}
    task = make(kind, loss=ClassificationLoss(weight=3.0, label_smoothing=0.1))
    monkeypatch.setattr(task, "log_figures", seen.update)
    expected = torch.nn.functional.cross_entropy(task(batch.image), batch.label, label_smoothing=0.1).item()
    assert task.training_step(batch, 0).item() == pytest.approx(3 * expected, rel=1e-5)
    assert seen["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert 0 <= seen["acc@1"] <= 1


def test_validation_counts_ties_by_expectation(batch, monkeypatch):
    task, logged = make("patch_encoder").eval(), {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.__setitem__(name, float(value)))
    for parameter in task.classifier.parameters():
        parameter.data.zero_()  # every class scores the same
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert logged == pytest.approx({"val/acc@1": 1 / CLASSES, "val/acc@5": 5 / CLASSES})


def test_what_the_next_stage_takes_over():
    stages = {"patch_encoder": ("patch_encoder.backbone.",), "visual_transformer": ("patch_encoder.", "vision.")}
    for kind, provides in stages.items():
        task = make(kind)
        assert task.provides == provides
        exported = task.export()
        assert all(any(name.startswith(prefix) for name in exported) for prefix in provides)
        assert any(name.startswith("classifier.") for name in exported)
        assert not any(name.startswith(("val_", "loss")) for name in exported)
