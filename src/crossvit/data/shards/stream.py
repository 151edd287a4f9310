"""Captioned pictures in tars at an address, fetched while training goes on.

Shards are fetched whole, with another try where a server stalls or breaks off, and then read as local ones are, through their index. The
webdataset library's way, to read a tar from the socket in one go, was not taken: there a broken connection loses the rest of the tar or
repeats its beginning, an epoch is as long as what came, to resume means to read everything again, its curl has no limit on a read, and
the second epoch costs as much as the first.
Fetched whole, the order is known before anything is read, so exact epochs, resume and several processes are those of the one sampler.
"""

import json
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from crossvit.data.captions import CaptionDataModule, CaptionIndex
from crossvit.data.datasets import MAX_REPLACEMENTS, Captions, PairDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample, decode_bytes
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import Draw, SampleKey, ShardSampler, sample_rng
from crossvit.data.shards.captions import expand_braces, read_captions
from crossvit.data.shards.fetching import Cache, Fetcher, FetchError, Opened, Remote, fetched_text
from crossvit.data.transforms import EvalTransform, TrainTransform
from crossvit.errors import UserError

_MANIFEST = "manifest.json"  # of `crossvit data pack`
_NAME = re.compile(r"\w[\w.+=@,-]*")  # of a shard in it
_OPEN_FILES = 256  # of a process; the usual limit is 1024
_AT_ONCE = 8  # shards that a process fetches at one time
_NEXT_BEST = 2  # shards that are tried where a whole shard has to be replaced
_CAPTIONS = 2**20  # of a picture; caption k of picture i has number i * _CAPTIONS + k


class _Opening(threading.Thread):
    """Opens a shard beside what else goes on; ends with the process, however long it would still wait."""

    def __init__(self, cache: Cache, remote: Remote, turns: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self.cache = cache
        self.turns = turns
        self.remote = remote
        self.opened: Opened | None = None
        self.reason = ""
        self.start()

    def run(self) -> None:
        try:
            with self.turns:
                self.opened = self.cache.open(self.remote)
        except FetchError as error:
            self.reason = str(error)
        except OSError as error:
            self.reason = f"{error.filename or self.cache.folder}: {error.strerror}"


class StreamPictures(Pictures):
    """Pictures inside of tars elsewhere; a tar comes when the first of its pictures is asked for.

    Args:
        shards: the tars.
        cache: where they are brought to.
        most_open: tars that a process holds open.
    """

    def __init__(self, shards: Sequence[Remote], cache: Cache, most_open: int) -> None:
        super().__init__((), (Path(),))
        self.shards = list(shards)
        self.cache = cache
        self.most_open = most_open
        self.starts = np.cumsum([0, *(shard.samples for shard in shards)])
        self.in_use: set[int] = set()  # shards of the batch at hand: they stay open
        self._begin_anew()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, position: int) -> tuple[int, int]:
        """Shard and row in it."""
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return shard, position - int(self.starts[shard])

    def path(self, position: int) -> str:
        """A name for a picture in messages: address and number in the tar."""
        shard, row = self.place(position)
        return f"{self.shards[shard].shown}: sample {row}"

    def missing(self) -> list[BadRecord]:
        """None: what is missing shows when it is fetched."""
        return []

    def described(self) -> Iterator[str]:
        """The shards, as far as they are known before they are fetched."""
        return (f"{shard.name}\0{shard.samples}\0{shard.sha256 or ''}" for shard in self.shards)

    def encoded(self, position: int) -> bytes:
        """The picture's file. Raises BadSample where it did not come."""
        opened, row = self.opened(position)
        size = int(opened.index.sizes[row])
        content = os.pread(opened.file, size, int(opened.index.offsets[row]))
        if len(content) < size or not size:
            raise BadSample(self.path(position), f"{len(content)} of {size} bytes" if size else "zero bytes")
        return content

    def captions(self, position: int) -> range:
        """Numbers of the captions of a picture inside of its shard."""
        opened, row = self.opened(position)
        first, last = opened.index.caption_starts[row : row + 2].tolist()
        if first == last:
            raise BadSample(self.path(position), "no caption")
        return range(first, last)

    def opened(self, position: int) -> tuple[Opened, int]:
        """The picture's shard and its row there. Raises BadSample where it did not come."""
        number, row = self.place(position)
        opening = self.begin(number)
        opening.join()
        if opening.opened is None or row >= len(opening.opened.index):
            raise BadSample(self.path(position), self._lacking(opening))
        return opening.opened, row

    def begin(self, number: int) -> _Opening:
        """Have a shard fetched, without waiting for it."""
        if self._process != os.getpid():  # threads do not follow into a fork
            self._begin_anew()
        if number not in self._openings:
            if len(self._openings) >= self.most_open:
                oldest = next((other for other in self._openings if other not in self.in_use), None)
                self._openings.pop(oldest, None)
            self._openings[number] = _Opening(self.cache, self.shards[number], self._turns)
        self._openings.move_to_end(number)
        return self._openings[number]

    def here(self) -> list[int]:
        """The open shards of which something came, the one used last at first."""
        return [number for number in reversed(self._openings) if self.rows_here(number)]

    def comes(self, number: int) -> bool:
        """Wait for a shard; whether there is anything of it."""
        self.begin(number).join()
        return self.rows_here(number) > 0

    def rows_here(self, number: int) -> int:
        """How many samples of a shard came so far."""
        opened = self._openings[number].opened
        return 0 if opened is None else min(len(opened.index), self.shards[number].samples)

    def forget_what_failed(self) -> None:
        """Let another epoch try again what did not come whole."""
        for number, opening in list(self._openings.items()):
            if not opening.is_alive() and (opening.opened is None or opening.opened.lacking):
                del self._openings[number]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_openings", "_turns")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._process = os.getpid()
        self._turns = threading.Semaphore(_AT_ONCE)
        self._openings: OrderedDict[int, _Opening] = OrderedDict()  # the one used last at the end

    def _decode(self, position: int, min_side: int | None = None) -> Tensor:
        self.captions(position)
        return decode_bytes(self.encoded(position), self.path(position), min_side)

    @staticmethod
    def _lacking(opening: _Opening) -> str:
        if opening.opened is None:
            return opening.reason
        damages = opening.opened.index.damages
        reason = opening.opened.lacking or (damages[-1].reason if damages else "")
        return reason or f"the shard holds {len(opening.opened.index)} samples, not {opening.remote.samples}"


