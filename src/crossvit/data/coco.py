"""COCO captions: pictures with several captions each."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.captions import CaptionDataModule, CaptionIndex, caption_index
from crossvit.data.datasets import Captions
from crossvit.data.reading.annotations import read_json
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError

_YEARS = ("2017", "2014")


class Twin(NamedTuple):
    """A caption and one that is false of the same image and differs from it in one thing."""

    image_id: int
    caption: str
    negative: str
    kind: str


class COCODataModule(CaptionDataModule):
    """COCO captions in the form of 2017 or 2014, whichever is found.

    Args:
        negatives: how many false captions a training sample gets, from `annotations/negatives_<split><year>.json`
            ({"<caption id>": [{"caption": str, "kind": str}, ...]}); 0 for none.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also `negatives` above 0 without that file.
    """

    LAYOUT = """\
  <root>/train2017/*.jpg    <root>/val2017/*.jpg            (or train2014/, val2014/)
  <root>/annotations/captions_train2017.json    <root>/annotations/captions_val2017.json
  <root>/annotations/negatives_train2017.json               (only for data.negatives)"""
    DOWNLOAD = """\
  https://cocodataset.org/#download: 2017: train2017.zip (18 GB), val2017.zip (1 GB), annotations_trainval2017.zip (241 MB);
  118,287 + 5,000 pictures. 2014: train2014.zip (13 GB), val2014.zip (6 GB), annotations_trainval2014.zip (241 MB);
  82,783 + 40,504 pictures. Licence: captions CC BY 4.0; each picture its own (`license` in the json)."""

    def __init__(self, *, negatives: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if negatives < 0:
            raise UserError(f"data.negatives={negatives} must not be negative.")
        self.num_negatives = int(negatives)

    def twins(self, split: str) -> list[Twin]:
        """Every pair of a caption and a false caption.

        Raises:
            UserError: the split has no file of negatives.
        """
        index = self.index(split)
        negatives, kinds = read_negatives(self._negatives_file(split), index.caption_ids)
        return [
            Twin(int(index.caption_image_ids[c]), index.captions.texts[c], negatives.texts[n], kinds[n])
            for c in range(len(index.captions.texts))
            for n in negatives.group(c)
        ]

    def _read_split(self, split: str) -> CaptionIndex:
        found = find_captions(self.root, split)
        if isinstance(found, str):
            raise self._layout_error(found)
        index = read_captions(*found)
        if self.num_negatives and split == self.train_split:
            negatives_file = self._negatives_file(split)
            index.negatives, _ = read_negatives(negatives_file, index.caption_ids)
            index.files.append(negatives_file)
        return index

    def _negatives_file(self, split: str) -> Path:
        found = _find_annotations(self.root, "negatives", split)
        if isinstance(found, str):
            raise self._layout_error(found)
        return found


def find_captions(root: Path, split: str) -> tuple[Path, Path] | str:
    """The captions file and the pictures' folder of a split, or what is missing."""
    file = _find_annotations(root, "captions", split)
    if isinstance(file, str):
        return file
    folder = root / f"{split}{file.stem[-4:]}"
    return (file, folder) if folder.is_dir() else f"{folder} is not a folder."


def training_captions(root: Path) -> Path:
    """The captions file of a COCO folder's training split.

    Raises:
        UserError: it is not there.
    """
    found = _find_annotations(root, "captions", "train")
    if isinstance(found, str):
        raise UserError(f"{found} It holds the captions of COCO's training split.")
    return found


def _find_annotations(root: Path, kind: str, split: str) -> Path | str:
    """An annotation file, in the form of 2017 or of 2014, or what is missing."""
    candidates = [root / "annotations" / f"{kind}_{split}{year}.json" for year in _YEARS]
    found = next((path for path in candidates if path.is_file()), None)
    return found or f"{candidates[0]} is not there (nor is the form of 2014)."


def read_captions(file: Path, folder: Path) -> CaptionIndex:
    """Read a COCO captions file. Records that lack a key, repeat an id or name an unknown image become `defects`; images without a caption
    are passed over.

    Raises:
        UserError: the file is not JSON, or not of this form.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise UserError(f'{file}: expected {{"images": [...], "annotations": [...]}} as in COCO captions.')
    defects: list[BadRecord] = []
    names = _image_names(file, content["images"], defects)
    annotations = _usable_captions(file, content["annotations"], names, defects)
    del content
    image_of = np.fromiter((int(a["image_id"]) for a in annotations), np.int64, len(annotations))
    listed = np.fromiter(names, np.int64, len(names))
    image_ids = listed[np.isin(listed, image_of)]
    by_id = np.argsort(image_ids)
    position = by_id[np.searchsorted(image_ids, image_of, sorter=by_id)]
    return caption_index(
        Pictures([names[i] for i in image_ids.tolist()], [folder]),
        image_ids,
        position,
        [a["caption"] for a in annotations],
        np.fromiter((int(a["id"]) for a in annotations), np.int64, len(annotations)),
        files=[file],
        defects=defects,
    )


def _image_names(file: Path, records: list, defects: list[BadRecord]) -> dict[int, str]:
    """File names by image id."""
    names: dict[int, str] = {}
    for number, record in enumerate(records):
        reason = _image_defect(record, names)
        if reason is None:
            names[int(record["id"])] = record["file_name"]
        else:
            defects.append(BadRecord(f"{file}: images[{number}]", reason))
    return names


def _usable_captions(file: Path, records: list, names: dict[int, str], defects: list[BadRecord]) -> list[dict]:
    """The records of captions that can be used. The official files are whole, and looking at columns settles that in a moment."""
    try:
        ids, images, texts = ([record[key] for record in records] for key in ("id", "image_id", "caption"))
    except (KeyError, TypeError):
        pass
    else:
        typed = set(map(type, ids)) | set(map(type, images)) <= {int} and set(map(type, texts)) <= {str}
        small = typed and max(map(abs, ids), default=0) < 2**63
        if small and len(set(ids)) == len(ids) and names.keys() >= set(images):
            return records
    seen: set[int] = set()
    usable = []
    for number, record in enumerate(records):
        reason = _caption_defect(record, seen, names)
        if reason is None:
            seen.add(int(record["id"]))
            usable.append(record)
        else:
            defects.append(BadRecord(f"{file}: annotations[{number}]", reason))
    return usable


def read_negatives(file: Path, caption_ids: np.ndarray) -> tuple[Captions, list[str]]:
    """Read the false captions: one group for each caption (empty where the file has none), and the kind of each.

    Raises:
        UserError: the file is not JSON, or not of this form.
    """
    records = read_json(file)
    texts: list[str] = []
    kinds: list[str] = []
    starts = [0]
    try:
        for caption_id in caption_ids.tolist():
            for record in records.get(str(caption_id), ()):
                texts.append(record["caption"])
                kinds.append(record["kind"])
            starts.append(len(texts))
    except (AttributeError, KeyError, TypeError):
        form = '{"<caption id>": [{"caption": "...", "kind": "..."}, ...]}'
        raise UserError(f"{file}: expected {form}.") from None
    return Captions(PackedStrings(texts), np.array(starts, dtype=np.int64)), kinds


def _image_defect(record: Any, names: dict[int, str]) -> str | None:
    if not isinstance(record, dict) or not _is_id(record.get("id")):
        return "no integer 'id'"
    if not isinstance(record.get("file_name"), str) or os.path.isabs(record["file_name"]):
        return "no relative 'file_name'"
    return f"id {record['id']} is used twice" if int(record["id"]) in names else None


def _caption_defect(record: Any, seen: set[int], names: dict[int, str]) -> str | None:
    if not isinstance(record, dict) or not _is_id(record.get("id")):
        return "no integer 'id'"
    if not isinstance(record.get("caption"), str):
        return "no text 'caption'"
    if int(record["id"]) in seen:
        return f"id {record['id']} is used twice"
    if not _is_id(record.get("image_id")) or int(record["image_id"]) not in names:
        return f"caption of an image that is not listed (image_id {record.get('image_id')!r})"
    return None


def _is_id(value: Any) -> bool:
    """Whether a value is an integer that fits 64 bits; some releases write ids as strings."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    try:
        return abs(int(value)) < 2**63
    except ValueError:
        return False
