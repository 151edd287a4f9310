import pytest
import torch

from crossvit.objectives.term import known_pairs
from tests.small import TERMS

# rows: 0 a true caption, 1 another true caption of the same picture, 2 a false caption of it, 3 another picture with row 0's words
IMAGE = torch.tensor([7, 7, 7, 8])
TEXT = torch.tensor([1, 2, 3, 1])


def test_positives_by_hand():
    true = torch.tensor([True, True, False, True])
    # picture 7 is described by the words of rows 0, 1 and so 3; picture 8 by those of rows 0 and 3 alone
    expected = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)
    assert (known_pairs(IMAGE, TEXT, IMAGE, TEXT, true) == expected).all()


def test_candidates_leave_out_every_pair_the_batch_speaks_of():
    known = known_pairs(IMAGE, TEXT, IMAGE, TEXT, torch.ones(4, dtype=torch.bool))
    expected = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
    assert (known == expected).all()


@pytest.mark.parametrize("name", TERMS)
def test_a_term_weighs_one_where_nothing_is_said(name):
    assert TERMS[name]().weight == 1
    assert TERMS[name](weight=0.25).weight == 0.25
    assert TERMS[name](weight=0.0).weight == 0
    with pytest.raises(ValueError, match="weight must be >= 0, got -1"):
        TERMS[name](weight=-1)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_can_learn_without_generated_captions(name):
    assert TERMS[name]().can_learn(labelled=False, generated=False)
