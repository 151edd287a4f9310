import math

import pytest
import torch

from crossvit.metrics import classification_accuracy, linear_probe_logits, logistic_logits, neighbour_votes
from crossvit.metrics.probe import held_out


def clouds(count: int, seed: int, classes: int = 4, noise: float = 0.3):
    """Rows around one direction for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.eye(classes, 8)
    return centres[labels] + noise * torch.randn(count, 8, generator=generator), labels


def accuracy(scores, labels, k=1):
    return classification_accuracy(scores, labels, k).mean().item()


class TestLogistic:
    def test_the_penalty_by_hand(self):
        """Rows -1 and 1 of the labels 0 and 1. With the difference d of the two logits at 1, the best d solves sigmoid(-d) = l2 d / 2."""
        rows, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        logits = logistic_logits(rows, labels, torch.tensor([[1.0]]), l2=1 / (1 + math.exp(2)))
        assert (logits[0, 1] - logits[0, 0]).item() == pytest.approx(2.0, abs=1e-3)

    def test_features_that_say_nothing_leave_the_shares_of_the_labels(self):
        logits = logistic_logits(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), torch.ones(1, 2), l2=1.0)
        assert (logits[0, 0] - logits[0, 1]).item() == pytest.approx(math.log(3), abs=1e-3)

    def test_the_unit_of_a_feature_is_nothing(self):
        (train, labels), (test, _) = clouds(80, 0), clouds(20, 1)
        unit, shift = torch.tensor([1e3, 1e-4, 1, 1, 1, 1, 1, 1]), torch.tensor([0, 0, 5.0, 0, 0, 0, 0, 0])
        found = logistic_logits(unit * train + shift, labels, unit * test + shift, l2=0.01)
        assert torch.allclose(found, logistic_logits(train, labels, test, l2=0.01), atol=0.01)

    def test_it_stops_where_it_is_told(self):
        (train, labels), (test, _) = clouds(80, 0), clouds(20, 1)
        once = logistic_logits(train, labels, test, l2=0.01, max_iter=1)
        assert not torch.allclose(once, logistic_logits(train, labels, test, l2=0.01), atol=0.1)


class TestLinearProbe:
    def test_finds_the_classes(self):
        (train, train_labels), (test, labels) = clouds(200, 0), clouds(100, 1)
        logits, penalty = linear_probe_logits(train, train_labels, test)
        assert logits.shape == (100, 4) and accuracy(logits, labels) > 0.9
        assert torch.equal(logits, logistic_logits(train, train_labels, test, l2=penalty))

    def test_the_penalty_is_chosen_on_rows_that_were_held_out(self):
        """Labels that the features do not tell: the fit that learns them by heart does worse on other rows."""
        generator = torch.Generator().manual_seed(0)
        train = torch.randn(300, 8, generator=generator)
        labels = (train[:, 0] + 2 * torch.randn(300, generator=generator) > 0).long()
        wide = torch.cat([train, torch.randn(300, 120, generator=generator)], 1)
        _, penalty = linear_probe_logits(wide, labels, wide[:1], penalties=(1e-6, 1.0))
        assert penalty == 1.0

    def test_a_penalty_that_is_too_strong_is_not_chosen(self):
        """One in four rows is of class 1, which only weights tell."""
        labels = (torch.arange(80) % 4 == 0).long()
        assert linear_probe_logits(labels[:, None].float(), labels, torch.ones(1, 1), penalties=(1e-3, 1e3))[1] == 1e-3

    def test_of_equally_good_penalties_the_strongest_is_chosen(self):
        train, labels = clouds(80, 0, noise=0.01)
        assert linear_probe_logits(train, labels, train, penalties=(1e-3, 1e-1, 1e-2))[1] == 1e-1

    def test_every_class_holds_out_a_fifth(self):
        labels = torch.tensor([3] * 10 + [1] * 7 + [2])
        held = held_out(labels)
        assert held.nonzero().flatten().tolist() == [1, 6, 11, 16]

    def test_one_row_a_class(self):
        logits, penalty = linear_probe_logits(torch.eye(3), torch.arange(3), torch.eye(3))
        assert accuracy(logits, torch.arange(3)) == 1.0 and penalty == 1e-1

    def test_constant_features_give_chance(self):
        train, labels = torch.full((40, 8), 0.3), torch.arange(40) % 4
        logits, _ = linear_probe_logits(train, labels, train)
        assert accuracy(logits, labels) == 0.25 and accuracy(logits, labels, 2) == 0.5


class TestNeighbours:
    def test_votes_by_hand(self):
        train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        votes = neighbour_votes(
            train, torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]]), neighbours=2, temperature=0.5
        )
        weight = torch.tensor((0.6 - 1.0) / 0.5).exp().item()
        assert votes[0].tolist() == pytest.approx([1.0, weight], abs=1e-6)
        votes = neighbour_votes(train, torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]]), 3, temperature=0.5)
        assert votes[0].tolist() == pytest.approx([1.0, weight + math.exp(-1 / 0.5)], abs=1e-6)

    def test_rows_that_tie_for_the_last_place_share_it(self):
        train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        votes = neighbour_votes(train, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0]]), 2, temperature=1.0)
        weight = torch.tensor(-1.0).exp().item()
        assert votes[0].tolist() == pytest.approx([1 + weight / 3, 2 * weight / 3], abs=1e-6)
        votes = neighbour_votes(train, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0]]), 3, temperature=1.0)
        assert votes[0].tolist() == pytest.approx([1 + 2 / 3 * weight, 2 * 2 / 3 * weight], abs=1e-6)

    def test_finds_the_classes_in_any_chunks(self, monkeypatch):
        (train, train_labels), (test, labels) = clouds(200, 0), clouds(60, 1)
        votes = neighbour_votes(train, train_labels, test)
        assert accuracy(votes, labels) > 0.9
        assert torch.equal(neighbour_votes(train, train_labels, test, neighbours=20, temperature=0.07), votes)
        monkeypatch.setattr("crossvit.metrics.ranking.BLOCK", 600)
        assert torch.equal(neighbour_votes(train, train_labels, test), votes)

    @pytest.mark.parametrize("value", [0.0, 0.3])
    def test_constant_features_give_chance(self, value):
        train, labels = torch.full((60, 8), value), torch.arange(60) % 4
        votes = neighbour_votes(train, labels, train)
        assert accuracy(votes, labels) == 0.25 and accuracy(votes, labels, 2) == 0.5
