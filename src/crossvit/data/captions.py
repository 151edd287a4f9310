"""Pictures with one caption or several: what COCO, Karpathy's splits, json lists and a user's own tables share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.datasets import Captions, ImageDataset, PairDataset, TextDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.pairs import PairDataModule, PairIndex
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError

CAPTION_POLICIES = {
    "one": "a training sample is a picture with one of its captions, drawn anew in each epoch",
    "every": "every caption is a training sample",
}


@dataclass
class CaptionIndex(PairIndex):
    """One split; captions are sorted by image.

    Attributes:
        caption_ids: int64, the file's id of each caption.
        caption_image_ids: int64, the image each caption was written for.
    """

    caption_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    caption_image_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


class CaptionDataModule(PairDataModule):
    """Base of the datasets of captioned pictures. Training yields `PairBatch` without label.

    An evaluation goes over every image once and over every caption once: `eval_loaders` is `[image_loader, text_loader]`, which yield
    `ImageBatch(image, label = image id, index)` and `TextBatch`.

    Args:
        captions: `one` or `every`, see CAPTION_POLICIES. It concerns training alone.
        kwargs: see PairDataModule.

    Raises:
        UserError: see CrossViTDataModule; also an unknown policy.
    """

    def __init__(self, *, captions: str = "one", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if captions not in CAPTION_POLICIES:
            raise UserError(f"data.captions={captions} is not one of {', '.join(CAPTION_POLICIES)}.")
        self.caption_policy = captions

    def index(self, split: str) -> CaptionIndex:
        return super().index(split)

    def images(self, split: str) -> list[tuple[int, str]]:
        """(image id, file) of every image, in the order of `image_loader`."""
        index = self.index(split)
        return [(int(image_id), index.pictures.path(i)) for i, image_id in enumerate(index.image_ids)]

    def captions(self, split: str) -> list[tuple[int, int, str]]:
        """(caption id, image id, text) of every caption, in the order of `text_loader`."""
        index = self.index(split)
        ids = zip(index.caption_ids.tolist(), index.caption_image_ids.tolist(), index.captions.texts, strict=True)
        return list(ids)

    def training_texts(self) -> list[str]:
        """Every caption of split `train`, for a text-only baseline. Raises UserError where the layout is wrong."""
        return [text for _, _, text in self.captions("train")]

    def image_loader(self, split: str) -> EpochLoader:
        """Every image once, in order."""
        dataset = ImageDataset(
            self._pictures(split, self._eval_transform), self.index(split).image_ids, self._eval_transform
        )
        return self._eval_loader(split, dataset, self.num_workers)

    def text_loader(self, split: str) -> EpochLoader:
        """Every caption once, in order."""
        index = self.index(split)
        dataset = TextDataset(index.captions.texts, index.caption_image_ids, self.tokenizer)
        return self._eval_loader(split, dataset, num_workers=0)

    def eval_loaders(self, split: str) -> list[EpochLoader]:
        return [self.image_loader(split), self.text_loader(split)]

    def text_policy(self) -> str:
        return f"{super().text_policy()}; {CAPTION_POLICIES[self.caption_policy]}"

    def _train_length(self, split: str) -> int:
        if self.caption_policy == "every":
            return len(self.index(split).captions.texts)
        return super()._train_length(split)

    def _train_dataset(self, split: str) -> PairDataset:
        dataset = super()._train_dataset(split)
        if self.caption_policy == "every":
            sizes = np.diff(dataset.captions.starts)
            dataset.rows = dataset.rows.repeat(sizes, axis=0)
            dataset.image_ids = dataset.image_ids.repeat(sizes)
            dataset.captions = Captions(dataset.captions.texts, np.arange(len(dataset.captions.texts) + 1))
        return dataset


def caption_index(
    pictures: Pictures,
    image_ids: np.ndarray,
    image_of: np.ndarray,
    texts: Sequence[str],
    caption_ids: np.ndarray | None = None,
    files: Sequence[Path] = (),
    defects: Sequence[BadRecord] = (),
) -> CaptionIndex:
    """Index m pictures, each with a caption or more, and their c captions in any order.

    Args:
        image_ids: int64 (m,).
        image_of: int64 (c,), the position of each caption's picture.
        texts: c captions.
        caption_ids: int64 (c,); None: their number in `texts`.
        files: annotation files that were read.
        defects: records that could not be used.
    """
    captions, order = group_captions(image_of, texts, len(image_ids))
    caption_ids = np.arange(len(texts)) if caption_ids is None else caption_ids
    return CaptionIndex(
        pictures=pictures,
        rows=np.arange(len(image_ids)),
        captions=captions,
        image_ids=image_ids,
        counts={"samples": len(image_ids), "captions": len(texts)},
        files=files,
        defects=list(defects),
        caption_ids=caption_ids[order],
        caption_image_ids=image_ids.repeat(np.diff(captions.starts)),
    )


def group_captions(image_of: np.ndarray, texts: Sequence[str], count: int) -> tuple[Captions, np.ndarray]:
    """Sort captions by image, keeping the order of those of one image.

    Args:
        image_of: int64 (c,), the position of each caption's image.
        texts: c captions.
        count: number of images.

    Returns:
        One group an image, and (c,) where each sorted caption stood.
    """
    order = np.argsort(image_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(image_of, minlength=count))]).astype(np.int64)
    return Captions(PackedStrings(texts[i] for i in order.tolist()), starts), order
