import math

import pytest
import torch

from crossvit.objectives.relation import RelationLoss, TwoImageLoss, relation_answers, relation_loss, two_image_answers
from tests.losses import gradient_is_right, hand_state, unit

LOGITS = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 1, 0]])


def labelled(label=(0, 2, 1), **fields):
    """The fusion's answer is the row's picture; the relation head's is LOGITS."""
    asked = []
    values = {
        "label": torch.tensor(label),
        "fuse": lambda *features: asked.append(features[1:]) or features[0][:, 0],
        "relation_logits": lambda pooled: LOGITS,
        "two_image_logits": lambda first, second: first[:, :2] - 2 * second[:, :2],
    }
    return hand_state(torch.eye(3), torch.eye(3), **values | fields), asked


def test_loss_by_hand():
    loss = relation_loss(LOGITS[:2], torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(math.exp(2) + 2) - 2 + math.log(3)) / 2, abs=1e-6)


def test_the_gradient_is_right():
    label = torch.tensor([2, 0, 1])
    gradient_is_right(
        lambda x: relation_loss(x, label),
        lambda x: -torch.log_softmax(x, 1)[torch.arange(3), label].mean(),
        [unit(3, 3)],
    )


def test_relation_term():
    state, asked = labelled()
    out = RelationLoss()(state)
    assert out.loss.item() == pytest.approx(relation_loss(LOGITS, state.label).item())
    assert out.figures["accuracy"].item() == pytest.approx(2 / 3)  # they say 0, 0 and 1
    relation_answers(state)
    assert len(asked) == 1  # two terms that ask pay once
    assert all(
        mine is given for mine, given in zip(asked[0], (state.text, state.text_pooled, state.text_mask), strict=True)
    )


def test_two_image_term_tells_the_pictures_apart():
    second = torch.tensor([[[0.0, 1.0]], [[3.0, 1.0]], [[0.0, 0.0]]])
    state, asked = labelled((0, 1, 0), second_visual=second)
    logits = torch.eye(3)[:, :2] - 2 * second[:, 0]
    out = TwoImageLoss()(state)
    assert out.loss.item() == pytest.approx(relation_loss(logits, state.label).item())
    assert out.figures["accuracy"].item() == pytest.approx((logits.argmax(1) == state.label).float().mean().item())
    two_image_answers(state)
    assert len(asked) == 2
    for features in asked:
        text = (state.text, state.text_pooled, state.text_mask)
        assert all(mine is given for mine, given in zip(features, text, strict=True))


def test_what_the_data_has_to_bring():
    with pytest.raises(ValueError, match="this data has no label"):
        relation_answers(hand_state(torch.eye(3), torch.eye(3)))
    with pytest.raises(ValueError, match="labelled sentences about two images"):
        two_image_answers(labelled()[0])
    for term, two in ((RelationLoss, False), (TwoImageLoss, True)):
        assert term.needs_label
        assert term.needs_two_images == two
