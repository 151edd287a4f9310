"""Pictures with captions, or with classes, in tars on disk, read one by one in any order."""

import bisect
import glob
import hashlib
import itertools
import logging
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.progress import Progress
from torch import Tensor

from crossvit.data.captions import CaptionDataModule, CaptionIndex
from crossvit.data.datasets import Captions
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample, decode_bytes
from crossvit.data.reading.held_out import HeldOut
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.data.shards.index import ShardIndex, damaged_records, existing_index, index_of
from crossvit.errors import UserError

log = logging.getLogger(__name__)

_OPEN_FILES = 256  # of a process; the usual limit is 1024
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ELSEWHERE = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)")
_FEW = 8  # shards that one process indexes by itself


class ShardPictures(Pictures):
    """Pictures inside of tars, each read by one `pread`.

    Args:
        shards: the tars.
        chosen: int64 (n,): the pictures that are meant, counted through all of them.
    """

    def __init__(self, shards: Sequence[ShardIndex], chosen: np.ndarray) -> None:
        super().__init__((), (Path(),))
        self.shards = list(shards)
        self.chosen = chosen
        self._starts = _starts(len(shard) for shard in shards)
        self._files: OrderedDict[int, int] = OrderedDict()  # descriptors, the one used last at the end

    def __len__(self) -> int:
        return len(self.chosen)

    def path(self, position: int) -> str:
        """A name for a picture in messages: tar and member."""
        shard, row = self._place(position)
        return f"{self.shards[shard].tar}: {self.shards[shard].name(row)}"

    def missing(self) -> list[BadRecord]:
        """None: what the indexes name is there."""
        return []

    def sizes(self) -> np.ndarray:
        """Sizes in bytes, int64."""
        return np.concatenate([shard.sizes for shard in self.shards])[self.chosen]

    def described(self) -> Iterator[str]:
        """The tars, each with the hash of what it holds, and which of the pictures are meant."""
        for shard in sorted(self.shards, key=lambda shard: shard.tar.name):
            yield f"{shard.tar.name}\0{shard.sha256}"
        yield f"{len(self.chosen)} of {self._starts[-1]}"

    def encoded(self, position: int) -> bytes:
        """The picture's file."""
        number, row = self._place(position)
        shard = self.shards[number]
        size = int(shard.sizes[row])
        try:
            content = os.pread(self._open(number), size, int(shard.offsets[row]))
        except OSError as error:
            raise BadSample(self.path(position), f"cannot be read ({error.strerror})") from None
        if len(content) < size or not size:
            raise BadSample(self.path(position), f"{len(content)} of {size} bytes" if size else "zero bytes")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def _decode(self, position: int, min_side: int | None = None) -> Tensor:
        return decode_bytes(self.encoded(position), self.path(position), min_side)

    def _place(self, position: int) -> tuple[int, int]:
        """Tar and row in it."""
        picture = int(self.chosen[position])
        shard = bisect.bisect_right(self._starts, picture) - 1
        return shard, picture - self._starts[shard]

    def _open(self, number: int) -> int:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[number] = os.open(self.shards[number].tar, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[number]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)


class ShardTexts(PackedStrings):
    """Captions inside of the indexes of tars.

    Args:
        shards: the tars.
        chosen: int64 (c,): the captions that are meant, counted through all of them.
    """

    def __init__(self, shards: Sequence[ShardIndex], chosen: np.ndarray) -> None:
        self.shards = list(shards)
        self.chosen = chosen
        self._starts = _starts(int(shard.caption_starts[-1]) for shard in shards)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        caption = int(self.chosen[index])
        shard = bisect.bisect_right(self._starts, caption) - 1
        return self.shards[shard].caption(caption - self._starts[shard])


