"""Map-style datasets that load whole batches and survive damaged pictures.

The loader hands `__getitems__` the keys of one batch and gets it back ready made: pictures are decoded straight into
the batch tensor and nothing is stacked afterwards.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossvit.data.batches import ImageBatch, PairBatch, TextBatch
from crossvit.data.reading.annotations import text_id
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import Draw, SampleKey, sample_rng
from crossvit.data.tokenizer import Tokenizer
from crossvit.data.transforms import EvalTransform, TrainTransform

_LEFT_OR_RIGHT = re.compile(r"\b(left|right)", re.IGNORECASE)
MAX_REPLACEMENTS = 16


class Loaded(NamedTuple):
    """A batch and what went wrong while it was made."""

    batch: ImageBatch | PairBatch | TextBatch | None  # None where no sample could be read
    bad: list[BadRecord]
    truncated: int = 0  # texts that were too long for the tokenizer


@dataclass(frozen=True)
class Captions:
    """Captions in groups: group g holds `texts[starts[g]:starts[g + 1]]`.

    Attributes:
        texts: all captions.
        starts: int64 (groups + 1,).
    """

    texts: PackedStrings
    starts: np.ndarray

    def group(self, index: int) -> range:
        """Positions of the captions of one group."""
        return range(int(self.starts[index]), int(self.starts[index + 1]))


class PictureDataset(Dataset, ABC):
    """Samples with one or more pictures each.

    A picture that cannot be read is reported. In training its sample is replaced by another one, drawn from (seed,
    epoch, index); in evaluation it is left out of the batch.

    Args:
        pictures: the files.
        rows: int64 (n,) or (n, k): the pictures of each sample.
        transform: a TrainTransform makes this a training dataset.
        seed: seed of all random numbers.
    """

    def __init__(
        self, pictures: Pictures, rows: np.ndarray, transform: TrainTransform | EvalTransform, seed: int = 0
    ) -> None:
        self.pictures = pictures
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self.training = isinstance(transform, TrainTransform)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey | int) -> Loaded:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> Loaded:
        """Load a batch; a plain index stands for that sample in epoch 0."""
        images = self._empty(len(keys))
        kept: list[SampleKey] = []
        bad: list[BadRecord] = []
        for key in keys:
            key = key if isinstance(key, SampleKey) else SampleKey(0, int(key))
            loaded = self._load_or_replace(key, images[len(kept)], bad)
            if loaded is not None:
                kept.append(loaded)
        if not kept:
            return Loaded(None, bad)
        return self.batch(images[: len(kept)], kept)._replace(bad=bad)

    @abstractmethod
    def batch(self, images: Tensor, keys: list[SampleKey]) -> Loaded:
        """Join pictures with what belongs to their samples."""

    def may_flip(self, key: SampleKey) -> bool:
        """Whether a mirrored picture still fits the sample."""
        return True

    def _empty(self, count: int) -> Tensor:
        """uint8 (count, 3, size, size) or (count, k, 3, size, size), a picture's memory H x W x 3 as decoders write it."""
        shape, size = (count, *self.rows.shape[1:]), self.transform.size
        flat = (math.prod(shape), 3, size, size)
        return torch.empty(flat, dtype=torch.uint8, memory_format=torch.channels_last).view(*shape, *flat[1:])

    def replacements(self, key: SampleKey) -> list[int]:
        """Samples that may stand in for one that cannot be read, in this order."""
        return sample_rng(self.seed, key, Draw.REPLACEMENT).integers(len(self), size=MAX_REPLACEMENTS).tolist()

    def _load_or_replace(self, key: SampleKey, out: Tensor, bad: list[BadRecord]) -> SampleKey | None:
        try:
            self._load(key, out)
            return key
        except BadSample as error:
            bad.append(BadRecord(error.path, error.reason))
        if not self.training:
            return None
        for index in self.replacements(key):
            other = SampleKey(key.epoch, index)
            try:
                self._load(other, out)
                return other
            except BadSample as error:
                bad.append(BadRecord(error.path, error.reason))
        return None

    def _load(self, key: SampleKey, out: Tensor) -> None:
        images = out if self.rows.ndim == 2 else out[None]
        rng = sample_rng(self.seed, key, Draw.AUGMENTATION) if self.training else None
        for image, position in zip(images, np.atleast_1d(self.rows[key.index]), strict=True):
            decoded = self.pictures.read(int(position), self.transform.min_side)
            if rng is None:
                image.copy_(self.transform(decoded))
            else:
                image.copy_(self.transform(decoded, rng, self.may_flip(key)))


class ImageDataset(PictureDataset):
    """Pictures with one integer each.

    Args:
        labels: int64 (n,): classes, or image ids.
        The others: see `PictureDataset`.
    """

    def __init__(
        self,
        pictures: Pictures,
        labels: np.ndarray,
        transform: TrainTransform | EvalTransform,
        seed: int = 0,
    ) -> None:
        super().__init__(pictures, np.arange(len(pictures)), transform, seed)
        self.labels = labels

    def batch(self, images: Tensor, keys: list[SampleKey]) -> Loaded:
        index = np.array([key.index for key in keys])
        return Loaded(ImageBatch(images, torch.from_numpy(self.labels[index]), torch.from_numpy(index)), [])


