"""Every picture read once: is it there, does it decode, what are its fingerprints."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from crossvit.data.checks.look_alikes import SIDE, look, thumbnail
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample, decode_bytes
from crossvit.data.reading.pictures import Pictures

_CHUNK = 64  # pictures that a worker hands over at a time
_MIN_SIDE = 64  # large JPEGs are decoded at a fraction of their size: enough for a look, and damage shows as well


class Prints(NamedTuple):
    """Of n pictures: hashes of their files and their looks, uint64 (n,), and whether they decode and have a look, bool (n,)."""

    content: np.ndarray
    look: np.ndarray
    whole: np.ndarray
    has_look: np.ndarray


def scan(
    pictures: Pictures, workers: int, progress: Callable[[int], None] = lambda count: None
) -> tuple[Prints, list[BadRecord]]:
    """Read and decode every picture; 18 bytes of each are kept.

    Args:
        pictures: the files.
        workers: processes.
        progress: called with the number of pictures done since the last call.

    Returns:
        Their fingerprints, and the pictures that are missing or do not decode.
    """
    count = len(pictures)
    prints = Prints(*(np.zeros(count, dtype=kind) for kind in (np.uint64, np.uint64, bool, bool)))
    bad: list[BadRecord] = []
    for start, rows, wrong in _read(_Printer(pictures), count, workers):
        for column, values in zip(prints, zip(*rows, strict=True), strict=True):
            column[start : start + len(rows)] = values
        bad += wrong
        progress(len(rows))
    return prints, bad


def thumbnails(pictures: Sequence[tuple[Pictures, int]], workers: int) -> np.ndarray:
    """uint8 (n, 3, SIDE, SIDE) of pictures by list and position; black where one is gone since it was scanned."""
    found = np.zeros((len(pictures), 3, SIDE, SIDE), dtype=np.uint8)
    for start, rows, _ in _read(_Shrinker(pictures), len(pictures), workers):
        found[start : start + len(rows)] = rows
    return found


class _Reader(Dataset):
    """`read(i)` for many i at a time, and what could not be read."""

    nothing: Any

    def __getitems__(self, positions: list[int]) -> tuple[int, list[Any], list[BadRecord]]:
        rows, bad = [], []
        for position in positions:
            try:
                rows.append(self.read(position))
            except BadSample as error:
                rows.append(self.nothing)
                bad.append(BadRecord(error.path, error.reason))
        return positions[0], rows, bad


class _Printer(_Reader):
    nothing = (0, 0, False, False)

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def read(self, position: int) -> tuple[int, int, bool, bool]:
        content = self.pictures.encoded(position)
        found = look(decode_bytes(content, self.pictures.path(position), _MIN_SIDE))
        digest = hashlib.blake2b(content, digest_size=8).digest()
        return int.from_bytes(digest, "big"), found or 0, True, found is not None


class _Shrinker(_Reader):
    nothing = np.zeros((3, SIDE, SIDE), dtype=np.uint8)

    def __init__(self, pictures: Sequence[tuple[Pictures, int]]) -> None:
        self.pictures = pictures

    def read(self, position: int) -> np.ndarray:
        pictures, place = self.pictures[position]
        return thumbnail(pictures.read(place, _MIN_SIDE))


def _read(reader: _Reader, count: int, workers: int) -> Iterator[tuple[int, list[Any], list[BadRecord]]]:
    """In order, in several processes where that is worth it."""
    if workers == 1 or count <= _CHUNK:
        workers = 0
    return iter(DataLoader(reader, sampler=range(count), batch_size=_CHUNK, num_workers=workers, collate_fn=_as_is))


def _as_is(chunk: Any) -> Any:
    return chunk
