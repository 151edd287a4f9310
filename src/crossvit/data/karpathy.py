"""Karpathy's splits of COCO, Flickr30k and Flickr8k."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.captions import CaptionDataModule, CaptionIndex, caption_index
from crossvit.data.reading.annotations import read_json
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError

log = logging.getLogger(__name__)

# folders that hold the pictures of a source, as their archives unpack
_FOLDERS = {
    "coco": (),
    "flickr30k": ("flickr30k-images", "flickr30k_images", "images"),
    "flickr8k": ("Flicker8k_Dataset", "Flickr8k_Dataset", "images"),
}
_YEARS = ("train2017", "val2017")
RESTVAL = ("train", "leave_out")


class KarpathyDataModule(CaptionDataModule):
    """The splits train, val and test of `dataset_{coco,flickr30k,flickr8k}.json` (Karpathy and Fei-Fei 2015).

    Args:
        source: coco, flickr30k or flickr8k.
        restval: `train`: COCO's pictures of split `restval` join `train`, as is usual; `leave_out`.
        eval_captions: captions that a picture of any split but train and restval keeps, the first so many; None: all. COCO's test split
            has 25,010, and 25,000 with five each.
        images_root: folder that holds the pictures, or COCO's folders of pictures; None: `root`.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also a value that is not known.
    """

    LAYOUT = """\
  <root>/dataset_{coco,flickr30k,flickr8k}.json    (data.source; or in <root>/annotations/)
  coco        <root>/{train2014,val2014}/*.jpg    (or 2017's <root>/{train2017,val2017}/*.jpg)
  flickr30k   <root>/flickr30k-images/*.jpg       (or <root>/images/)
  flickr8k    <root>/Flicker8k_Dataset/*.jpg      (or <root>/images/)
  The pictures may lie below data.images_root."""
    DOWNLOAD = """\
  Splits: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip (37 MB).
  Pictures: COCO's 2014 (https://cocodataset.org/#download: train2014.zip 13 GB, val2014.zip 6 GB);
  Flickr30k (https://shannon.cs.illinois.edu/DenotationGraph/, a form; 31,783 pictures, about 4 GB);
  Flickr8k (the same authors, a form; 8,000 pictures, 1.1 GB).
  Licence: COCO's captions CC BY 4.0, each picture its own; Flickr30k and Flickr8k for non-commercial research and education."""

    def __init__(
        self,
        *,
        source: str,
        restval: str = "train",
        eval_captions: int | None = None,
        images_root: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for key, value, known in (("source", source, _FOLDERS), ("restval", restval, RESTVAL)):
            if value not in known:
                raise UserError(f"data.{key}={value} is not one of {', '.join(known)}.")
        if eval_captions is not None and eval_captions < 1:
            raise UserError(f"data.eval_captions={eval_captions} must be at least 1, or null for all.")
        self.source = source
        self.restval = restval
        self.eval_captions = eval_captions
        self.images_root = self.root if images_root is None else Path(images_root)

    def _read_split(self, split: str) -> CaptionIndex:
        file = self._file()
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise UserError(
                f'{file}: expected {{"images": [...], "dataset": "{self.source}"}} as in Karpathy\'s splits.'
            )
        wanted = {split, "restval"} if split == "train" and self.restval == "train" else {split}
        keep = None if split in ("train", "restval") else self.eval_captions
        defects: list[BadRecord] = []
        records: list[dict] = []
        image_of: list[int] = []
        texts: list[str] = []
        caption_ids: list[int] = []
        cut = 0
        for number, record in enumerate(content["images"]):
            if not isinstance(record, dict) or record.get("split") not in wanted:
                continue
            try:
                sentences = [(str(s["raw"]), int(s["sentid"])) for s in record["sentences"]]
                int(record.get("cocoid", record["imgid"]))
                if not isinstance(record["filename"], str):
                    raise TypeError(f"filename {record['filename']!r}")
            except (KeyError, TypeError, ValueError) as error:
                defects.append(BadRecord(f"{file}: images[{number}]", f"no {error}"))
                continue
            kept = sentences[:keep]
            if not kept:
                defects.append(BadRecord(f"{file}: images[{number}]", "no sentence"))
                continue
            cut += len(sentences) - len(kept)
            image_of += [len(records)] * len(kept)
            texts += [text for text, _ in kept]
            caption_ids += [sentence for _, sentence in kept]
            records.append(record)
        if not records and not defects:
            found = sorted({str(r.get("split")) for r in content["images"] if isinstance(r, dict)})
            raise UserError(f"{file}: no picture of split '{split}' (its splits: {', '.join(found)}).")
        log.info("Karpathy %s: %s", split, self._policy(records, cut))
        image_ids = np.array([int(r.get("cocoid", r["imgid"])) for r in records], dtype=np.int64)
        return caption_index(
            self._place(records),
            image_ids,
            np.array(image_of, dtype=np.int64),
            texts,
            np.array(caption_ids, dtype=np.int64),
            files=[file],
            defects=defects,
        )

    def _policy(self, records: list[dict], cut: int) -> str:
        """What `restval` and `eval_captions` came to, in words."""
        rest = sum(record["split"] == "restval" for record in records)
        restval = f"{rest:,} of {len(records):,} pictures are of restval (data.restval={self.restval})"
        return f"{restval}; {cut:,} captions left out (data.eval_captions={self.eval_captions})"

    def _place(self, records: list[dict]) -> Pictures:
        """The files of the pictures. Those of COCO have another name in the form of 2017, the same pictures."""
        root = self.images_root
        if not root.is_dir():
            raise self._layout_error(f"data.images_root: {root} is not a folder.")
        names = [str(Path(record.get("filepath") or "") / record["filename"]) for record in records]
        if self.source != "coco":
            folder = next((root / name for name in _FOLDERS[self.source] if (root / name).is_dir()), root)
            return Pictures(names, [folder])
        years = [root / year for year in _YEARS if (root / year).is_dir()]
        if years and names and not (root / names[0]).parent.is_dir() and all("cocoid" in record for record in records):
            return Pictures([f"{int(record['cocoid']):012d}.jpg" for record in records], years)
        return Pictures(names, [root])

    def _file(self) -> Path:
        name = f"dataset_{self.source}.json"
        candidates = [folder / name for folder in (self.root, self.root / "annotations")]
        for path in candidates:
            if path.is_file():
                return path
        raise self._layout_error(f"{candidates[0]} is not there.")
