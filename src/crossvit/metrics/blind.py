"""What can be had without looking, or without reading: linear baselines that see one side only.

On a balanced test both must stay at chance; what they score above it is the dataset's bias, not understanding. Both are
logistic regressions fitted to the training split (`metrics/logistic.py`), so they have no seed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from crossvit.metrics.logistic import fit_logistic, logistic_logits


def text_only_logits(
    train_tokens: Tensor,
    train_mask: Tensor,
    train_labels: Tensor,
    test_tokens: Tensor,
    test_mask: Tensor,
    *,
    l2: float = 1e-4,
    max_iter: int = 200,
) -> Tensor:
    """Bag of words: logistic regression on how often each token occurs.

    Args:
        train_tokens, test_tokens: (N, M) and (B, M') int64. train_mask, test_mask: bool of the same shapes, True where
            a token is real.
        train_labels: (N,) int64 from 0. Tokens never seen in training count for nothing.
        l2: weight of half the squared norm of the weights, beside the mean cross-entropy.

    Returns:
        (B, K) float32 logits, K = largest training label + 1, at least 2; for `verification_accuracy` or `classification_accuracy`.
    """
    vocabulary = train_tokens[train_mask].unique()
    train, test = (
        _positions(tokens, mask, vocabulary) for tokens, mask in ((train_tokens, train_mask), (test_tokens, test_mask))
    )

    def linear(rows: Tensor, weight: Tensor) -> Tensor:
        # The last row of the table stays zero: padding and unknown tokens.
        table = torch.cat([weight.T, weight.new_zeros(1, len(weight))])
        return F.embedding_bag(rows, table, mode="sum")

    return fit_logistic(linear, train, train_labels, test, len(vocabulary), l2, max_iter)


def image_only_logits(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, *, l2: float = 1e-2, max_iter: int = 200
) -> Tensor:
    """Logistic regression on image features: `downsample`d pixels, or those of a frozen encoder.

    Args:
        train_features, test_features: (N, D) and (B, D), see `logistic_logits`.
        train_labels: (N,) int64 from 0.
        l2: as in `text_only_logits`.

    Returns:
        (B, K) float32 logits.
    """
    return logistic_logits(train_features, train_labels, test_features, l2=l2, max_iter=max_iter)


def downsample(image: Tensor, size: int = 8) -> Tensor:
    """Images (B, ..., 3, H, W), uint8 or float, averaged to size x size and flattened: (B, D) float32. Two images a row are joined."""
    rows = image.float().reshape(-1, *image.shape[-3:])
    return F.adaptive_avg_pool2d(rows, size).reshape(len(image), -1)


def folds(*keys: Tensor, count: int = 5) -> Tensor:
    """Parts of a split that is both fitted on and tested: (N,) int64 from 0, rows that agree in any key in the same part.

    What agrees by way of other rows agrees as well. Parts are as equal in size as that allows: the largest groups are dealt first, each to
    the smallest part. Where the rows hold together, there are fewer parts.

    Args:
        keys: one or more (N,) int64, say of sentence and picture.
        count: most parts.
    """
    places = [key.unique(return_inverse=True)[1] for key in keys]
    group = torch.arange(len(keys[0]))
    settled = False
    while not settled:  # every row takes the least group of those that it agrees with
        before = group
        for place in places:
            group = torch.full_like(group, len(group)).scatter_reduce(0, place, group, "amin")[place]
        settled = torch.equal(group, before)
    group = group.unique(return_inverse=True)[1]
    sizes = group.bincount()
    filled, part = [0] * count, torch.zeros_like(sizes)
    for one in sizes.argsort(descending=True, stable=True).tolist():
        part[one] = smallest = filled.index(min(filled))
        filled[smallest] += int(sizes[one])
    return part[group]


def _positions(tokens: Tensor, mask: Tensor, vocabulary: Tensor) -> Tensor:
    """Tokens as rows of the sorted vocabulary; len(vocabulary) for padding and for what is not in it."""
    place = torch.searchsorted(vocabulary, tokens)
    known = mask & (vocabulary[place.clamp_max(len(vocabulary) - 1)] == tokens)
    return place.masked_fill(~known, len(vocabulary))
