"""How much a caption sounds like the captions that people write, without any picture."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def caption_plausibility(training: Iterable[Sequence[str]], texts: Iterable[Sequence[str]]) -> Tensor:
    """Log likelihood of texts under the length and the words of training texts, each word by itself: (B,) float64.

    Both distributions are counts plus one, with one cell for any word that training has not seen and one for any longer length. The words'
    order plays no part: two texts of the same words get the same number to the bit.

    Args:
        training, texts: texts as lists of words.

    Raises:
        ValueError: no training text.
    """
    words: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for text in training:
        words.update(text)
        lengths[len(text)] += 1
    if not lengths:
        raise ValueError("caption_plausibility needs training texts")
    of_words = math.log(words.total() + len(words) + 1)
    of_lengths = math.log(lengths.total() + max(lengths) + 2)

    def score(text: Sequence[str]) -> float:
        length = math.log(lengths[len(text)] + 1) - of_lengths
        return math.fsum([length, *(math.log(words[word] + 1) - of_words for word in text)])

    return torch.tensor([score(text) for text in texts], dtype=torch.float64)
