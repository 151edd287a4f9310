"""Several sources of pairs in one training split."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossvit.data.batches import PairBatch
from crossvit.data.datasets import Loaded, PairDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.module import SplitIndex
from crossvit.data.pairs import PairDataModule
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import MixtureSampler, SampleKey
from crossvit.data.shards.stream import StreamDataModule
from crossvit.errors import UserError

log = logging.getLogger(__name__)

SHARED = ("image_size", "batch_size", "eval_batch_size", "num_workers", "seed", "mean", "std", "bad_samples_dir")
"""What all sources have in common: a source's own value has no effect."""


class JoinedPictures:
    """The pictures of several sources, one source after the other."""

    def __init__(self, parts: Sequence[Pictures]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def described(self) -> Iterator[str]:
        """See Pictures."""
        return chain.from_iterable(part.described() for part in self.parts)

    def missing(self) -> list[BadRecord]:
        """See Pictures."""
        return [record for part in self.parts for record in part.missing()]


@dataclass
class MixtureIndex:
    """What is known of the joint split; see PairIndex. `labels` is None where no source has any."""

    pictures: JoinedPictures
    rows: np.ndarray
    labels: np.ndarray | None
    counts: dict[str, int]
    files: list[Path]
    defects: list[BadRecord]


class Source(NamedTuple):
    """One source, and its weight in an epoch (None: its number of samples)."""

    name: str
    data: PairDataModule
    weight: float | None


class MixtureDataset(Dataset):
    """The samples of several datasets, one dataset after the other. A picture that several of them hold has one image id.

    Args:
        parts: training datasets; their `image_ids` are replaced.
        pad_id: what fills up short texts.
    """

    def __init__(self, parts: Sequence[PairDataset], pad_id: int) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.pad_id = pad_id
        self.labelled = any(part.labels is not None for part in self.parts)
        for part, image_ids in zip(self.parts, joint_image_ids(self.parts), strict=True):
            part.image_ids = image_ids

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, key: SampleKey) -> Loaded:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[SampleKey]) -> Loaded:
        """Load a batch: the rows of the first source, of the second, ..."""
        sources = np.searchsorted(self.starts, [key.index for key in keys], side="right") - 1
        batches: list[PairBatch] = []
        bad: list[BadRecord] = []
        truncated = 0
        for k in np.unique(sources).tolist():
            start = int(self.starts[k])
            mine = [
                SampleKey(key.epoch, key.index - start)
                for key, source in zip(keys, sources, strict=True)
                if source == k
            ]
            loaded = self.parts[k].__getitems__(mine)
            bad += loaded.bad
            truncated += loaded.truncated
            if loaded.batch is not None:
                batches.append(loaded.batch._replace(index=loaded.batch.index + start))
        return Loaded(self._join(batches) if batches else None, bad, truncated)

    def _join(self, batches: list[PairBatch]) -> PairBatch:
        tokens = _stack([batch.tokens for batch in batches], self.pad_id)
        masks = _stack([batch.token_mask for batch in batches], False)
        label = torch.cat(
            [batch.index.new_ones(len(batch.index)) if batch.label is None else batch.label for batch in batches]
        )
        joint = PairBatch(
            image=torch.cat([batch.image for batch in batches]),
            tokens=tokens,
            token_mask=masks,
            image_id=torch.cat([batch.image_id for batch in batches]),
            text_id=torch.cat([batch.text_id for batch in batches]),
            index=torch.cat([batch.index for batch in batches]),
            label=label if self.labelled else None,  # a caption is true of its picture
        )
        if all(batch.negatives is None for batch in batches):
            return joint
        none = [batch.tokens.new_empty(len(batch.index), 0, 0) for batch in batches]
        negatives = [e if b.negatives is None else b.negatives for b, e in zip(batches, none, strict=True)]
        present = [e.bool() if b.negatives is None else b.negatives_mask for b, e in zip(batches, none, strict=True)]
        return joint._replace(negatives=_stack(negatives, self.pad_id), negatives_mask=_stack(present, False))