class Shards:
    """Which tars make up a split, and their indexes.

    Args:
        root: folder that the patterns start from.
        patterns: the tars of a split, one pattern or a list of them, or such for each split by name. `{0000..0575}` and `{a,b}` stand for
            many, `*` and `?` for what is there, `{split}` for the split's name.
        index_dir: folder for the indexes; None: beside the tars, or where that cannot be written, in the user's cache.
        max_lost: largest share of the bytes of a split that may be damaged.
    """

    def __init__(
        self,
        root: Path,
        patterns: str | Sequence[str] | Mapping[str, str | Sequence[str]],
        index_dir: str | Path | None,
        max_lost: float,
    ) -> None:
        self.root = root
        self.patterns = patterns
        self.index_dir = None if index_dir is None else Path(index_dir)
        self.max_lost = max_lost

    def tars(self, split: str) -> list[Path]:
        """The tars of a split, in the order of the patterns.

        Raises:
            UserError: none, or one that a pattern names is not there.
        """
        patterns = self.patterns
        if isinstance(patterns, Mapping):
            if split not in patterns:
                raise UserError(f"data.shards names no split '{split}' (its splits: {', '.join(patterns)}).")
            patterns = patterns[split]
        elif split != "train" and "{split}" not in str(patterns):
            raise UserError(
                f"data.shards={patterns} names no {{split}}, so there is no split '{split}': set data.shards to "
                "{train: PATTERN, val: PATTERN}, or data.held_out=0.01 and take the split 'held_out'."
            )
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        if not patterns:
            raise UserError(f"data.shards={self.patterns} names no shard of split '{split}'.")
        found = [tar for pattern in patterns for tar in self._matching(pattern.replace("{split}", split))]
        return list(dict.fromkeys(found))

    def indexes(self, split: str) -> list[ShardIndex]:
        """The index of every tar of a split, made where it is missing.

        Raises:
            UserError: see `tars`; also a tar that cannot be read, or too much of the tars is damaged.
        """
        tars = self.tars(split)
        with FileLock(_lock_file(tars)):  # other processes of this machine wait rather than do the same
            shards = _index_all(tars, self.index_dir)
        whole = sum(shard.header["size"] for shard in shards)
        lost = sum(damage.lost for shard in shards for damage in shard.damages)
        if lost > self.max_lost * whole:
            worst = max(shards, key=lambda shard: sum(damage.lost for damage in shard.damages))
            raise UserError(
                f"{lost:,} of {whole:,} bytes of the shards of split '{split}' are damaged, more than "
                f"data.max_bad_fraction={self.max_lost}; most of it in {worst.tar}: {worst.damages[-1].reason}.\n"
                "Fetch the shard again or raise data.max_bad_fraction."
            )
        return shards

    def _matching(self, pattern: str) -> list[Path]:
        if _ELSEWHERE.match(pattern):
            raise UserError(f"data.shards={pattern} is no path: a remote shard has to be copied here first.")
        names = expand_braces(pattern)
        if any(character in pattern for character in "*?["):
            found = [sorted(glob.glob(name, root_dir=self.root)) for name in names]
            for name, paths in zip(names, found, strict=True):
                if not paths:
                    raise UserError(f"No shard {self.root / name} (data.shards={pattern} below data.root).")
            return [self.root / name for group in found for name in group]
        paths = [self.root / name for name in names]
        if absent := [path for path in paths if not path.is_file()]:
            raise UserError(f"{absent[0]} is not there, {len(absent)} of {len(paths)} shards of data.shards={pattern}.")
        return paths


class ShardsDataModule(CaptionDataModule):
    """Tars in webdataset form, as img2dataset and the public CC3M and CC12M write them: `<key>.jpg` with `<key>.json` ("caption", a text or
    several) or `<key>.txt`. A key is one picture; equal captions are one text.

    Order, shuffling, several processes and resume are those of every other dataset: the tars are read at any place.

    Args:
        shards, index_dir: see Shards.
        held_out: share of the pictures of `train` that form the split `held_out` instead.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also tars that are not there or damaged beyond `max_bad_fraction`.
    """

    LAYOUT = """\
  <root>/{train,val}-*.tar    (data.shards: a pattern with {split}, {0000..0575} or *, or one for each split)
  in a tar: <key>.jpg (or jpeg, png, webp) with <key>.json ("caption": a text or a list of texts) or <key>.txt"""
    DOWNLOAD = """\
  https://huggingface.co/datasets/pixparse/cc3m-wds (cc3m-train-{0000..0575}.tar) and cc12m-wds (cc12m-train-{0000..2175}.tar);
  or a list of addresses through https://github.com/rom1504/img2dataset with output_format=webdataset.
  `crossvit data pack` writes any other dataset so. Licence: captions as the list says; each picture its own."""

    def __init__(
        self,
        *,
        shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] = "{split}-*.tar",
        index_dir: str | Path | None = None,
        held_out: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shards = Shards(self.root, shards, index_dir, self.bad_samples.max_fraction)
        self.held_out = HeldOut(held_out)

    def _read_split(self, split: str) -> CaptionIndex:
        shards = self.shards.indexes(self.held_out.source(split))
        kept = partial(self.held_out.keeps, split) if self.held_out.share else None
        return read_captions(shards, kept)


