import math

import pytest
import torch

from crossvit.objectives.contrastive import contrastive_loss, soft_cross_entropy


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