class PairDataset(PictureDataset):
    """Pictures with a text: a caption chosen from several, or a statement with its truth.

    Args:
        captions: one group a sample. In training the caption is drawn from (seed, epoch, index), in evaluation it is
            the first.
        image_ids: int64 (n,).
        tokenizer: makes the tokens.
        labels: int64 (n,), or None where all pairs match.
        negatives: for each caption a group of captions that are false of its picture, or None.
        num_negatives: how many of them a sample gets. A row without any has an all-False mask.
        The others: see `PictureDataset`.
    """

    def __init__(
        self,
        pictures: Pictures,
        rows: np.ndarray,
        captions: Captions,
        image_ids: np.ndarray,
        tokenizer: Tokenizer,
        transform: TrainTransform | EvalTransform,
        seed: int = 0,
        labels: np.ndarray | None = None,
        negatives: Captions | None = None,
        num_negatives: int = 0,
    ) -> None:
        super().__init__(pictures, rows, transform, seed)
        self.captions = captions
        self.image_ids = image_ids
        self.tokenizer = tokenizer
        self.labels = labels
        self.negatives = negatives
        self.num_negatives = num_negatives

    def caption_of(self, key: SampleKey) -> int:
        """Position of the caption that a sample has in an epoch."""
        group = self.captions.group(key.index)
        if len(group) == 1 or not self.training:
            return group.start
        return group[_drawn(self.seed, key, len(group))]

    def may_flip(self, key: SampleKey) -> bool:
        texts = [self.captions.texts[position := self.caption_of(key)]]
        if self.negatives is not None:  # what is false of a picture may hold of its mirror image
            texts += [self.negatives.texts[place] for place in self.negatives.group(position)]
        return not any(map(_LEFT_OR_RIGHT.search, texts))

    def batch(self, images: Tensor, keys: list[SampleKey]) -> Loaded:
        truncated_before = self.tokenizer.truncated
        index = np.array([key.index for key in keys])
        positions = [self.caption_of(key) for key in keys]
        texts = [self.captions.texts[position] for position in positions]
        tokens, mask = self.tokenizer.encode(texts)
        batch = PairBatch(
            image=images,
            tokens=tokens,
            token_mask=mask,
            image_id=torch.from_numpy(self.image_ids[index]),
            text_id=torch.tensor([text_id(text) for text in texts]),
            index=torch.from_numpy(index),
            label=None if self.labels is None else torch.from_numpy(self.labels[index]),
        )
        if self.negatives is not None:
            batch = self._add_negatives(batch, keys, positions)
        return Loaded(batch, [], self.tokenizer.truncated - truncated_before)

    def _add_negatives(self, batch: PairBatch, keys: list[SampleKey], positions: list[int]) -> PairBatch:
        texts: list[str] = []
        present = torch.zeros(len(keys), self.num_negatives, 1, dtype=torch.bool)
        for row, (key, position) in enumerate(zip(keys, positions, strict=True)):
            group = self.negatives.group(position)
            if group:
                rng = sample_rng(self.seed, key, Draw.NEGATIVES)
                order = np.resize(rng.permutation(len(group)), self.num_negatives)  # repeats where there are too few
                texts.extend(self.negatives.texts[group[int(i)]] for i in order)
                present[row] = True
            else:
                texts.extend([""] * self.num_negatives)
        tokens, mask = self.tokenizer.encode(texts)
        shape = (len(keys), self.num_negatives, -1)
        return batch._replace(negatives=tokens.view(shape), negatives_mask=mask.view(shape) & present)


class TextDataset(Dataset):
    """Captions alone, each once.

    Args:
        texts: all captions.
        image_ids: int64 (n,): the image each was written for.
        tokenizer: makes the tokens.
    """

    def __init__(self, texts: PackedStrings, image_ids: np.ndarray, tokenizer: Tokenizer) -> None:
        self.texts = texts
        self.image_ids = image_ids
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, key: SampleKey | int) -> Loaded:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> Loaded:
        """Load a batch of captions."""
        truncated_before = self.tokenizer.truncated
        index = np.array([key.index if isinstance(key, SampleKey) else int(key) for key in keys])
        texts = [self.texts[i] for i in index]
        tokens, mask = self.tokenizer.encode(texts)
        ids = torch.tensor([text_id(text) for text in texts])
        image_ids = torch.from_numpy(self.image_ids[index])
        batch = TextBatch(tokens, mask, image_ids, ids, torch.from_numpy(index))
        return Loaded(batch, [], self.tokenizer.truncated - truncated_before)


@lru_cache(maxsize=4096)
def _drawn(seed: int, key: SampleKey, count: int) -> int:
    """Which of `count` captions a sample has. Asked twice while a batch is made, before a picture is mirrored and for its tokens."""
    return int(sample_rng(seed, key, Draw.CAPTION).integers(count))
