import pytest
import torch

from crossvit.metrics import by_kind, consistency, two_way_accuracy


def test_two_way_ties_count_one_half():
    true = torch.tensor([1.0, 0.0, 0.5, float("nan"), float("nan")])
    false = torch.tensor([0.0, 1.0, 0.5, 0.0, float("nan")])
    assert two_way_accuracy(true, false).tolist() == [1.0, 0.0, 0.5, 0.0, 0.5]
    with pytest.raises(ValueError):
        two_way_accuracy(true, false[:2])


def test_by_kind():
    found = by_kind(torch.tensor([1.0, 0.0, 0.5, 1.0]), ["swap_att", "replace_rel", "swap_att", "swap_att"])
    assert list(found) == ["swap_att", "replace_rel"]
    assert found["swap_att"].value == pytest.approx(2.5 / 3) and found["swap_att"].queries == 3
    assert found["replace_rel"].value == 0.0
    with pytest.raises(ValueError):
        by_kind(torch.zeros(2), ["a"])


def test_consistency_needs_the_whole_group():
    correct = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    group = torch.tensor([7, 7, 3, 3, 5, 5])
    assert consistency(correct, group).tolist() == [0.0, 0.25, 1.0]  # groups 3, 5, 7
