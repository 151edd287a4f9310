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

    def test_every_class_holds_out_a_fifth(self):
        labels = torch.tensor([3] * 10 + [1] * 7 + [2])
        held = held_out(labels)
        assert held[labels == 3].sum() == 2 and held[labels == 1].sum() == 2 and held[labels == 2].sum() == 0

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

    def test_rows_that_tie_for_the_last_place_share_it(self):
        train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        votes = neighbour_votes(train, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0]]), 2, temperature=1.0)
        weight = torch.tensor(-1.0).exp().item()
        assert votes[0].tolist() == pytest.approx([1 + weight / 3, 2 * weight / 3], abs=1e-6)

    def test_finds_the_classes_in_any_chunks(self, monkeypatch):
        (train, train_labels), (test, labels) = clouds(200, 0), clouds(60, 1)
        votes = neighbour_votes(train, train_labels, test)
        assert accuracy(votes, labels) > 0.9
        monkeypatch.setattr("crossvit.metrics.ranking.BLOCK", 600)
        assert torch.equal(neighbour_votes(train, train_labels, test), votes)

    @pytest.mark.parametrize("value", [0.0, 0.3])
    def test_constant_features_give_chance(self, value):
        train, labels = torch.full((60, 8), value), torch.arange(60) % 4
        votes = neighbour_votes(train, labels, train)
        assert accuracy(votes, labels) == 0.25 and accuracy(votes, labels, 2) == 0.5
