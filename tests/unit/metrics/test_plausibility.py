import math

import pytest
import torch

from crossvit.metrics import caption_plausibility, two_way_accuracy


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


def test_by_hand():
    found = caption_plausibility(words("a dog", "a cat runs"), words("a dog"))
    length = 2 / 7  # one of two texts and one more, over two texts and the lengths 0, 1, 2, 3 and any longer
    a, dog = 3 / 10, 2 / 10  # over five words, four different ones and any other
    assert found[0].item() == pytest.approx(math.log(length * a * dog)) and found.dtype == torch.float64
    two, three = caption_plausibility(words("a dog", "a cat"), words("a dog", "a dog dog")).exp().tolist()
    # Both texts of training have two words: 3 / (2 + 4) for that length, 1 / 6 for a longer one; four words, three different ones.
    assert two == pytest.approx(3 / 6 * 3 / 8 * 2 / 8) and three == pytest.approx(1 / 6 * 3 / 8 * 2 / 8 * 2 / 8)


def test_usual_words_and_lengths_are_likelier_and_their_order_is_nothing():
    training = words(*["a dog runs on grass"] * 20, *["a cat sits"] * 5)
    usual, odd, swapped, longer = caption_plausibility(
        training, words("a dog runs", "a gnu runs", "runs dog a", "a dog runs on a dog a dog a dog")
    )
    assert usual > odd and usual == swapped and usual > longer
    assert two_way_accuracy(usual[None], swapped[None]).item() == 0.5


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="needs training texts"):
        caption_plausibility([], words("a"))
