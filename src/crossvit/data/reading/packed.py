"""Many strings in two flat buffers."""

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """A read-only list of strings held as one byte string and one offset array.

    A list of Python strings costs about 50 bytes a string on top of its text, and every worker process that reads it
    copies its memory page by page (reference counts are written). This does neither and pickles as two buffers.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
        self._offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=self._offsets[1:])
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._text[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))
