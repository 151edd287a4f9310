import pytest
import torch

from crossvit.metrics import precision_at_k


def test_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.5, 0.9]])
    positives = torch.tensor([[True, False, True, True], [True, False, False, False]])
    # Second query: the first place is taken, three tie for the second, one of them is right.
    assert precision_at_k(scores, positives, 1).tolist() == [1, 0]
    assert precision_at_k(scores, positives, 2).tolist() == pytest.approx([1 / 2, 1 / 6])
    assert precision_at_k(scores, positives, 3).tolist() == pytest.approx([2 / 3, 2 / 9])
    assert precision_at_k(scores, positives, 4).tolist() == [0.75, 0.25]


def test_each_query_may_have_a_k_of_its_own():
    scores, positives = torch.tensor([[3.0, 2, 1]]).repeat(3, 1), torch.tensor([[True, False, True]]).repeat(3, 1)
    assert precision_at_k(scores, positives, torch.tensor([0, 1, 3])).tolist() == pytest.approx([0, 1, 2 / 3])
    for rows in (3, 0):
        nothing = precision_at_k(scores[:rows], positives[:rows], torch.zeros(rows, dtype=torch.int64))
        assert nothing.tolist() == [0] * rows and nothing.dtype == torch.float64


def test_a_collapsed_model_has_the_share_of_positives():
    positives = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    for k in (1, 7, 40):
        torch.testing.assert_close(precision_at_k(torch.zeros(5, 40), positives, k), positives.double().mean(1))


def test_nan_ranks_last():
    scores = torch.tensor([[float("nan"), 0.0, float("-inf")]])
    assert precision_at_k(scores, torch.tensor([[True, False, False]]), 2).item() == 0


def test_misuse_is_named():
    for k in (0, 4, torch.tensor([-1])):
        with pytest.raises(ValueError, match="k must lie between 1 and the 3 candidates"):
            precision_at_k(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), k)
    with pytest.raises(ValueError, match=r"must both be \(Q, C\)"):
        precision_at_k(torch.zeros(1, 3), torch.zeros(1, 2, dtype=torch.bool), 1)
