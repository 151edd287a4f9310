"""Outputs of a frozen network, kept: a picture that is not augmented has the same features in every epoch."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


class RowMemory:
    """What a function of single rows has answered, by the contents of the row.

    limit: most rows to keep; others are computed each time. Copies of a network start with nothing kept.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit = limit
        self._rows: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __deepcopy__(self, memo: dict) -> "RowMemory":
        return RowMemory(self.limit)

    def __reduce__(self) -> tuple:
        return RowMemory, (self.limit,)

    def answer(self, keys: Sequence[bytes], compute: Callable[[list[int]], Iterable[Tensor]]) -> list[Tensor]:
        """The rows' outputs, in order; `compute` is called once, with the places of the keys that are not known."""
        unknown = [place for place, key in enumerate(keys) if key not in self._rows]
        fresh = {}
        if unknown:
            with torch.no_grad():
                fresh = dict(zip(unknown, compute(unknown), strict=True))
        for place, row in fresh.items():
            if len(self._rows) < self.limit:
                self._rows[keys[place]] = row.detach().clone()
        return [fresh[place] if place in fresh else self._rows[key] for place, key in enumerate(keys)]


def row_keys(rows: Iterable[Tensor]) -> list[bytes]:
    """A digest of each row's bytes."""
    plain = (row.detach().cpu().contiguous().view(torch.uint8).numpy() for row in rows)
    return [hashlib.blake2b(row, digest_size=16).digest() for row in plain]
