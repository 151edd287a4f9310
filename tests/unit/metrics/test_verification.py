import math

import pytest
import torch

from crossvit.metrics import auroc, balanced_accuracy, verification_accuracy


def test_ties_count_one_half():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 2.0]])
    labels = torch.tensor([1, 0, 1])
    assert verification_accuracy(logits, labels).tolist() == [1.0, 0.0, 0.5]
    margin = logits[:, 1] - logits[:, 0]
    assert verification_accuracy(margin, labels).tolist() == [1.0, 0.0, 0.5]
    assert verification_accuracy(margin, labels.bool(), threshold=1.0).tolist() == [0.5, 0.5, 0.0]


def test_a_model_that_always_says_true_is_balanced_at_half():
    labels = torch.tensor([1, 1, 1, 0])
    correct = verification_accuracy(torch.ones(4), labels)
    assert correct.mean().item() == 0.75 and balanced_accuracy(correct, labels) == 0.5
    assert math.isnan(balanced_accuracy(torch.zeros(0), torch.zeros(0)))


def test_auroc_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).float()
    labels = torch.randint(0, 2, (60,), generator=generator)
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    expected = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
    assert auroc(scores, labels) == pytest.approx(expected)
    assert auroc(torch.zeros(10), torch.arange(10) % 2) == 0.5
    assert auroc(torch.tensor([float("nan"), -1.0]), torch.tensor([1, 0])) == 0.0
    assert math.isnan(auroc(torch.zeros(3), torch.ones(3)))


def test_misuse_is_named():
    with pytest.raises(ValueError):
        verification_accuracy(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError):
        verification_accuracy(torch.zeros(2), torch.tensor([0, 2]))
    with pytest.raises(ValueError):
        auroc(torch.zeros(2, 2), torch.zeros(2))
