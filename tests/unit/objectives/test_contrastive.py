import math

import pytest
import torch

from crossvit.objectives.contrastive import ContrastiveLoss, contrastive_logits, contrastive_loss, soft_cross_entropy
from tests.losses import gradient_is_right, hand_state, unit


def test_soft_cross_entropy_by_hand():
    # row 0: one positive of probability e^2 / (e^2 + 1 + 1); row 1: two positives of probability 1/3 each; row 2: none
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    positives = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    expected = [math.log(math.exp(2) + 2) - 2, math.log(3), 0.0]
    assert soft_cross_entropy(logits, positives).tolist() == pytest.approx(expected, abs=1e-6)


def test_loss_of_two_orthogonal_pairs_by_hand():
    # cosines are the identity: each row's NLL is log(1 + exp(-scale)), in both directions
    image = text = torch.eye(2)
    positives = torch.eye(2, dtype=torch.bool)
    loss = contrastive_loss(image, text, image, text, torch.tensor(3.0), positives, positives)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-6)


def test_constant_embeddings_give_log_batch():
    row = torch.nn.functional.normalize(torch.ones(5, 4), dim=1)
    positives = torch.eye(5, dtype=torch.bool)
    loss = contrastive_loss(row, row, row, row, torch.tensor(10.0), positives, positives)
    assert loss.item() == pytest.approx(math.log(5), abs=1e-5)


def test_directions_are_not_the_same_number():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2))
    eye = torch.eye(4, dtype=torch.bool)
    scale = torch.tensor(5.0)
    both = contrastive_loss(image, text, image, text, scale, eye, eye)
    rows = soft_cross_entropy(scale * image @ text.t(), eye).mean()
    columns = soft_cross_entropy(scale * text @ image.t(), eye).mean()
    assert both.item() == pytest.approx((rows + columns).item() / 2, abs=1e-6)
    assert abs(rows - columns) > 1e-3


def test_rows_without_a_positive_are_left_out_of_the_mean():
    image = text = torch.eye(3)
    positives = torch.diag(torch.tensor([True, True, False]))
    loss = contrastive_loss(image, text, image, text, torch.tensor(2.0), positives, positives)
    one = math.log(math.exp(2) + 2) - 2
    assert loss.item() == pytest.approx(one, abs=1e-6)


def test_gradient_is_right():
    torch.manual_seed(1)
    image, text = (torch.randn(3, 2, dtype=torch.double, requires_grad=True) for _ in range(2))
    scale = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    positives = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)

    def loss(image, text, scale):
        # `contrastive_loss` computes in fp32; check its formula through soft_cross_entropy's own steps in fp64
        log_p = torch.log_softmax(scale * image @ text.t(), 1)
        return -((log_p * positives).sum(1) / positives.sum(1)).mean()

    assert torch.autograd.gradcheck(loss, (image, text, scale))
    a, b = image.detach().float().requires_grad_(), text.detach().float().requires_grad_()
    s = torch.tensor(2.0, requires_grad=True)
    contrastive_loss(a, b, a, b, s, positives, positives.t()).backward()
    double = (loss(image, text, scale) + loss(text, image, scale)) / 2
    double.backward()
    assert torch.allclose(a.grad.double(), image.grad, atol=1e-6)
    assert torch.allclose(b.grad.double(), text.grad, atol=1e-6)
    assert s.grad.item() == pytest.approx(scale.grad.item(), abs=1e-6)


def test_generated_negatives_are_further_wrong_answers_for_images_alone():
    image = text = torch.eye(2)
    eye = torch.eye(2, dtype=torch.bool)
    negative = torch.tensor([[1.0, 0.0]])  # as close to image 0 as its own caption
    loss = contrastive_loss(image, text, image, text, torch.tensor(3.0), eye, eye, negative)
    e = math.exp(3)
    rows = (math.log(2 * e + 1) - 3 + math.log(e + 2) - 3) / 2
    columns = math.log(1 + math.exp(-3))
    assert loss.item() == pytest.approx((rows + columns) / 2, abs=1e-6)


