"""Which image and which text answer each other."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

IMAGE_TO_TEXT = "image->text"
TEXT_TO_IMAGE = "text->image"

BlockScore = Callable[[slice, slice], Tensor]  # image slice, text slice -> (i, t)
PairScore = Callable[[Tensor, Tensor], Tensor]  # image rows (p,), text rows (p,) -> (p,)


class Side(NamedTuple):
    """One direction of retrieval. The score functions of a corpus take (images, texts); a side asks (queries, candidates)."""

    positives_of: Callable[[Tensor], Tensor]  # query rows (q,) -> (q, num_candidates) bool
    cluster: Tensor  # (num_queries,) int64, the image a query belongs to
    num_candidates: int
    image_queries: bool

    def block(self, score: BlockScore) -> BlockScore:
        """`score` as (query slice, candidate slice) -> (q, c)."""
        return score if self.image_queries else lambda queries, candidates: score(candidates, queries).T

    def pair(self, score: PairScore) -> PairScore:
        """`score` as (query rows, candidate rows) -> (p,)."""
        return score if self.image_queries else lambda queries, candidates: score(candidates, queries)


class ImageTextPairs:
    """Positives of a retrieval corpus by ids: a text answers an image if it, or a text equal to it, was written for that image.

    Masks are made for the rows asked for, so the (I, T) matrix never exists as a whole.

    Args:
        image_id: (I,) int64, one entry an image row. Several rows may share an id (two views of one study).
        text_image_id: (T,) int64, the image each text was written for. An id without an image row is allowed: the text then has no
            positive unless an equal text has one.
        text_id: (T,) int64, equal for equal texts (identical reports are positives of each other's images); None: texts all differ.

    Raises:
        ValueError: an argument is empty or not a vector of integers, or text_id and text_image_id differ in length.
    """

    def __init__(self, image_id: Tensor, text_image_id: Tensor, text_id: Tensor | None = None) -> None:
        text_id = torch.arange(len(text_image_id), device=text_image_id.device) if text_id is None else text_id
        for name, ids in (("image_id", image_id), ("text_image_id", text_image_id), ("text_id", text_id)):
            if ids.ndim != 1 or not len(ids) or ids.dtype.is_floating_point or ids.dtype == torch.bool:
                raise ValueError(f"{name} must be a non-empty vector of integers, got {ids.dtype} {tuple(ids.shape)}")
        if len(text_id) != len(text_image_id):
            raise ValueError(f"text_id has {len(text_id)} entries, text_image_id {len(text_image_id)}")
        self.image_id, self.text_image_id = image_id.cpu(), text_image_id.cpu()
        self.num_images, self.num_texts = len(image_id), len(text_image_id)
        owners = torch.cat([self.image_id, self.text_image_id]).unique()
        self._num_owners = len(owners)
        self._image_owner = torch.searchsorted(owners, self.image_id)
        distinct, self._text_group = text_id.cpu().unique(return_inverse=True)
        self._num_groups = len(distinct)
        # The relation itself, as a list of (owner, group): one entry for each caption, fewer where captions repeat.
        text_owner = torch.searchsorted(owners, self.text_image_id)
        self._owner, self._group = (
            row.contiguous() for row in torch.stack([text_owner, self._text_group]).unique(dim=1)
        )
        self._sorted_group, self._by_group = self._group.sort()

    @property
    def sides(self) -> dict[str, Side]:
        """Both directions by name."""
        return {
            IMAGE_TO_TEXT: Side(self.texts_of, self.image_id, self.num_texts, True),
            TEXT_TO_IMAGE: Side(self.images_of, self.text_image_id, self.num_images, False),
        }

    def texts_of(self, images: Tensor) -> Tensor:
        """Image rows (q,) -> (q, T) bool, True where the text is a positive."""
        owners, back = self._image_owner[images].unique(return_inverse=True)
        entry, row = _entries_of(owners, self._owner)
        mask = torch.zeros(len(owners), self._num_groups, dtype=torch.bool)
        mask[row, self._group[entry]] = True
        return _take(mask, back, self._text_group)

    def images_of(self, texts: Tensor) -> Tensor:
        """Text rows (q,) -> (q, I) bool, True where the image is a positive."""
        groups, back = self._text_group[texts].unique(return_inverse=True)
        entry, row = _entries_of(groups, self._sorted_group)
        mask = torch.zeros(len(groups), self._num_owners, dtype=torch.bool)
        mask[row, self._owner[self._by_group[entry]]] = True
        return _take(mask, back, self._image_owner)


def _entries_of(keys: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of the ascending `column` that equal one of the distinct `keys`: (positions, which key), both (n,)."""
    start = torch.searchsorted(column, keys)
    count = torch.searchsorted(column, keys, right=True) - start
    row = torch.arange(len(keys)).repeat_interleave(count)
    offset = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    return start[row] + offset, row


def _take(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """mask[rows][:, columns], without a copy of what is in place already: ids often are distinct and in order."""
    for dim, wanted in ((0, rows), (1, columns)):
        if not torch.equal(wanted, torch.arange(mask.shape[dim])):
            mask = mask.index_select(dim, wanted)
    return mask
