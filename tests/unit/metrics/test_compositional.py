import pytest
import torch

from crossvit.metrics import by_kind, consistency, consistency_chance, estimate, quad_accuracy, two_way_accuracy
from crossvit.metrics.compositional import QUAD_CHANCE


def test_two_way_ties_count_one_half():
    true = torch.tensor([1.0, 0.0, 0.5, float("nan"), float("nan")])
    false = torch.tensor([0.0, 1.0, 0.5, 0.0, float("nan")])
    assert two_way_accuracy(true, false).tolist() == [1.0, 0.0, 0.5, 0.0, 0.5]
    with pytest.raises(ValueError, match=r"both must be \(B,\)"):
        two_way_accuracy(true, false[:2])


def test_by_kind():
    found = by_kind(torch.tensor([1.0, 0.0, 0.5, 1.0]), ["swap_att", "replace_rel", "swap_att", "swap_att"])
    assert list(found) == ["swap_att", "replace_rel"]
    assert found["swap_att"].value == pytest.approx(2.5 / 3) and found["swap_att"].queries == 3
    assert found["replace_rel"].value == 0.0
    with pytest.raises(ValueError, match="2 values for 1 kinds"):
        by_kind(torch.zeros(2), ["a"])


def test_by_kind_knows_the_clusters_and_the_confidence():
    values, clusters = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 2])
    found = by_kind(values, ["a", "a", "a", "b"], clusters, confidence=0.5)
    assert found["a"] == estimate(torch.ones(3), torch.tensor([0, 0, 1]), 0.5) != estimate(torch.ones(3), None, 0.5)


def test_consistency_needs_the_whole_group():
    correct = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    group = torch.tensor([7, 7, 3, 3, 5, 5])
    assert consistency(correct, group).tolist() == [0.0, 0.25, 1.0]  # groups 3, 5, 7
    for correct, group in ((torch.zeros(2), torch.zeros(3)), (torch.zeros(2, 2), torch.zeros(2, 2))):
        with pytest.raises(ValueError, match=r"both must be \(B,\), got \(2"):
            consistency(correct, group)


def test_the_chance_of_consistency_is_that_of_coin_flips():
    assert consistency_chance(torch.tensor([7, 7, 3, 5, 5, 5])) == pytest.approx((1 / 4 + 1 / 2 + 1 / 8) / 3)
    halves, group = torch.full((6,), 0.5), torch.tensor([7, 7, 3, 5, 5, 5])
    assert consistency(halves, group).mean().item() == pytest.approx(consistency_chance(group))


class TestQuads:
    def found(self, *scores):
        return {name: value.tolist() for name, value in quad_accuracy(torch.tensor(scores)).items()}

    def test_winogrounds_definition(self):
        right = [[0.9, 0.1], [0.2, 0.8]]  # a row is an image
        same_image = [
            [0.9, 0.1],
            [1.0, 1.1],
        ]  # each image likes its caption, but the first caption likes the second image
        same_text = [[0.9, 1.0], [0.1, 1.1]]
        found = self.found(right, same_image, same_text)
        assert found == {"text": [1.0, 1.0, 0.0], "image": [1.0, 0.0, 1.0], "group": [1.0, 0.0, 0.0]}

    def test_ties_count_by_expectation(self):
        collapsed, half = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.9], [0.1, 0.8]]
        found = self.found(collapsed, half)
        assert {name: values[0] for name, values in found.items()} == pytest.approx(QUAD_CHANCE)
        assert [values[1] for values in found.values()] == [
            0.5,
            0.0,
            0.0,
        ]  # of the second caption the first image scores higher

    def test_random_scores_give_chance(self):
        scores = torch.rand(40_000, 2, 2, generator=torch.Generator().manual_seed(0))
        means = {name: values.mean().item() for name, values in quad_accuracy(scores).items()}
        assert means == pytest.approx(QUAD_CHANCE, abs=0.01)

    def test_nan_ranks_last_and_misuse_is_named(self):
        nan = float("nan")
        assert self.found([[1.0, nan], [nan, 1.0]])["group"] == [1.0]
        assert self.found([[nan, 1.0], [1.0, nan]])["text"] == [0.0]
        for shape in ((3, 4), (1, 2, 3)):
            with pytest.raises(ValueError, match=r"scores must be \(B, 2, 2\)"):
                quad_accuracy(torch.zeros(shape))
