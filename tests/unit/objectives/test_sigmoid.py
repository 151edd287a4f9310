import math

import pytest
import torch
from torch.nn import functional as F

from crossvit.objectives.sigmoid import SigmoidLoss, sigmoid_loss
from tests.losses import gradient_is_right, hand_state, unit

EYE = torch.eye(2)


def test_a_row_by_hand():
    # z x logit: +2 for the positive, +1 and -3 for the two negatives; each gives log(1 + exp(-z x logit))
    loss = sigmoid_loss(torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[True, False, False]]))
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


def test_minus_infinity_counts_as_nothing():
    logits = torch.tensor([[2.0, -torch.inf]], requires_grad=True)
    loss = sigmoid_loss(logits, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    loss.backward()
    # d/dx log(1 + exp(-x)) = -sigmoid(-x)
    assert logits.grad.tolist() == [pytest.approx([-1 / (1 + math.exp(2)), 0.0])]


def test_the_gradient_is_right():
    positives = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    sign = torch.where(positives, 1.0, -1.0)
    gradient_is_right(
        lambda x: sigmoid_loss(x, positives), lambda x: torch.log1p(torch.exp(-sign * x)).sum(1), [3 * unit(2, 3)]
    )


def test_half_precision_logits_are_summed_in_full():
    logits = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    loss = sigmoid_loss(logits, torch.ones(1, 4096, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * math.log(1 + math.exp(-1)), rel=1e-5)


def test_two_orthogonal_pairs_by_hand():
    # logits are 3 - 1 on the diagonal and 0 - 1 elsewhere: log(1 + e^-2) + log(1 + e^-1) for each picture, and the mean over pictures
    out = SigmoidLoss()(hand_state(EYE, EYE, scale=3.0, bias=-1.0))
    assert out.loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)), abs=1e-6)
    assert out.figures["logit_scale"].item() == pytest.approx(3.0)
    assert out.figures["logit_bias"].item() == -1.0
    assert not any(figure.requires_grad for figure in out.figures.values())


def test_it_is_the_published_sum_over_pairs():
    image, text = unit(4, 3), unit(4, 3, seed=1)
    state = hand_state(image, text, scale=10.0, bias=-2.0)
    z = 2 * torch.eye(4) - 1
    expected = -F.logsigmoid(z * (10 * image @ text.t() - 2)).sum() / 4
    assert SigmoidLoss()(state).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_positives_are_those_of_the_ids_and_false_pairs_are_to_be_rejected():
    image = text = torch.eye(3)
    state = hand_state(image, text, image_id=[5, 5, 6], label=torch.tensor([1, 1, 0]))
    # pictures 0 and 1 are one: captions 0 and 1 are both true of both; caption 2 is true of none
    z = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, -1.0]])
    expected = -F.logsigmoid(z * torch.eye(3)).sum() / 3
    assert SigmoidLoss()(state).loss.item() == pytest.approx(expected.item(), rel=1e-6)


class TestGeneratedNegatives:
    # caption 0 is right of picture 0's own, caption 1 is a filler of a row that has fewer
    state = {
        "negative_embedding": torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        "negative_present": torch.tensor([True, False]),
    }

    def test_they_are_further_captions_to_reject(self):
        own = math.log(1 + math.exp(-3)) + math.log(2)  # logits 3 and 0
        loss = SigmoidLoss()(hand_state(EYE, EYE, scale=3.0, **self.state)).loss
        # logits of the false caption: 3 for picture 0 and 0 for picture 1
        assert loss.item() == pytest.approx(own + (math.log(1 + math.exp(3)) + math.log(2)) / 2, abs=1e-6)

    def test_they_are_ignored_on_request(self):
        term = SigmoidLoss(generated_negatives=False)
        with_them, without = (term(hand_state(EYE, EYE, **fields)).loss for fields in (self.state, {}))
        assert with_them == without
        assert not term.reads_negatives
        assert SigmoidLoss().reads_negatives

    def test_a_data_set_without_any(self):
        assert (
            SigmoidLoss()(hand_state(EYE, EYE)).loss
            == SigmoidLoss(generated_negatives=False)(hand_state(EYE, EYE)).loss
        )


def test_scale_and_bias_learn():
    state = hand_state(unit(3, 4), unit(3, 4, seed=1), bias=-1.0)
    SigmoidLoss()(state).loss.backward()
    assert state.logit_scale.grad != 0
    assert state.logit_bias.grad != 0