class TestLabelSmoothing:
    def test_by_hand(self):
        # log p of (3, 0, 0) are 3 - L and twice -L, L = log(e^3 + 2); targets .9 + .1 / 3 and twice .1 / 3
        logits = torch.tensor([[3.0, 0.0, 0.0]])
        positives = torch.tensor([[True, False, False]])
        high = math.log(math.exp(3) + 2)
        expected = high - 3 * (0.9 + 0.1 / 3)
        assert soft_cross_entropy(logits, positives, 0.1).item() == pytest.approx(expected, abs=1e-6)

    def test_several_positives_and_columns_that_are_none(self):
        logits = torch.tensor([[1.0, 0.0, 0.0, -torch.inf]], requires_grad=True)
        positives = torch.tensor([[True, True, False, False]])
        high = math.log(math.exp(1) + 2)
        # the hard part is the mean of both positives, the even part that of the three columns
        expected = 0.8 * (high - 0.5) + 0.2 * (high - 1 / 3)
        loss = soft_cross_entropy(logits, positives, 0.2)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        loss.backward()
        assert torch.isfinite(logits.grad).all() and logits.grad[0, 3] == 0

    def test_rows_without_a_positive_stay_at_zero(self):
        assert soft_cross_entropy(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), 0.3) == 0

    def test_the_gradient_is_right(self):
        positives = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
        target = 0.7 * positives / positives.sum(1, keepdim=True) + 0.1
        gradient_is_right(
            lambda x: soft_cross_entropy(x, positives, 0.3),
            lambda x: -(target.double() * torch.log_softmax(x, 1)).sum(1),
            [unit(2, 3)],
        )

    def test_the_term_uses_it(self):
        state = hand_state(torch.eye(2), torch.eye(2), 3.0)
        expected = math.log(1 + math.exp(-3)) + 0.5 * 0.2 * 3
        assert ContrastiveLoss(label_smoothing=0.2)(state).loss.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_a_share_that_is_none_is_refused(self, share):
        with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\)"):
            ContrastiveLoss(label_smoothing=share)


class TestTerm:
    negatives = {
        "negative_embedding": torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        "negative_present": torch.tensor([True, False]),
    }

    def test_two_orthogonal_pairs_by_hand(self):
        out = ContrastiveLoss()(hand_state(torch.eye(2), torch.eye(2), 3.0))
        assert out.loss.item() == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-6)
        assert out.figures["logit_scale"].item() == pytest.approx(3)
        assert not out.figures["logit_scale"].requires_grad
        assert set(out.figures) == {"logit_scale"}

    def test_generated_captions_that_are_none_do_not_count(self):
        e = math.exp(3)
        rows = (math.log(2 * e + 1) - 3 + math.log(e + 2) - 3) / 2  # one more caption: at 3 for picture 0, at 0 for 1
        loss = ContrastiveLoss()(hand_state(torch.eye(2), torch.eye(2), 3.0, **self.negatives)).loss
        assert loss.item() == pytest.approx((rows + math.log(1 + math.exp(-3))) / 2, abs=1e-6)

    def test_generated_captions_are_ignored_on_request(self):
        term = ContrastiveLoss(generated_negatives=False)
        loss = term(hand_state(torch.eye(2), torch.eye(2), 3.0, **self.negatives)).loss
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-6)
        assert not term.reads_negatives and ContrastiveLoss().reads_negatives

    def test_the_scale_learns(self):
        state = hand_state(torch.eye(2), torch.eye(2), 3.0)
        ContrastiveLoss()(state).loss.backward()
        # d log(1 + e^-s) / d log s = -s / (1 + e^s)
        assert state.logit_scale.grad.item() == pytest.approx(-3 / (1 + math.exp(3)), abs=1e-6)

    def test_logits_stay_in_full_precision_under_autocast(self):
        image, text = unit(4, 64), unit(4, 64, seed=1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = contrastive_logits(image, text, torch.tensor(100.0), text[:1])
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, 100 * image @ torch.cat([text, text[:1]]).t())
