"""Lists of pictures with captions in json, as ALBEF and BLIP read them."""

from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.captions import CaptionDataModule, CaptionIndex
from crossvit.data.reading.annotations import read_json
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.held_out import HeldOut
from crossvit.data.table import Table
from crossvit.errors import UserError


class CaptionListDataModule(CaptionDataModule):
    """A json list of {"image": path, "caption": text or list of texts}; other keys are passed over (Li et al. 2021).

    Rows of one path are one picture.

    Args:
        annotations: file of a split below the root; `{split}` stands for its name.
        images_root: folder that the paths start from; None: `root`.
        held_out: share of the pictures of `train` that form the split `held_out` instead.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also a split that the file name does not tell apart.
    """

    LAYOUT = """\
  <root>/{train,val,test}.json    (data.annotations, e.g. coco_{split}.json)
  a file: [{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": "..." or ["...", "..."]}, ...]
  the pictures lie under <root>, or data.images_root"""
    DOWNLOAD = """\
  https://github.com/salesforce/ALBEF, "Dataset json files for downstream tasks" and "pre-training": lists for COCO, Flickr30k,
  Visual Genome, SBU, CC3M, CC12M; the pictures come from each dataset's own site.
  Licence: of each dataset."""

    def __init__(
        self,
        *,
        annotations: str = "{split}.json",
        images_root: str | Path | None = None,
        held_out: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = Table(self.root, annotations, images_root, HeldOut(held_out))

    def _read_split(self, split: str) -> CaptionIndex:
        file = self.table.file(split)
        if not file.is_file():
            raise self._layout_error(f"{file} is not there.")
        rows = read_json(file)
        if not isinstance(rows, list):
            raise UserError(f'{file}: expected a list of {{"image": ..., "caption": ...}}.')
        defects: list[BadRecord] = []
        position: dict[str, int] = {}
        image_of: list[int] = []
        texts: list[str] = []
        for number, row in enumerate(rows):
            found = self.table.row(row, "image", "caption") if isinstance(row, dict) else "not an object"
            if isinstance(found, str):
                defects.append(BadRecord(f"{file}: [{number}]", found))
            elif self.table.held_out.keeps(split, found.image):
                place = position.setdefault(found.image, len(position))
                image_of += [place] * len(found.captions)
                texts += found.captions
        return self.table.index(list(position), np.array(image_of, dtype=np.int64), texts, file, defects)
