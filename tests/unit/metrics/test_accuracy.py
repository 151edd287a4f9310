"""Acc@k against hand-made ties, against every permutation, and on a collapsed model."""

from itertools import pairwise, permutations
from math import comb

import pytest
import torch

from crossvit.metrics import accuracy_at_k, accuracy_at_k_bounds, chance_at_k, classification_accuracy
from crossvit.metrics.accuracy import rank_counts

NAN, INF = float("nan"), float("inf")


def row(scores, positives):
    return torch.tensor([scores]), torch.tensor([[place in positives for place in range(len(scores))]])


def by_permutation(scores, positives, k):
    """Accuracy over every order in which equal scores may come out."""
    orders = {
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    }
    return sum(any(place in positives for place in order[:k]) for order in orders) / len(orders)


@pytest.mark.parametrize(
    ("scores", "positives", "k", "expected"),
    [
        ([0.9, 0.5, 0.1], {0}, 1, 1.0),
        ([0.5, 0.9, 0.1], {0}, 1, 0.0),
        ([0.5, 0.9, 0.1], {0}, 2, 1.0),
        ([0.5, 0.5], {0}, 1, 0.5),
        ([0.9, 0.5, 0.5, 0.5], {1}, 2, 1 / 3),  # one above, two tied: one place for three
        ([0.9, 0.5, 0.5, 0.5], {1}, 3, 2 / 3),
        ([0.5, 0.5, 0.5, 0.5], {0, 1}, 1, 0.5),
        ([0.5, 0.5, 0.5, 0.5], {0, 1}, 2, 5 / 6),  # 1 - C(2,2) / C(4,2)
        ([0.9, 0.5, 0.5, 0.5, 0.5], {1, 2, 3}, 2, 3 / 4),  # one place for four, three of them right
        ([0.9, 0.1, 0.5], {0, 1}, 1, 1.0),  # any positive is enough
        ([0.3, 0.2], {1}, 5, 1.0),  # k beyond the candidates
        ([0.3, 0.2], set(), 2, 0.0),
        ([NAN, 0.1], {0}, 1, 0.0),
        ([NAN, -INF], {0}, 1, 0.0),  # NaN is below -inf
        ([NAN, -INF], {1}, 1, 1.0),
        ([NAN, NAN, NAN, NAN], {2}, 1, 0.25),
        ([-INF, -INF], {0}, 1, 0.5),
        ([INF, INF, 0.0], {0}, 1, 0.5),
    ],
)
def test_hand_made(scores, positives, k, expected):
    assert accuracy_at_k(*row(scores, positives), k).item() == pytest.approx(expected)


def test_formula_equals_the_mean_over_all_permutations():
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        size = int(torch.randint(2, 7, (), generator=generator))
        scores = torch.randint(0, 3, (size,), generator=generator).float().tolist()
        positives = set(torch.randperm(size, generator=generator)[: 1 + size // 3].tolist())
        for k in range(1, size + 2):
            expected = by_permutation(scores, positives, k)
            assert accuracy_at_k(*row(scores, positives), k).item() == pytest.approx(expected), (scores, positives, k)


@pytest.mark.parametrize("value", [0.0, 0.7, NAN, -INF])
@pytest.mark.parametrize("candidates", [2, 3, 7, 128, 1000])
def test_a_collapsed_model_scores_k_over_n(value, candidates):
    scores = torch.full((4, candidates), value)
    positives = torch.zeros(4, candidates, dtype=torch.bool)
    positives[torch.arange(4), torch.tensor([0, 1, candidates - 1, candidates // 2])] = True
    for k in {1, min(5, candidates), candidates}:
        assert (accuracy_at_k(scores, positives, k) == torch.tensor(k / candidates)).all()


def test_bounds_bracket_the_expectation_and_meet_without_ties():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 4, (50, 9), generator=generator).float()
    positives = torch.zeros(50, 9, dtype=torch.bool)
    positives[:, :2] = True
    worst, best = accuracy_at_k_bounds(scores, positives, 3)
    expected = accuracy_at_k(scores, positives, 3)
    assert (worst <= expected).all() and (expected <= best).all() and (worst < best).any()
    distinct = torch.rand(50, 9, generator=generator)
    worst, best = accuracy_at_k_bounds(distinct, positives, 3)
    assert torch.equal(worst, best) and torch.equal(worst, accuracy_at_k(distinct, positives, 3))
    assert accuracy_at_k_bounds(*row([0.3, 0.2], set()), 3) == (0, 0)  # no positive, though k is beyond the candidates


def test_half_precision_is_compared_as_it_is():
    scores, positives = row([1.0, 1.0009765625, 0.0], {0})  # one fp16 step apart
    assert accuracy_at_k(scores.half(), positives, 1).item() == 0.0
    assert accuracy_at_k(scores.bfloat16(), positives, 1).item() == 0.5  # the same number in bf16


def test_many_positives_stay_finite():
    scores, positives = torch.zeros(1, 5000), torch.zeros(1, 5000, dtype=torch.bool)
    positives[0, :3000] = True
    assert accuracy_at_k(scores, positives, 2).item() == pytest.approx(1 - comb(2000, 2) / comb(5000, 2))
    assert accuracy_at_k(scores, positives, 2500).item() == pytest.approx(1.0)


def test_chance():
    assert chance_at_k(128, 1, 5) == pytest.approx(5 / 128)
    assert chance_at_k(25, 5, 10) == pytest.approx(1 - comb(20, 10) / comb(25, 10))
    assert chance_at_k(3, 2, 2) == 1.0 and chance_at_k(3, 0, 2) == 0.0 and chance_at_k(2, 2) == 1.0
    assert chance_at_k(4) == 0.25 and isinstance(chance_at_k(4), float)
    assert chance_at_k(torch.tensor([4, 8]), 1).tolist() == [0.25, 0.125]
    assert torch.allclose(
        chance_at_k(torch.tensor([4, 8]), torch.tensor([1, 2]), 1), torch.tensor([0.25, 0.25]).double()
    )


def test_classification():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([0, 1, 0])
    assert classification_accuracy(logits, labels).tolist() == pytest.approx([1, 1 / 3, 0])
    assert classification_accuracy(logits, labels, 2).tolist() == pytest.approx([1, 2 / 3, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_at_k(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.bool), 1), r"must both be \(Q, C\)"),
        (lambda: accuracy_at_k(torch.zeros(3), torch.zeros(3, dtype=torch.bool), 1), r"must both be \(Q, C\)"),
        (
            lambda: accuracy_at_k(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), 0),
            "k must be at least 1, got 0",
        ),
        (lambda: classification_accuracy(torch.zeros(2, 3), torch.tensor([0, 3])), r"lie in \[0, 3\), got 0 to 3"),
        (lambda: classification_accuracy(torch.zeros(2, 3), torch.tensor([0])), r"expected logits \(B, K\)"),
        (lambda: chance_at_k(3, 4), "num_positives must lie between 0 and num_candidates"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_inputs():
    assert accuracy_at_k(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), 1).shape == (0,)
    nothing = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)
    assert accuracy_at_k(*nothing, 1).tolist() == [0, 0]
    assert [count.dtype for count in rank_counts(*nothing)] == [torch.int64] * 3