class MixtureDataModule(PairDataModule):
    """Trains on several sources of pairs; `captions` of one and statements of another go together.

    An epoch takes of each source as many samples as its weight says, in an order that depends on (seed, epoch) alone; see MixtureSampler.
    A pair of a source without labels counts as true beside statements. Evaluation takes the splits of one source.

    Args:
        sources: by name, {"data": what makes the source, called with the settings that all share; "weight": its share of an epoch's
            samples, None for its number of samples}; an entry that is None is left out.
        samples: samples of an epoch; None: as many as all sources have.
        eval_source: the source whose `val_split` and `test_split` are taken.
        kwargs: see CrossViTDataModule, except `root`; SHARED of them hold for every source.

    Raises:
        UserError: see PairDataModule; also a weight that is negative, no source, or sources of one picture and of two.
    """

    LAYOUT = "  the roots of the sources: data.sources.<name>.data.root"

    def __init__(
        self,
        *,
        sources: dict[str, dict[str, Any] | None],
        eval_source: str,
        samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        given = {name: entry for name, entry in sources.items() if entry is not None}
        if eval_source not in given:
            raise UserError(
                f"data.eval_source={eval_source} is not one of the sources: {', '.join(given) or 'there is none'}."
            )
        if samples is not None and samples < 1:
            raise UserError(f"data.samples={samples} must be at least 1, or null for as many as there are.")
        super().__init__(root=given[eval_source]["data"].keywords["root"], **kwargs)
        shared = {key: kwargs[key] for key in SHARED if key in kwargs}
        self.sources = [
            Source(name, _make(name, entry["data"], shared, self.tokenizer), _weight(name, entry.get("weight")))
            for name, entry in given.items()
        ]
        self.num_negatives = max(source.data.num_negatives for source in self.sources)
        if any(isinstance(source.data, StreamDataModule) for source in self.sources):
            raise UserError(
                "data.sources: a mixture takes its samples from anywhere, a stream one shard after the other: use data=shards."
            )
        self.eval_source = next(source.data for source in self.sources if source.name == eval_source)
        self.samples = samples
        if self.shuffled:
            raise UserError(f"data.shuffled={self.shuffled}: give it to a source, data.sources.<name>.data.shuffled")

    @property
    def trainer(self):
        """Lightning's; the sources have the same, for rank and world size."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer) -> None:
        self._trainer = trainer
        for source in getattr(self, "sources", ()):  # none while they are made
            source.data.trainer = trainer

    def index(self, split: str) -> SplitIndex:
        """The joint split, or one of the evaluated source."""
        return super().index(split) if split == self.train_split else self.eval_source.index(split)

    def eval_loaders(self, split: str) -> EpochLoader | list[EpochLoader]:
        return self.eval_source.eval_loaders(split)

    def text_policy(self) -> str:
        return "; ".join(f"{source.name}: {source.data.text_policy()}" for source in self.sources)

    def shares(self) -> list[int]:
        """Samples of each source in an epoch.

        Raises:
            UserError: a weight leaves its source without a sample, or no weight is above 0.
        """
        sizes = self._sizes()
        weights = [s.weight if s.weight is not None else size for s, size in zip(self.sources, sizes, strict=True)]
        if not any(weights):
            raise UserError("data.sources: every weight is 0, there is nothing to train on.")
        exact = np.array(weights) / sum(weights) * (self.samples or sum(sizes))
        shares = np.floor(exact).astype(int)
        rest = round(exact.sum()) - shares.sum()
        shares[np.argsort(shares - exact, kind="stable")[:rest]] += 1  # the largest remainders
        for source, weight, share in zip(self.sources, weights, shares.tolist(), strict=True):
            if weight and not share:
                raise UserError(
                    f"data.sources.{source.name}.weight={weight} leaves it no sample of an epoch: raise it."
                )
        return shares.tolist()

    def _read_split(self, split: str) -> MixtureIndex:
        parts = [source.data.index(source.data._named("train_split")) for source in self.sources]
        if len({part.rows.shape[1:] for part in parts}) > 1:
            raise UserError("data.sources: sources of one picture a text do not mix with those of two (NLVR2).")
        sizes, shares = self._sizes(), self.shares()
        for source, size, share in zip(self.sources, sizes, shares, strict=True):
            passes = f"{share / size:.2f} times in an epoch"
            log.info("mixture: %s: %s of %s samples, %s", source.name, f"{share:,}", f"{size:,}", passes)
        labels = [
            np.ones(size, np.int64) if p.labels is None else p.labels for p, size in zip(parts, sizes, strict=True)
        ]
        return MixtureIndex(
            pictures=JoinedPictures([part.pictures for part in parts]),
            rows=np.concatenate([part.rows for part in parts]),
            labels=np.concatenate(labels) if any(part.labels is not None for part in parts) else None,
            counts={"samples": sum(shares)}
            | {f"{s.name} samples": n for s, n in zip(self.sources, sizes, strict=True)},
            files=[file for part in parts for file in part.files],
            defects=[defect for part in parts for defect in part.defects],
        )

    def _train_dataset(self, split: str) -> MixtureDataset:
        parts = [source.data._train_dataset(source.data._named("train_split")) for source in self.sources]
        return MixtureDataset(parts, self.tokenizer.pad_id)

    def _train_sampler(self, dataset: Dataset, rank: int, world_size: int) -> MixtureSampler:
        sizes, shares = self._sizes(), self.shares()
        return MixtureSampler(sizes, shares, self.batch_size, seed=self.seed, rank=rank, world_size=world_size)

    def _sizes(self) -> list[int]:
        return [source.data._train_length(source.data._named("train_split")) for source in self.sources]


def joint_image_ids(parts: Sequence[PairDataset]) -> list[np.ndarray]:
    """Image ids for each dataset, int64 (n,): equal within a dataset where its own are, and across datasets where the first sample with
    that id has the same file. Ids of different datasets would otherwise meet by accident, and one photograph would be its own negative.
    """
    known: dict[tuple[str, ...], int] = {}
    found = []
    for part in parts:
        _, first, place = np.unique(part.image_ids, return_index=True, return_inverse=True)
        ids = np.empty(len(first), dtype=np.int64)
        for i, sample in enumerate(first.tolist()):
            files = tuple(part.pictures.path(int(position)) for position in np.atleast_1d(part.rows[sample]))
            ids[i] = known.setdefault(files, len(known))
        found.append(ids[place])
    return found


def _stack(tensors: list[Tensor], fill: int | bool) -> Tensor:
    """Join along the first axis, filling the others up to the largest."""
    sizes = [max(t.shape[axis] for t in tensors) for axis in range(1, tensors[0].dim())]
    joint = tensors[0].new_full((sum(map(len, tensors)), *sizes), fill)
    start = 0
    for tensor in tensors:
        joint[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        start += len(tensor)
    return joint


def _make(name: str, make: Callable[..., PairDataModule], shared: dict[str, Any], tokenizer: Any) -> PairDataModule:
    for key, value in shared.items():
        own = make.keywords.get(key, value)
        if own != value and not (key == "bad_samples_dir" and own is None):
            log.warning(
                "data.sources.%s.data.%s=%s has no effect: data.%s=%s holds for all sources", name, key, own, key, value
            )
    data = make(**shared, tokenizer=tokenizer)
    if not isinstance(data, PairDataModule):
        raise UserError(f"data.sources.{name}: {type(data).__name__} holds no texts.")
    return data


def _weight(name: str, weight: float | None) -> float | None:
    if weight is not None and weight < 0:
        raise UserError(f"data.sources.{name}.weight={weight} must not be negative.")
    return weight
