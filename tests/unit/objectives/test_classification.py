import math

import pytest
import torch

from crossvit.objectives.classification import ClassificationLoss, classification_loss
from tests.losses import gradient_is_right, unit


def test_by_hand():
    # p = e^2 / (e^2 + 1 + 1) for the right class of row 0, and 1 / 3 in row 1
    logits = torch.tensor([[2.0, 0, 0], [1, 1, 1]])
    loss = classification_loss(logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((math.log(math.exp(2) + 2) - 2 + math.log(3)) / 2, abs=1e-6)


def test_label_smoothing_by_hand():
    # two classes, smoothing .2: targets .9 and .1; -log p is log(1 + e^-2) and 2 more
    term = ClassificationLoss(0.5, label_smoothing=0.2)
    expected = math.log(1 + math.exp(-2)) + 0.1 * 2
    assert term(torch.tensor([[2.0, 0]]), torch.tensor([0])).item() == pytest.approx(expected, abs=1e-6)
    assert term.weight == 0.5


def test_the_gradient_is_right():
    label = torch.tensor([2, 0, 1, 1])

    def formula(logits):
        target = 0.9 * torch.eye(3, dtype=torch.double)[label] + 0.1 / 3
        return -(target * torch.log_softmax(logits, 1)).sum(1).mean()

    gradient_is_right(lambda logits: classification_loss(logits, label, 0.1), formula, [unit(4, 3)])


def test_half_precision_logits_are_compared_in_full():
    assert classification_loss(torch.zeros(1, 3).bfloat16(), torch.tensor([0])).dtype == torch.float32


def test_without_settings_it_is_plain_cross_entropy_of_weight_one():
    logits, label = unit(4, 3), torch.tensor([2, 0, 1, 1])
    assert ClassificationLoss()(logits, label) == classification_loss(logits, label)
    assert classification_loss(logits, label).item() == pytest.approx(
        -torch.log_softmax(logits, 1)[torch.arange(4), label].mean().item()
    )
    assert ClassificationLoss().weight == 1
