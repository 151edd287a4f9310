import math

import pytest
import torch

from crossvit.objectives.matching import MatchingLoss, draw_hard_negatives, draw_negatives, matching_loss
from crossvit.tasks.cross_modal import pair_state
from tests.small import cross_vit, pairs, uniform


def test_loss_by_hand_leaves_out_what_is_not_counted():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [9.0, -9.0]])
    loss, count = matching_loss(logits, torch.tensor([1, 1, 1]), torch.tensor([True, True, False]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert count == 2


def test_no_counted_pair_gives_zero_not_nan():
    loss, _ = matching_loss(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool))
    assert loss == 0


def test_draw_follows_the_softmax_of_the_similarity():
    similarity = torch.tensor([[0.0, math.log(3.0), 5.0, math.log(6.0)]])
    allowed = torch.tensor([[True, True, False, True]])
    # cumulative shares of the allowed columns 0, 1, 3 are .1, .4, 1.0
    u = torch.tensor([0.05, 0.15, 0.39, 0.41, 0.99])
    index, drawn = draw_hard_negatives(similarity.expand(5, -1), allowed.expand(5, -1), u)
    assert index.tolist() == [0, 1, 1, 3, 3]
    assert drawn.all()


def test_what_is_not_allowed_is_never_drawn():
    torch.manual_seed(0)
    allowed = torch.rand(2000, 7) < 0.4
    similarity = 100 * torch.randn(2000, 7)  # shares that underflow included
    for u in (torch.zeros(2000), torch.rand(2000), torch.full((2000,), 1 - 2**-24)):
        index, drawn = draw_hard_negatives(similarity, allowed, u)
        assert (drawn == allowed.any(1)).all()
        assert allowed[torch.arange(2000), index][drawn].all()


def test_a_row_without_any_negative_is_skipped():
    index, drawn = draw_hard_negatives(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), torch.tensor([0.5]))
    assert not drawn.item()
    assert index.item() == 0


def test_negatives_drawn_at_random_do_not_look_at_the_likeness():
    state = pair_state(cross_vit(), pairs(range(8)), uniform())
    allowed = ~torch.eye(8, dtype=torch.bool)
    cosine = state.logit_scale.exp() * state.image_embedding @ state.text_embedding.t()
    for random, logits in ((True, torch.zeros(8, 8)), (False, cosine)):
        expected, _ = draw_hard_negatives(logits, allowed, state.uniform(16)[:8])
        assert torch.equal(draw_negatives(state, random).text, expected)
    hard, random = (MatchingLoss(hard_negatives=way)(state).loss for way in (True, "random"))
    assert hard != random