def read_captions(shards: Sequence[ShardIndex], kept: Callable[[str], bool] | None = None) -> CaptionIndex:
    """The pictures with a caption in these tars; with `kept` only those whose names it takes.

    Raises:
        UserError: the captions are statements that may be false.
    """
    if any(((shard.labels >= 0) & (np.diff(shard.caption_starts) > 0)).any() for shard in shards):
        raise UserError(
            f"{shards[0].tar.parent}: these shards hold labelled statements: read them with data=statement_shards."
        )
    sizes = np.concatenate([np.diff(shard.caption_starts) for shard in shards])
    first = np.concatenate([[0], np.cumsum(sizes)])
    chosen = np.flatnonzero(sizes)
    defects = [record for shard in shards for record in damaged_records(shard)]
    defects += without(shards, np.flatnonzero(sizes == 0), "no caption")
    if kept is not None:
        names = (shard.name(row) for shard in shards for row in range(len(shard)))
        chosen = chosen[np.fromiter(map(kept, names), bool, len(sizes))[chosen]]
    sizes = sizes[chosen]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    image_ids = np.arange(len(chosen))
    captions = np.arange(starts[-1]) + (first[chosen] - starts[:-1]).repeat(sizes)
    return CaptionIndex(
        pictures=ShardPictures(shards, chosen),
        rows=np.arange(len(chosen)),
        captions=Captions(ShardTexts(shards, captions), starts),
        image_ids=image_ids,
        counts={"samples": len(chosen), "captions": len(captions), "shards": len(shards)},
        defects=defects,
        caption_ids=np.arange(len(captions)),
        caption_image_ids=image_ids.repeat(sizes),
    )


def without(shards: Sequence[ShardIndex], pictures: np.ndarray, reason: str) -> list[BadRecord]:
    """Records of these pictures, counted through all shards."""
    every = ShardPictures(shards, pictures)
    return [BadRecord(every.path(position), reason) for position in range(len(pictures))]


def expand_braces(pattern: str) -> list[str]:
    """Every name that `{0000..0575}` (with the zeros of its first number) and `{a,b}` stand for.

    Raises:
        UserError: a brace that holds neither.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    if numbers := _RANGE.fullmatch(found[1]):
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 1
        parts = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    if not parts or (len(parts) == 1 and not numbers):
        raise UserError(f"data.shards={pattern}: {{{found[1]}}} must be as {{0000..0575}} or {{a,b}}.")
    ends = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + part + end for part, end in itertools.product(parts, ends)]


def _index_all(tars: Sequence[Path], folder: Path | None) -> list[ShardIndex]:
    """In several processes, with a progress bar, where many indexes have to be made: that reads all headers and texts."""
    found = {tar: index for tar in tars if (index := existing_index(tar, folder)) is not None}
    absent = [tar for tar in tars if tar not in found]
    make = partial(_index, folder=folder)
    if len(absent) <= _FEW:
        return [found[tar] if tar in found else make(tar) for tar in tars]
    log.info("%d shards are read once for their indexes", len(absent))
    with ProcessPoolExecutor(min(len(absent), os.cpu_count() or 1)) as pool:
        made = pool.map(make, absent)  # processes start here, before the bar has its thread
        with Progress(transient=True) as bar:
            found.update(zip(absent, bar.track(made, len(absent), description="shards"), strict=True))
    return [found[tar] for tar in tars]


def _index(tar: Path, folder: Path | None) -> ShardIndex:
    try:
        return index_of(tar, folder)
    except OSError as error:
        raise UserError(f"{error.filename or tar}: {error.strerror} (a shard, or its index: data.index_dir).") from None


def _lock_file(tars: Iterable[Path]) -> Path:
    digest = hashlib.sha256("\0".join(map(str, tars)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"crossvit-shards-{os.getuid()}-{digest}.lock"


def _starts(sizes: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)]
