import torch

from crossvit.objectives.term import known_pairs

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
