import math

import pytest
import torch

from crossvit.metrics import auroc, balanced_accuracy, f1_chance, f1_score, macro_f1, verification_accuracy


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
    assert balanced_accuracy(torch.tensor([1.0, 0.0]), torch.ones(2)) == 0.5  # one label


def test_auroc_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).float()
    labels = torch.randint(0, 2, (60,), generator=generator)
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    expected = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
    assert auroc(scores, labels) == pytest.approx(expected)
    assert auroc(torch.zeros(10), torch.arange(10) % 2) == 0.5
    assert auroc(torch.tensor([float("nan"), -1.0]), torch.tensor([1, 0])) == 0.0
    for count, labels in ((3, torch.ones(3)), (3, torch.zeros(3)), (0, torch.zeros(0))):
        assert math.isnan(auroc(torch.zeros(count), labels))


def test_f1_by_hand():
    scores, labels = torch.tensor([2.0, 1.0, -1.0, 0.5, -2.0]), torch.tensor([1, 1, 1, 0, 0])
    assert f1_score(scores, labels) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert f1_score(scores, labels.bool(), threshold=0.5) == pytest.approx(
        2 * 2 / (2 * 2 + 0.5 + 1)
    )  # the tie says true by half
    assert f1_score(torch.tensor([float("nan"), 1.0]), torch.tensor([1, 0])) == 0
    assert math.isnan(f1_score(scores, torch.zeros(5)))
    # A coin finds half of the three, and says true of 2.5: 2 x 1.5 / (2.5 + 3).
    assert f1_chance(labels) == pytest.approx(3 / 5.5) == f1_score(torch.zeros(5), labels)


def test_macro_f1_by_hand():
    scores = torch.tensor([[1.0, 0.0, 0.0], [9.0, 8.0, 8.0], [0.0, 1.0, 1.0]])
    # Class 0: 1 of 2 right, 1 wanted: 2/3. Class 1: half of one said, right, of 2 wanted: 2 x 0.5 / 2.5. Class 2 does not occur.
    assert macro_f1(scores, torch.tensor([0, 1, 1])) == pytest.approx((2 / 3 + 0.4) / 2)
    assert macro_f1(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])) == pytest.approx((2 * 1.5 / 5 + 2 * 0.5 / 3) / 2)
    assert math.isnan(macro_f1(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))


def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"logits must be \(B,\) or \(B, 2\), got \(2, 3\)"):
        verification_accuracy(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\)"):
        verification_accuracy(torch.zeros(2), torch.tensor([0, 2]))
    for function in (auroc, f1_score):
        for shape in ((2,), (2, 2)):
            with pytest.raises(ValueError, match=r"scores and labels must both be \(B,\)"):
                function(torch.zeros(2, 2), torch.zeros(shape))
