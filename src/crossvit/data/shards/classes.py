"""Pictures with classes in tars on disk."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.imagenet import CLASSES, ImageIndex, ImageNetDataModule
from crossvit.data.shards.captions import ShardPictures, Shards, without
from crossvit.data.shards.index import damaged_records
from crossvit.errors import UserError


class ClassShardsDataModule(ImageNetDataModule):
    """Tars in webdataset form with a class for each picture: `<key>.jpg` with `<key>.cls` (a number) or `<key>.json` ("label").

    Args:
        shards, index_dir: see Shards.
        kwargs: see CrossViTDataModule.

    Raises:
        UserError: see CrossViTDataModule; also tars that are not there or damaged beyond `max_bad_fraction`.
    """

    LAYOUT = """\
  <root>/{train,val}-*.tar    (data.shards: a pattern with {split}, {0000..0575} or *, or one for each split)
  in a tar: <key>.jpg (or jpeg, png, webp) with <key>.cls (a number from 0) or <key>.json ("label")
  <root>/LOC_synset_mapping.txt    (the class of each number, a line "n01440764 tench, Tinca tinca"; optional)
  `crossvit data pack data=imagenet` writes such."""
    DOWNLOAD = ""

    def __init__(
        self,
        *,
        shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] = "{split}-*.tar",
        index_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shards = Shards(self.root, shards, index_dir, self.bad_samples.max_fraction)

    @cached_property
    def classes(self) -> list[tuple[str, str]]:
        """(name in short, readable name) in the order of the labels; numbers where there is no file of names."""
        file = self.root / CLASSES
        if file.is_file():
            lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            return [(line[0], line[-1].strip()) for line in lines]
        labels = [shard.labels.max(initial=-1) for shard in self.shards.indexes(self._named("train_split"))]
        return [(str(number), str(number)) for number in range(int(max(labels)) + 1)]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def _read_split(self, split: str) -> ImageIndex:
        shards = self.shards.indexes(split)
        labels = np.concatenate([shard.labels for shard in shards])
        chosen = np.flatnonzero(labels >= 0)
        if len(chosen) and (largest := int(labels.max())) >= self.num_classes:
            raise UserError(f"Split '{split}' of {self.root}: class {largest}, but {self._known()}.")
        counts = {"samples": len(chosen), "classes": len(np.unique(labels[chosen])), "shards": len(shards)}
        defects = [record for shard in shards for record in damaged_records(shard)]
        defects += without(shards, np.flatnonzero(labels < 0), "no class")
        return ImageIndex(ShardPictures(shards, chosen), labels[chosen], counts, self._mapping(), defects)

    def _known(self) -> str:
        if self._mapping():
            return f"{self.root / CLASSES} names {self.num_classes}"
        return f"the training shards have {self.num_classes}"
