"""OpenI (IU X-ray, Indiana University): chest films with reports that anyone may fetch."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from crossvit.data.medical.reports import ReportDataModule, Sections, Study, find_table, read_table, whole_number
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.errors import UserError

_XML, _PNG = "ecgen-radiology", "NLMCXR_png"
_REPORTS, _PROJECTIONS = "indiana_reports", "indiana_projections"
_PICTURES = ("images/images_normalized", "images_normalized", "images", "")
_PARTS = {"train": range(80), "val": range(80, 90), "test": range(90, 100), "all": range(100)}
_NOT_INDEXED = "No Indexing"


class OpenIDataModule(ReportDataModule):
    """OpenI in the form of the National Library of Medicine (xml) or of Kaggle (csv), whichever is found.

    It has no official split: `train`, `val` and `test` are 80, 10 and 10 % of the studies by a hash of their number, the same everywhere,
    and `all` is all of them. A study is its own patient.

    Args:
        views: the projections that are read; None: all films. Only `indiana_projections.csv` names them, which may lie beside the xml.
        classes: headings of MeSH ("normal" among them) that are labels of a study.
        kwargs: see ReportDataModule.

    Raises:
        UserError: see CrossViTDataModule; also `views` without a table of projections.
    """

    MASK = "XXXX"
    LAYOUT = """\
  <root>/ecgen-radiology/*.xml    <root>/NLMCXR_png/CXR*.png    (and indiana_projections.csv, which says which films are frontal)
  or as Kaggle ships it: <root>/indiana_reports.csv    <root>/indiana_projections.csv    <root>/images/images_normalized/*.png"""
    DOWNLOAD = """\
  https://openi.nlm.nih.gov/faq: NLMCXR_png.tgz (7,470 films) and NLMCXR_reports.tgz (3,955 reports).
  Or https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university (3,851 reports). Licence: CC BY-NC-ND 4.0."""

    def __init__(
        self, *, views: Sequence[str] | None = ("Frontal",), classes: Sequence[str] = ("normal",), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.views = None if views is None else tuple(map(str, views))
        self.classes = tuple(classes)

    def _read_studies(self, split: str) -> tuple[list[Study], list[Path], list[BadRecord], Counter[str]]:
        if split not in _PARTS:
            raise UserError(f"data: split '{split}' of OpenI is not one of {', '.join(_PARTS)}.")
        views, projections = self._projections()
        read = self._read_xml if (self.root / _XML).is_dir() else self._read_csv
        studies, files, defects = read(split, views)
        left_out: Counter[str] = Counter()
        kept = []
        for study in studies:
            wanted = tuple(name for name in study.films if self.views is None or views.get(bare(name)) in self.views)
            left_out["films of other views left out"] += len(study.films) - len(wanted)
            left_out["reports without film left out"] += not wanted
            kept += [study._replace(films=wanted)] if wanted else []
        if views and studies and not any(bare(name) in views for study in studies for name in study.films):
            raise UserError(f"{projections[0]} names none of the films of {self.root}: is it of another download?")
        return kept, [*projections, *files], defects, left_out

    def _projections(self) -> tuple[dict[str, str], list[Path]]:
        """{film: Frontal or Lateral}."""
        path = find_table(self.root, _PROJECTIONS)
        if path is None:
            if self.views is None and (self.root / _XML).is_dir():
                return {}, []
            raise self._layout_error(
                f"{self.root / _PROJECTIONS}.csv is not there, which names the view of each film "
                "(data.views=null reads all films of the xml form)."
            )
        rows = read_table(path, ("uid", "filename", "projection"))
        return {bare(row["filename"]): row["projection"] for _, row in rows}, [path]

    def _read_xml(self, split: str, views: dict[str, str]) -> tuple[list[Study], list[Path], list[BadRecord]]:
        pictures = self.root / _PNG
        if not pictures.is_dir():
            raise self._layout_error(f"{pictures} is not a folder.")
        studies, files, defects = [], [], []
        for file in sorted((self.root / _XML).glob("*.xml")):
            uid = whole_number(file.stem)
            if uid is None or not in_split(uid, split):
                continue
            try:
                record = ElementTree.parse(file).getroot()
            except (ElementTree.ParseError, OSError) as error:
                defects.append(BadRecord(str(file), f"not XML ({error})"))
                continue
            texts = {part.get("Label"): part.text or "" for part in record.iter("AbstractText")}
            films = tuple(f"{_PNG}/{image.get('id')}.png" for image in record.iter("parentImage") if image.get("id"))
            headings = [heading.text or "" for heading in record.iter("major")]
            sections = Sections(texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""))
            studies.append(Study(uid, uid, films, sections, self._labels(headings)))
            files.append(file)
        return studies, files, defects

    def _read_csv(self, split: str, views: dict[str, str]) -> tuple[list[Study], list[Path], list[BadRecord]]:
        path = find_table(self.root, _REPORTS)
        if path is None:
            raise self._layout_error(f"neither {self.root / _XML}/ nor {self.root / _REPORTS}.csv is there.")
        listing, films = self._listing(), defaultdict(list)
        for _, row in read_table(find_table(self.root, _PROJECTIONS), ("uid", "filename")):
            films[whole_number(row["uid"])].append(str(Path(listing) / row["filename"]))
        studies, defects = [], []
        for number, row in read_table(path, ("uid", "MeSH", "findings", "impression")):
            uid = whole_number(row["uid"])
            if uid is None:
                defects.append(BadRecord(f"{path}, line {number}", "no whole uid"))
            elif in_split(uid, split):
                sections = Sections(row["findings"] or "", row["impression"] or "")
                labels = self._labels((row["MeSH"] or "").split(";"))
                studies.append(Study(uid, uid, tuple(films[uid]), sections, labels))
        return studies, [path], defects

    def _listing(self) -> str:
        """The folder of Kaggle's pictures, relative to the root."""
        for place in _PICTURES:
            folder = self.root / place
            if folder.is_dir() and any(name.endswith(".png") for name in os.listdir(folder)):
                return place
        raise self._layout_error(f"{self.root / _PICTURES[0]} holds no png.")

    def _labels(self, headings: Sequence[str]) -> dict[str, float]:
        """`Cardiomegaly/mild` is of class Cardiomegaly. Nothing is known of a study that nobody has indexed."""
        named = {heading.split("/")[0].strip() for heading in headings} - {""}
        unknown = not named or _NOT_INDEXED in named
        return {name: float("nan") if unknown else float(name in named) for name in self.classes}


def bare(name: str) -> str:
    """A film's name without folder and ending, the same in both forms: `1_IM-0001-4001.dcm.png` is `CXR1_1_IM-0001-4001.png` in the
    official one, where all studies but the first are named like `CXR1000_IM-0003-1001.png`."""
    stem = Path(name).name.removesuffix(".png").removesuffix(".dcm")
    return re.sub(r"^CXR(?:\d+_)?(?=\d+_)", "", stem)


def in_split(uid: int, split: str) -> bool:
    """Whether a study belongs to a split, by a hash of its number."""
    return int.from_bytes(hashlib.blake2b(str(uid).encode(), digest_size=8).digest()) % 100 in _PARTS[split]