class StreamTexts(PackedStrings):
    """Captions of `StreamPictures`: number `i * 2^20 + k` is caption k of picture i. They cannot be listed."""

    def __init__(self, pictures: StreamPictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        raise TypeError("how many captions there are is not known")

    def __getitem__(self, index: int) -> str:
        position, k = divmod(index, _CAPTIONS)
        opened, _ = self.pictures.opened(position)
        return opened.index.caption(self.pictures.captions(position)[k])


class StreamCaptions(Captions):
    """One group a picture, as large as its shard says."""

    texts: StreamTexts

    def group(self, index: int) -> range:
        count = min(_CAPTIONS, len(self.texts.pictures.captions(index)))
        return range(index * _CAPTIONS, index * _CAPTIONS + count)


class StreamDataset(PairDataset):
    """Pairs whose shards come while the ones before them are used.

    Args:
        order: deals the shards; None where they are read from first to last.
        prefetch: shards that are fetched ahead.
        The others: see PairDataset.
    """

    pictures: StreamPictures

    def __init__(self, *args: Any, prefetch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefetch = prefetch
        self.order: ShardSampler | None = None
        self._epoch = -1
        self._places: dict[int, tuple[list[int], int]] = {}  # each shard's row of shards and its place there

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> Any:
        epoch = keys[0].epoch if isinstance(keys[0], SampleKey) else 0
        if epoch != self._epoch:
            self._epoch = epoch
            self._places = self._deal(epoch)
            self.pictures.forget_what_failed()
        indices = [key.index if isinstance(key, SampleKey) else int(key) for key in keys]
        numbers = dict.fromkeys(self.pictures.place(index)[0] for index in indices)
        self.pictures.in_use = set(numbers)
        ahead = [other for number in numbers for other in self._after(number, self.prefetch)]
        for number in [*numbers, *ahead]:
            self.pictures.begin(number)
        return super().__getitems__(keys)

    def replacements(self, key: SampleKey) -> list[int]:
        """From the same shard, or where it did not come, from one that is here or comes next."""
        own, _ = self.pictures.place(key.index)
        here = self.pictures.here()
        number = own if own in here else next(iter(here), None)
        if number is None:
            others = self._after(own, _NEXT_BEST) or self._before(own, _NEXT_BEST)
            number = next((other for other in others if self.pictures.comes(other)), None)
        if number is None:
            return []
        rows = self.pictures.rows_here(number)
        drawn = sample_rng(self.seed, key, Draw.REPLACEMENT).integers(rows, size=MAX_REPLACEMENTS)
        return (self.pictures.starts[number] + drawn).tolist()

    def _deal(self, epoch: int) -> dict[int, tuple[list[int], int]]:
        hands = [list(range(len(self.pictures.shards)))] if self.order is None else self.order.dealt(epoch)
        return {number: (hand, place) for hand in hands for place, number in enumerate(hand)}

    def _after(self, number: int, count: int) -> list[int]:
        hand, place = self._places[number]
        return hand[place + 1 : place + 1 + count]

    def _before(self, number: int, count: int) -> list[int]:
        hand, place = self._places[number]
        return hand[max(0, place - count) : place]


class StreamDataModule(CaptionDataModule):
    """Tars in webdataset form at an address (http, https, `pipe:COMMAND`, and what `commands` names, e.g. s3), see ShardsDataModule.

    The training split comes shard by shard, in an order that ShardSampler describes; the splits of an evaluation are fetched as a whole
    and stay. What cannot be fetched, or not to its end, is counted as damaged samples, and training goes on with the others; the next
    epoch tries again.

    Args:
        root: the address of the folder.
        shards: names below it, or addresses, with `{split}`, `{0000..0575}` and `{a,b}`; one, a list, or such for each split by name.
            None: those of the folder's `manifest.json`, as `crossvit data pack` writes it.
        samples: samples of each shard, of all splits or for each split by name. None: what the manifest says. Of a shard that holds more
            the rest is not read; what one holds less counts as damaged.
        cache_dir: folder for the shards.
        cache_gib: GiB that the shards of the training split may take there.
        shuffle_buffer: see ShardSampler.
        prefetch: shards that each worker fetches ahead.
        timeout, retries, backoff, commands: see Fetcher.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also an address or a command that is none, a manifest that cannot be fetched, too few shards for
            the devices and workers, a cache that is too small, and what needs all samples at once.
    """

    LAYOUT = """\
  <root>/manifest.json and <root>/<split>-00000.tar, ...    (as `crossvit data pack` writes them; root: an address)
  or any tars (data.shards: a pattern with {split} or {0000..0575}, or one for each split) of data.samples samples each
  in a tar: <key>.jpg (or jpeg, png, webp) with <key>.json ("caption": a text or a list of texts) or <key>.txt"""

    def __init__(
        self,
        *,
        root: str | Path,
        shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        samples: int | Mapping[str, int] | None = None,
        cache_dir: str | Path,
        cache_gib: float = 50,
        shuffle_buffer: int = 10_000,
        prefetch: int = 1,
        timeout: float = 30,
        retries: int = 4,
        backoff: float = 1,
        commands: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        if self.caption_policy != "one" or self.shuffled or self.cache:
            raise UserError(
                "data.captions=every, data.shuffled and data.cache need all samples at once: use data=shards."
            )
        if cache_gib <= 0 or shuffle_buffer < 0 or prefetch < 0:
            raise UserError(
                f"data.cache_gib={cache_gib} must be more than 0, data.shuffle_buffer={shuffle_buffer} and "
                f"data.prefetch={prefetch} not negative."
            )
        self.cache_gib = cache_gib
        self.address = str(root).rstrip("/")
        self.patterns = shards
        self.samples = samples
        self.shuffle_buffer = shuffle_buffer
        self.prefetch = prefetch
        self.fetcher = Fetcher(timeout, retries, backoff, commands or {})
        self.streamed = Cache(Path(cache_dir), round(cache_gib * 2**30), self.fetcher)
        self.kept = Cache(Path(cache_dir) / "evaluation", None, self.fetcher)
        self._listed: dict[str, list[Remote]] | None = None

    def remotes(self, split: str) -> list[Remote]:
        """The shards of a split.

        Raises:
            UserError: no such split, an address that is none, no manifest, or no number of samples.
        """
        if self.patterns is None:
            if self.samples is not None:
                raise UserError("data.samples goes with data.shards: the manifest has the numbers of its own shards.")
            listed = self._manifest_shards()
            if split not in listed:
                raise UserError(
                    f"{self.address}/{_MANIFEST} names no split '{split}' (its splits: {', '.join(listed)})."
                )
            return listed[split]
        urls = self._urls(split)
        count = self.samples.get(split) if isinstance(self.samples, Mapping) else self.samples
        if count is None and split == self.train_split:
            known = {remote.url: remote for remotes in self._manifest_shards().values() for remote in remotes}
            if absent := [url for url in urls if url not in known]:
                raise UserError(
                    f"{absent[0]} is not in {self.address}/{_MANIFEST}: set data.samples, those of each shard."
                )
            return [known[url] for url in urls]
        if count is not None and count < 1:
            raise UserError(f"data.samples={count} must be at least 1.")
        return [Remote(url, count or 0) for url in urls]

    def captions(self, split: str) -> list[tuple[int, int, str]]:
        self._refuse_stream(split)
        return super().captions(split)

    def text_loader(self, split: str) -> EpochLoader:
        self._refuse_stream(split)
        return super().text_loader(split)

    def _check_root(self) -> None:
        if self.patterns is None:
            self.fetcher.check(self.address)

    def _read_split(self, split: str) -> CaptionIndex:
        remotes = self.remotes(split)
        if split != self.train_split:
            return read_captions([self._whole(remote).index for remote in remotes])
        pictures = StreamPictures(remotes, self.streamed, self._most_open(remotes))
        return CaptionIndex(
            pictures=pictures,
            rows=np.arange(len(pictures)),
            captions=StreamCaptions(StreamTexts(pictures), np.empty(0, np.int64)),
            image_ids=np.arange(len(pictures)),
            counts={"samples": len(pictures), "shards": len(remotes)},
        )

    def _pair_dataset(
        self, split: str, transform: TrainTransform | EvalTransform, shuffled: float = 0.0
    ) -> PairDataset:
        index = self.index(split)
        if not isinstance(index.pictures, StreamPictures):
            return super()._pair_dataset(split, transform, shuffled)
        given = (index.pictures, index.rows, index.captions, index.image_ids, self.tokenizer, transform)
        return StreamDataset(*given, seed=self.seed, prefetch=self.prefetch)

    def _train_sampler(self, dataset: StreamDataset, rank: int, world_size: int) -> ShardSampler:
        sizes = [shard.samples for shard in dataset.pictures.shards]
        options = {"workers": self.num_workers, "buffer": self.shuffle_buffer, "seed": self.seed}
        dataset.order = ShardSampler(sizes, self.batch_size, rank=rank, world_size=world_size, **options)
        self._check_room(dataset.pictures, dataset.order.readers)
        return dataset.order

    def _check_room(self, pictures: StreamPictures, readers: int) -> None:
        """All that a machine uses at one time must fit."""
        readers //= getattr(self.trainer, "num_nodes", 1)
        largest = max(shard.size or 0 for shard in pictures.shards)
        needed = min(len(pictures.shards), readers * pictures.most_open) * largest
        if needed > self.streamed.limit:
            raise UserError(
                f"data.cache_gib={self.cache_gib} is too small: {readers} workers hold up to "
                f"{needed / 2**30:.3g} GiB of shards. Raise it, or lower data.num_workers, data.prefetch or data.shuffle_buffer."
            )

    def _most_open(self, remotes: Sequence[Remote]) -> int:
        """The shards that a reader mixes, and those ahead of it."""
        usual = max(1, sum(remote.samples for remote in remotes) / len(remotes))
        return min(_OPEN_FILES, math.ceil((self.shuffle_buffer + self.batch_size) / usual) + 1 + self.prefetch)

    def _urls(self, split: str) -> list[str]:
        patterns = self.patterns
        if isinstance(patterns, Mapping):
            if split not in patterns:
                raise UserError(f"data.shards names no split '{split}' (its splits: {', '.join(patterns)}).")
            patterns = patterns[split]
        elif split != self.train_split and "{split}" not in str(patterns):
            raise UserError(
                f"data.shards={patterns} names no {{split}}: set data.shards to {{train: PATTERN, val: PATTERN}}."
            )
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        names = [name for pattern in patterns for name in expand_braces(pattern.replace("{split}", split))]
        urls = [name if "://" in name or name.startswith("pipe:") else f"{self.address}/{name}" for name in names]
        for url in urls:
            self.fetcher.check(url)
        return list(dict.fromkeys(urls))

    def _manifest_shards(self) -> dict[str, list[Remote]]:
        if self._listed is None:
            url = f"{self.address}/{_MANIFEST}"
            self.fetcher.check(url)
            try:
                splits = json.loads(fetched_text(self.fetcher, url))["splits"]
                self._listed = {
                    split: [self._listed_shard(s) for s in found["shards"]] for split, found in splits.items()
                }
            except FetchError as error:
                raise UserError(f"{url}: {error}. Without it set data.shards and data.samples.") from None
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{url} is no manifest of `crossvit data pack`: set data.shards and data.samples."
                ) from None
        return self._listed

    def _listed_shard(self, shard: Mapping[str, Any]) -> Remote:
        if not _NAME.fullmatch(shard["name"]) or not int(shard["samples"]) >= 0:  # it becomes part of a command
            raise ValueError
        return Remote(
            f"{self.address}/{shard['name']}", int(shard["samples"]), int(shard["bytes"]), str(shard["sha256"])
        )

    def _whole(self, remote: Remote) -> Opened:
        try:
            opened = self.kept.open(remote)
        except FetchError as error:
            raise UserError(f"{remote.shown}: {error}; an evaluation needs all of its shards.") from None
        except OSError as error:
            raise UserError(f"{error.filename or self.kept.folder}: {error.strerror} (data.cache_dir).") from None
        if opened.lacking:
            raise UserError(f"{remote.shown}: {opened.lacking}; an evaluation needs all of its shards.")
        return opened

    def _refuse_stream(self, split: str) -> None:
        if split == self.train_split:
            raise UserError(f"Split '{split}' is a stream, its texts cannot be listed: use data=shards for that.")
