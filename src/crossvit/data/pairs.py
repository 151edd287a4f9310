"""What all image-text datasets share."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.datasets import Captions, PairDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.module import CrossViTDataModule
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import Draw
from crossvit.data.transforms import EvalTransform, TrainTransform
from crossvit.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class PairIndex:
    """One split of image-text pairs; n samples.

    Attributes:
        pictures: the files.
        rows: int64 (n,) or (n, 2): the pictures of each sample.
        captions: one group a sample.
        image_ids: int64 (n,).
        counts: sizes by name.
        labels: int64 (n,), or None where all pairs match.
        relations: the kind of relation of each sample ("" where the data name none), or None.
        sentence_ids: int64 (n,), equal for the statements of one sentence, or None where there are no statements.
        negatives: for each caption a group of captions that are false of its picture, or None.
        files: annotation files that were read.
        defects: records that could not be used.
    """

    pictures: Pictures
    rows: np.ndarray
    captions: Captions
    image_ids: np.ndarray
    counts: dict[str, int]
    labels: np.ndarray | None = None
    relations: list[str] | None = None
    sentence_ids: np.ndarray | None = None
    negatives: Captions | None = None
    files: list[Path] = field(default_factory=list)
    defects: list[BadRecord] = field(default_factory=list)


class PairDataModule(CrossViTDataModule):
    """Batches of pairs.

    Args:
        shuffled: share of the training pictures, drawn by `seed`, that change places among themselves: their captions, with labels
            and false captions, then stand beside another picture. 1 leaves nothing to learn of how the two sides fit.
        kwargs: see CrossViTDataModule; `tokenizer` is needed.

    Raises:
        UserError: `shuffled` is not a share.
        ValueError: no tokenizer.
    """

    num_negatives = 0

    def __init__(self, *, shuffled: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= shuffled <= 1:
            raise UserError(f"data.shuffled={shuffled} must lie between 0 and 1.")
        self.shuffled = shuffled
        if self.tokenizer is None:
            raise ValueError(f"{type(self).__name__} reads captions and needs a tokenizer")

    def index(self, split: str) -> PairIndex:
        return super().index(split)

    def pair_loader(self, split: str) -> EpochLoader:
        """Every sample of a split once, in order, with its first caption: `PairBatch`."""
        return self._eval_loader(split, self._pair_dataset(split, self._eval_transform), self.num_workers)

    def text_policy(self) -> str:
        """What becomes of a text, in words for the log."""
        return self.tokenizer.policy()

    def train_dataloader(self) -> EpochLoader:
        log.info("%s: texts: %s", type(self).__name__, self.text_policy())
        return super().train_dataloader()

    def _train_dataset(self, split: str) -> PairDataset:
        return self._pair_dataset(split, self._train_transform, self.shuffled)

    def _pair_dataset(
        self, split: str, transform: TrainTransform | EvalTransform, shuffled: float = 0.0
    ) -> PairDataset:
        index = self.index(split)
        source = exchanged(index.image_ids, shuffled, self.seed)
        return PairDataset(
            self._pictures(split, transform),
            index.rows[source],
            index.captions,
            index.image_ids[source],
            self.tokenizer,
            transform,
            seed=self.seed,
            labels=index.labels,
            negatives=index.negatives,
            num_negatives=self.num_negatives,
        )


def exchanged(image_ids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) for each sample the one whose picture it gets: its own, or for a `share` of the pictures another's, the same for all samples
    of one picture. The pictures that move go round in one circle, so none of them stays.
    """
    _, first, place = np.unique(image_ids, return_index=True, return_inverse=True)
    rng = np.random.default_rng((seed, Draw.EXCHANGE))
    moving = rng.permutation(len(first))[: round(share * len(first))]
    order = np.arange(len(first))
    order[moving] = np.roll(moving, 1)
    return np.where(order[place] == place, np.arange(len(image_ids)), first[order[place]])
