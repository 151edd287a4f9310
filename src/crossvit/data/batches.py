"""The typed batches that pass between data, tasks and evaluation.

All are NamedTuples, so Lightning moves them to the device as they are. Letters: B batch, M text tokens, K negatives.
Images leave the workers as uint8 and are normalised on the device (`CrossViTDataModule.on_after_batch_transfer`).
"""

from typing import NamedTuple

from torch import Tensor


class ImageBatch(NamedTuple):
    """Images with one integer each: a class in classification, an image id in retrieval."""

    image: Tensor  # (B, 3, H, W)
    label: Tensor  # (B,) int64
    index: Tensor  # (B,) int64, position in the dataset


class TextBatch(NamedTuple):
    """Captions alone, for the text side of retrieval."""

    tokens: Tensor  # (B, M) int64
    token_mask: Tensor  # (B, M) bool, True where a token is real
    image_id: Tensor  # (B,) int64, the image the caption was written for
    text_id: Tensor  # (B,) int64, equal for equal captions
    index: Tensor  # (B,) int64


class PairBatch(NamedTuple):
    """Image-text pairs. `image` is (B, 2, 3, H, W) where a statement is about two images (NLVR2).

    Two rows are positives of each other when `image_id` or `text_id` agree. `label` is the relation (1 = true, 0 = false in the binary
    case) or None where every pair is a match. `negatives` holds K captions a row that are false of its image, or None.
    """

    image: Tensor
    tokens: Tensor  # (B, M) int64
    token_mask: Tensor  # (B, M) bool
    image_id: Tensor  # (B,) int64
    text_id: Tensor  # (B,) int64
    index: Tensor  # (B,) int64
    label: Tensor | None = None  # (B,) int64
    negatives: Tensor | None = None  # (B, K, M') int64
    negatives_mask: Tensor | None = None  # (B, K, M') bool
