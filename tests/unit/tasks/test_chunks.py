"""Towers run in parts give the loss and the gradients of the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crossvit.errors import UserError
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import CrossDualLoss, DistillationLoss
from crossvit.objectives.masked import MaskedLanguageLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.objectives.relation import TwoImageLoss
from crossvit.objectives.sigmoid import SigmoidLoss
from tests.distributed import run_distributed
from tests.small import cross_modal, pairs

BATCH = pairs([0, 1, 2, 3, 4, 1, 5, 6], [0, 1, 2, 3, 4, 5, 6, 0], negatives=1)
TERMS = {
    "dual": lambda: {"itc": ContrastiveLoss(tile=3)},
    "sigmoid": lambda: {"sigmoid": SigmoidLoss(tile=3)},
    "matching": lambda: {"itc": ContrastiveLoss(), "itm": MatchingLoss(), "crossdual": CrossDualLoss()},
    "words": lambda: {"itm": MatchingLoss(), "mlm": MaskedLanguageLoss()},
    "teacher": lambda: {"itc": ContrastiveLoss(), "distill": DistillationLoss()},
    "pgd": lambda: {"itm": MatchingLoss(), "adversarial": AdversarialLoss(0.5, steps=2)},
    "villa": lambda: {"itm": MatchingLoss(), "adversarial": AdversarialLoss(0.5, "villa", kl_detach=False)},
}


def step(kind: str, micro_batch: int | None, batch=BATCH, dropout: float = 0.0, scale: float = 1.0):
    """Loss and gradients by name of one training step."""
    task = cross_modal(TERMS[kind]() if kind in TERMS else {"two_image": TwoImageLoss()}, micro_batch=micro_batch)
    task.log_figures = lambda figures: None
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    if scale != 1.0:
        type(task).loss_scale, kept = property(lambda self: scale), type(task).loss_scale
    torch.manual_seed(3)
    try:
        loss = task.training_step(batch, 0)
    finally:
        if scale != 1.0:
            type(task).loss_scale = kept
    (scale * loss).backward()
    return loss.item(), {n: p.grad / scale for n, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_loss_and_gradients_are_those_of_the_whole(kind, micro_batch):
    loss, grads = step(kind, micro_batch)
    expected, whole = step(kind, None)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert grads.keys() == whole.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole[name], rtol=1e-3, atol=2e-5, msg=name)


def test_two_pictures_a_statement():
    batch = pairs(range(5), label=[0, 1, 1, 0, 1], two_images=True)
    torch.testing.assert_close(step("two_image", 2, batch), step("two_image", None, batch), rtol=1e-3, atol=2e-6)


def test_a_scaled_loss_gives_the_same_gradient():
    torch.testing.assert_close(step("matching", 3, scale=1024.0)[1], step("matching", None)[1], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("kind", ["dual", "sigmoid", "matching"])
def test_in_half_precision_the_loss_is_differentiated_as_the_trainer_does_it(kind):
    """Outside of autocast; within it the logits, which are fp32, would have a gradient that is 0.5 to 1 % off."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        task = cross_modal(TERMS[kind](), micro_batch=4)
        task.log_figures = lambda figures: None
        torch.manual_seed(3)
        parts = task.training_step(BATCH, 0)
        task_of_whole = cross_modal(TERMS[kind]())
        task_of_whole.log_figures = lambda figures: None
        torch.manual_seed(3)
        whole = task_of_whole.training_step(BATCH, 0)
    parts.backward()
    whole.backward()
    found, expected = (
        torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
        for one in (task, task_of_whole)
    )
    assert (found - expected).norm() < 0.002 * expected.norm()


def test_dropout_is_the_same_in_both_passes():
    """By differences: the gradient is that of the loss that was computed."""
    task = cross_modal(TERMS["dual"](), micro_batch=3)
    task.log_figures = lambda figures: None
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5

    def loss():
        torch.manual_seed(3)
        return task.training_step(BATCH, 0)

    loss().backward()
    for parameter in (next(part.parameters()) for part in (task.model.itc_image, task.model.vision)):
        way = parameter.grad / parameter.grad.norm()
        values = []
        for side in (1, -1):
            with torch.no_grad():
                parameter += side * 1e-3 * way
            values.append(loss().item())
            with torch.no_grad():
                parameter -= side * 1e-3 * way
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(parameter.grad.norm().item(), rel=0.05)


def _ranks(rank: int, world_size: int):
    task = cross_modal(TERMS["matching"](), micro_batch=2)
    task.log_figures = lambda figures: None
    own = type(BATCH)(*(None if x is None else x[rank::world_size] for x in BATCH))
    wrapped = DistributedDataParallel(_Step(task))
    wrapped(own).backward()
    return {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}


class _Step(nn.Module):
    def __init__(self, task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch):
        return self.task.training_step(batch, 0)


def test_two_processes_give_the_gradients_of_one():
    whole = step("matching", None)[1]
    for grads in run_distributed(_ranks, 2):
        for name, grad in grads.items():
            torch.testing.assert_close(grad, whole[name], rtol=1e-3, atol=2e-5, msg=name)


def test_attacked_patches_cannot_train_a_cnn_that_runs_in_parts():
    terms = {"itm": MatchingLoss(), "adversarial": AdversarialLoss(through_cnn=True)}
    with pytest.raises(UserError, match="through_cnn=true needs .* set micro_batch=null"):
        cross_modal(terms, micro_batch=2)
