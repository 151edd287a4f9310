"""The picture files of a split, and the memory they can be kept in."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample, decode_image, encode_png, read_picture
from crossvit.data.reading.packed import PackedStrings
from crossvit.errors import UserError

log = logging.getLogger(__name__)


class Pictures:
    """A list of picture files: position -> path -> uint8 tensor.

    Args:
        names: file names relative to a root.
        roots: folders; with more than one, each is listed once and a name belongs to the first that holds it.
    """

    def __init__(self, names: Sequence[str], roots: Sequence[Path]) -> None:
        self.names = PackedStrings(names)
        self.roots = [str(root) for root in roots]
        self._root_of = np.zeros(len(names), dtype=np.uint8)
        if len(roots) > 1:
            folders: dict[str, set[str]] = {}
            for position, name in enumerate(names):
                self._root_of[position] = next(
                    (r for r, root in enumerate(self.roots) if _holds(folders, os.path.join(root, name))), 0
                )
        self._cached: Tensor | None = None
        self._cached_for: int | None = None
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def path(self, position: int) -> str:
        """The file of a picture."""
        return os.path.join(self.roots[self._root_of[position]], self.names[position])

    def read(self, position: int, min_side: int | None = None) -> Tensor:
        """uint8 (3, H, W). For `min_side` and errors see `decode_image`."""
        if self._cached is None or min_side != self._cached_for:
            return self._decode(position, min_side)
        if position in self._bad:
            raise BadSample(self.path(position), self._bad[position])
        return self._cached[position]

    def missing(self) -> list[BadRecord]:
        """The pictures whose file does not exist, found by listing each folder once."""
        folders: dict[str, set[str]] = {}
        paths = (self.path(position) for position in range(len(self)))
        return [BadRecord(path, "missing file") for path in paths if not _holds(folders, path)]

    def sizes(self) -> np.ndarray:
        """File sizes in bytes, -1 for a missing file, int64."""
        return np.fromiter(
            (_size(self.path(position)) for position in range(len(self))), dtype=np.int64, count=len(self)
        )

    def described(self) -> Iterator[str]:
        """Names and sizes, in an order that no folder's listing changes."""
        return (f"{name}\0{size}" for name, size in sorted(zip(self.names, self.sizes().tolist(), strict=True)))

    def encoded(self, position: int) -> bytes:
        """The content of a picture's file. Raises BadSample where it cannot be read."""
        return read_picture(self.path(position))

    def keep_in_memory(self, min_side: int | None = None) -> None:
        """Decode everything once into one uint8 tensor (n, 3, H, W), which forked workers share, as `read(..., min_side)` does.

        Samples stay exactly as they are without it, so all pictures must be of one size. Read with another `min_side`, a picture comes
        from its file.

        Raises:
            UserError: two pictures differ in size, or the tensor would take more than half of the machine's memory.
        """
        if self._cached is not None:
            return
        self._cached_for = min_side
        for position in range(len(self)):
            try:
                image = self._decode(position, min_side)
            except BadSample as error:
                self._bad[position] = error.reason
                continue
            if self._cached is None:
                self._cached = _allocate(len(self), image.shape)
            elif image.shape != self._cached.shape[1:]:
                height, width = self._cached.shape[2:]
                raise UserError(
                    f"data.cache=true needs pictures of one size: {self.path(position)} is "
                    f"{image.shape[2]} x {image.shape[1]}, others are {width} x {height}. Set data.cache=false."
                )
            self._cached[position] = image
        if self._cached is not None:
            log.debug("%d pictures kept in memory: %.0f MiB", len(self), self._cached.nbytes / 2**20)

    def _decode(self, position: int, min_side: int | None = None) -> Tensor:
        return decode_image(self.path(position), min_side)


class CroppedPictures(Pictures):
    """Parts of picture files: a name may stand in the list several times, with a box each.

    Args:
        names, roots: see Pictures.
        boxes: int64 (n, 4): left, top, width, height in pixels. What lies outside the picture is black, as Pillow crops.
    """

    def __init__(self, names: Sequence[str], roots: Sequence[Path], boxes: np.ndarray) -> None:
        super().__init__(names, roots)
        self.boxes = boxes

    def encoded(self, position: int) -> bytes:
        """The part that is meant, as PNG."""
        return encode_png(self._decode(position))

    def _decode(self, position: int, min_side: int | None = None) -> Tensor:
        """At full size whatever `min_side` says: the box counts in pixels of the file."""
        image = super()._decode(position)
        left, top, width, height = self.boxes[position].tolist()
        region = image[:, max(0, top) : top + height, max(0, left) : left + width]
        if width < 1 or height < 1 or not region.numel():
            raise BadSample(self.path(position), f"box {[left, top, width, height]} holds nothing of the picture")
        above, before = max(0, -top), max(0, -left)
        below, after = height - above - region.shape[1], width - before - region.shape[2]
        return torch.nn.functional.pad(region, (before, after, above, below))


def _allocate(count: int, shape: torch.Size) -> Tensor:
    needed = count * shape.numel()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory / 2:
        raise UserError(
            f"data.cache=true: {count} pictures take {needed / 2**30:.1f} GiB, more than half of this machine's "
            f"{memory / 2**30:.1f} GiB. Set data.cache=false."
        )
    return torch.empty((count, *shape), dtype=torch.uint8, memory_format=torch.channels_last)


def _holds(folders: dict[str, set[str]], path: str) -> bool:
    """Whether a file exists, by listing its folder once."""
    folder, name = os.path.split(path)
    if folder not in folders:
        try:
            folders[folder] = set(os.listdir(folder))
        except OSError:
            folders[folder] = set()
    return name in folders[folder]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
