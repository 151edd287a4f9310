"""Pictures that look the same: scaled, saved anew, or copied. N: number of pictures."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BITS = 3
"""Pictures are looked at side by side if at most this many of the 64 bits of their looks differ."""
LEVELS = 24
"""They look the same if no cell of their thumbnails differs by more than this many of 255 levels in any colour."""
SIDE = 16  # of a thumbnail, in cells

_FLAT = 2.0  # levels; a picture with less contrast has no look
_CROWD = 5_000  # a quarter of a look that more pictures share tells nothing
_STEP = 2_000_000  # comparisons at a time


def look(picture: Tensor) -> int | None:
    """Difference hash: for each cell of an 8 x 9 grey thumbnail but the last of a row, whether its right neighbour is lighter.

    picture: uint8 (3, H, W). Returns 64 bits, or None for a picture without contrast.
    """
    grey = _shrink(picture, 8, 9).float().mean(dim=0)
    if float(grey.std()) < _FLAT:
        return None
    return int.from_bytes(np.packbits((grey[:, 1:] > grey[:, :-1]).numpy()).tobytes(), "big")


def thumbnail(picture: Tensor) -> np.ndarray:
    """uint8 (3, H, W) -> uint8 (3, SIDE, SIDE), every pixel counted."""
    return _shrink(picture, SIDE, SIDE).numpy()


def same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether thumbnails show the same picture: two uint8 (..., 3, SIDE, SIDE) -> bool (...)."""
    difference = np.abs(first.astype(np.int16) - second.astype(np.int16))
    return difference.max(axis=(-3, -2, -1)) <= LEVELS


class NearPairs:
    """The pairs (i, j), i < j, of looks that differ in at most BITS bits, each once, as int64 (p, 2) at a time.

    Two numbers that differ in 3 bits agree in one quarter of their 64: only those that share a quarter are compared.

    Args:
        looks: uint64 (N,).

    Attributes:
        crowded: pictures whose quarter so many others share that it was passed over; their pairs may be incomplete.
    """

    def __init__(self, looks: np.ndarray) -> None:
        self.quarters = np.ascontiguousarray(looks).view(np.uint16).reshape(-1, BITS + 1)
        self.crowded = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for quarter in range(BITS + 1):
            values = self.quarters[:, quarter]
            order = np.argsort(values, kind="stable")
            ends = np.searchsorted(values[order], values[order], side="right")
            count = ends - np.arange(len(order)) - 1  # partners behind each place of the order
            starts = np.searchsorted(values[order], values[order], side="left")
            crowd = ends - starts > _CROWD
            self.crowded = max(self.crowded, int(crowd.sum()))
            count[crowd] = 0
            total = np.cumsum(count)
            place = 0
            while place < len(order):
                before = total[place - 1] if place else 0
                stop = max(place + 1, int(np.searchsorted(total, before + _STEP, side="right")))
                yield self._compare(quarter, np.arange(place, stop), count[place:stop], order)
                place = stop

    def _compare(self, quarter: int, places: np.ndarray, count: np.ndarray, order: np.ndarray) -> np.ndarray:
        first = np.repeat(places, count)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
        i, j = order[first], order[second]
        bits = _bits()[self.quarters[i] ^ self.quarters[j]]
        keep = bits.sum(axis=1) <= BITS
        keep &= (bits[:, :quarter] > 0).all(axis=1)  # not found by an earlier quarter
        return np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1)[keep]


def _shrink(picture: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(picture[None], size=(height, width), mode="bilinear", antialias=True)[0]


@cache
def _bits() -> np.ndarray:
    """Bits that are set in each number of 16."""
    return np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)
