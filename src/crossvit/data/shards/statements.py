"""True and false statements about pictures, in tars on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.datasets import Captions
from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import text_id
from crossvit.data.shards.captions import ShardPictures, Shards, ShardTexts, without
from crossvit.data.shards.index import damaged_records
from crossvit.data.vlr import StatementDataModule


class StatementShardsDataModule(StatementDataModule):
    """Tars in webdataset form with a statement for each picture: `<key>.jpg` with `<key>.json` of "caption" and "label" (0 or 1, or below
    `num_relations`), and if it is known "relation" and "image_id", which the statements about one picture share.

    Args:
        shards, index_dir: see Shards.
        num_relations: number of label values.
        kwargs: see PairDataModule.

    Raises:
        UserError: see PairDataModule; also tars that are not there or damaged beyond `max_bad_fraction`.
    """

    LAYOUT = """\
  <root>/{train,dev,test}-*.tar    (data.shards: a pattern with {split}, {0000..0575} or *, or one for each split)
  in a tar: <key>.jpg (or jpeg, png, webp) with <key>.json ("caption", "label"; "relation" and "image_id" where they are known)
  `crossvit data pack data=vsr` writes such."""

    def __init__(
        self,
        *,
        shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] = "{split}-*.tar",
        index_dir: str | Path | None = None,
        num_relations: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shards = Shards(self.root, shards, index_dir, self.bad_samples.max_fraction)
        self.num_relations = num_relations

    def _read_split(self, split: str) -> PairIndex:
        shards = self.shards.indexes(split)
        labels, image_ids = (np.concatenate([getattr(s, name) for s in shards]) for name in ("labels", "image_ids"))
        sizes = np.concatenate([np.diff(shard.caption_starts) for shard in shards])
        first = np.concatenate([[0], np.cumsum(sizes)])
        usable = (sizes == 1) & (labels >= 0) & (labels < self.num_relations)
        chosen = np.flatnonzero(usable)
        defects = [record for shard in shards for record in damaged_records(shard)]
        defects += without(shards, np.flatnonzero(~usable), f"no caption with one of {self.num_relations} labels")
        texts = ShardTexts(shards, first[chosen])
        relations = [shard.relation(row) for shard in shards for row in range(len(shard))]
        values, counts = np.unique(labels[chosen], return_counts=True)
        named = len(chosen) and image_ids[chosen].min() >= 0
        return PairIndex(
            pictures=ShardPictures(shards, chosen),
            rows=np.arange(len(chosen)),
            captions=Captions(texts, np.arange(len(chosen) + 1)),
            image_ids=image_ids[chosen] if named else np.arange(len(chosen)),
            counts={"samples": len(chosen), "shards": len(shards)}
            | {f"label {value}": int(count) for value, count in zip(values, counts, strict=True)},
            labels=labels[chosen],
            relations=[relations[i] for i in chosen.tolist()],
            sentence_ids=np.array([text_id(text) for text in texts], dtype=np.int64),
            defects=defects,
        )
