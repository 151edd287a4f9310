import math

import pytest
import torch

from crossvit.objectives.answers import Answers, answers, contrastive_answers
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.objectives.relation import RelationLoss, TwoImageLoss
from crossvit.tasks.pair_state import pair_state
from tests.losses import gradient_is_right, hand_state, unit
from tests.small import cross_vit, pairs, uniform

TERMS = {"itc": ContrastiveLoss(), "itm": MatchingLoss(), "relation": RelationLoss(), "two_image": TwoImageLoss()}
LABEL = [1, 0, 1, 1]
BATCHES = {
    "itc": pairs([0, 1, 2, 2]),
    "itm": pairs([0, 1, 2, 2], negatives=2, without_negatives=[1]),
    "relation": pairs(range(4), label=LABEL),
    "two_image": pairs(range(4), label=LABEL, two_images=True),
}


def test_loss_by_hand():
    # rows: -log softmax of (2, 0) at 0 is log(1 + e^-2), at 1 two more; row 1 is not counted, row 2 gives log 2
    found = Answers(
        torch.tensor([[2.0, 0], [9, 9], [0, 0]]),
        torch.tensor([[1.0, 0], [1, 0], [0, 1]]),
        torch.tensor([True, False, True]),
        share=0.5,
    )
    low = math.log(1 + math.exp(-2))
    assert found.loss().item() == pytest.approx(0.5 * (low + math.log(2)) / 2, abs=1e-6)
    other = torch.tensor([[0.25, 0.75], [1, 0], [1, 0]])
    assert found.loss(other).item() == pytest.approx(0.5 * (low + 0.75 * 2 + math.log(2)) / 2, abs=1e-6)
    assert Answers(*found[:3]).loss() == 2 * found.loss()


def test_the_gradient_is_right():
    target, counted = torch.softmax(unit(3, 4, seed=1), 1), torch.tensor([True, True, False])
    gradient_is_right(
        lambda x: Answers(x, target, counted).loss(),
        lambda x: -(target.double() * torch.log_softmax(x, 1)).sum(1)[:2].mean(),
        [unit(3, 4)],
    )


@pytest.mark.parametrize("term", TERMS)
def test_against_the_labels_it_is_the_loss_of_the_term(term):
    """What an adversary raises is what the term lowers."""
    state = pair_state(cross_vit().eval(), BATCHES[term], uniform())
    hard = {"hard_negatives": True, "generated_negatives": True}
    mine = sum(found.loss() for found in answers(state, term, **hard))
    expected = TERMS[term](state).loss
    assert mine.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("hard", "generated", "rows"), [(0, 0, 4), (1, 0, 12), (0, 1, 12), (1, 1, 20)])
def test_which_pairs_are_asked_about(hard, generated, rows):
    state = pair_state(cross_vit(), BATCHES["itm"], uniform())
    (found,) = answers(state, "itm", bool(hard), bool(generated))
    assert found.logits.shape == found.target.shape == (rows, 2)
    assert found.target[:4].tolist() == [[0, 1]] * 4
    assert found.target[4:].tolist() == [[1, 0]] * (rows - 4)


def test_pairs_that_are_all_false():
    state = pair_state(cross_vit(), pairs(range(3), label=[0, 0, 0]), uniform())
    (found,) = answers(state, "itm", True, True)
    assert found.target.tolist() == [[1, 0]] * 3


def test_several_captions_of_a_picture_share_the_target():
    # rows 0 and 1 show one picture, row 2 is false
    state = hand_state(torch.eye(3), torch.eye(3), 2.0, image_id=[4, 4, 5], label=torch.tensor([1, 1, 0]))
    for found in contrastive_answers(state):
        assert found.target.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]]
        assert found.counted.tolist() == [True, True, False]
        assert found.share == 0.5
        torch.testing.assert_close(found.logits, 2 * torch.eye(3))


def test_each_row_shares_among_its_own_positives():
    # picture 7 has two captions, and the first of them is also that of picture 8
    state = hand_state(torch.eye(3), torch.eye(3), image_id=[7, 7, 8], text_id=[1, 2, 1])
    by_image, by_text = contrastive_answers(state)
    third = 1 / 3
    torch.testing.assert_close(by_image.target, torch.tensor([[third] * 3, [third] * 3, [0.5, 0, 0.5]]))
    torch.testing.assert_close(by_text.target, torch.tensor([[third] * 3, [0.5, 0.5, 0], [third] * 3]))


def test_relations_that_a_batch_does_not_show():
    state = pair_state(cross_vit(num_relations=5), pairs(range(3), label=[0, 1, 1]))
    (found,) = answers(state, "relation", True, True)
    assert found.target.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_the_two_directions_are_not_the_same():
    image, text = unit(3, 4), unit(3, 4, seed=1)
    by_image, by_text = contrastive_answers(hand_state(image, text, 5.0))
    torch.testing.assert_close(by_image.logits, 5 * image @ text.t())
    torch.testing.assert_close(by_text.logits, 5 * text @ image.t())
