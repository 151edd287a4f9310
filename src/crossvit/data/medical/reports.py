"""Chest films and their reports: what MIMIC-CXR and OpenI share."""

import csv
import gzip
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.datasets import Captions, ImageDataset, TextDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.pairs import PairDataModule, PairIndex
from crossvit.data.reading.annotations import text_id
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError

SECTIONS = {
    "findings": lambda findings, impression: findings,
    "impression": lambda findings, impression: impression,
    "both": lambda findings, impression: " ".join(dict.fromkeys(filter(None, (findings, impression)))),
    "findings_else_impression": lambda findings, impression: findings or impression,
    "impression_else_findings": lambda findings, impression: impression or findings,
    "longest": lambda findings, impression: max(findings, impression, key=len),
}
"""What of a report is its text. `longest` is that of CXR-CLIP (You et al. 2023)."""

# A heading begins a line, in capitals, and ends with a colon. Shorter ones are abbreviations within a text.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&'-]{3,}?)[ \t]*:", re.MULTILINE)
_FINDINGS = ("FINDINGS", "FINDING")
_IMPRESSION = ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


class Sections(NamedTuple):
    """What a report says; "" for a section that it lacks."""

    findings: str = ""
    impression: str = ""
    last_paragraph: str = ""


class Study(NamedTuple):
    """One report with its films (names relative to the root) and its labels (1, 0 or nan by class)."""

    study_id: int
    patient_id: int
    films: tuple[str, ...]
    sections: Sections
    labels: dict[str, float]


@dataclass
class ReportIndex(PairIndex):
    """One split; a sample is a film, in order of the studies. s studies, c classes.

    Attributes:
        study_ids: int64 (s,).
        patient_ids: int64 (s,).
        texts: the report of each study.
        classes: names of the labels.
        study_labels: float (s, c): 1 present, 0 absent, nan not to be used.
    """

    study_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    patient_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    texts: PackedStrings = field(default_factory=lambda: PackedStrings(()))
    classes: list[str] = field(default_factory=list)
    study_labels: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))


class ReportDataModule(PairDataModule):
    """Base of the datasets of films with reports.

    A training sample is one film with its study's report; its image id is the study. Films of one study, and films with equal reports
    (equal text id), are positives of each other. An evaluation goes over every film once and over every study's report once:
    `eval_loaders` is `[image_loader, text_loader]`, which yield `ImageBatch(image, label = study id, index)` and `TextBatch`.

    Args:
        section: what of a report is its text, a key of `SECTIONS`.
        last_paragraph: a report with neither section gives its last paragraph; False leaves it out.
        min_words: a report with fewer words is left out, and counted.
        films: `all` films of a study, or its `first`.
        kwargs: see PairDataModule.

    Raises:
        UserError: see CrossViTDataModule; also a value that is not known.
    """

    MASK: str
    """How the dataset writes what was taken out to hide who the patient is; it is no word of the report."""

    def __init__(
        self,
        *,
        section: str = "both",
        last_paragraph: bool = True,
        min_words: int = 3,
        films: str = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("section", section, SECTIONS)
        one_of("films", films, ("all", "first"))
        if min_words < 1:
            raise UserError(f"data.min_words={min_words} must be at least 1.")
        self.section = section
        self.last_paragraph = last_paragraph
        self.min_words = min_words
        self.films = films

    @abstractmethod
    def _read_studies(self, split: str) -> tuple[list[Study], list[Path], list[BadRecord], Counter[str]]:
        """The studies of a split with their films, the files read, what could not be used, and counts of what was left out by rule."""

    def index(self, split: str) -> ReportIndex:
        return super().index(split)

    def images(self, split: str) -> list[tuple[int, str]]:
        """(study id, file) of every film, in the order of `image_loader`."""
        index = self.index(split)
        return [(int(study_id), index.pictures.path(i)) for i, study_id in enumerate(index.image_ids)]

    def captions(self, split: str) -> list[tuple[int, int, str]]:
        """(study id, study id, report) of every study, in the order of `text_loader`."""
        index = self.index(split)
        return [(study, study, text) for study, text in zip(index.study_ids.tolist(), index.texts, strict=True)]

    def training_texts(self) -> list[str]:
        """Every report of split `train`. Raises UserError where the layout is wrong."""
        return list(self.index("train").texts)

    def image_loader(self, split: str) -> EpochLoader:
        """Every film once, in order."""
        dataset = ImageDataset(
            self._pictures(split, self._eval_transform), self.index(split).image_ids, self._eval_transform
        )
        return self._eval_loader(split, dataset, self.num_workers)

    def text_loader(self, split: str) -> EpochLoader:
        """Every study's report once, in order."""
        index = self.index(split)
        return self._eval_loader(split, TextDataset(index.texts, index.study_ids, self.tokenizer), num_workers=0)

    def eval_loaders(self, split: str) -> list[EpochLoader]:
        return [self.image_loader(split), self.text_loader(split)]

    def text_policy(self) -> str:
        last = ", else the last paragraph" if self.last_paragraph else ""
        return f"{super().text_policy()}; of a report: {self.section}{last}; at least {self.min_words} words"

    def _read_split(self, split: str) -> ReportIndex:
        studies, files, defects, left_out = self._read_studies(split)
        kept: list[Study] = []
        texts: list[str] = []
        for study in studies:
            text = self._text(study.sections)
            if len(text.split()) >= self.min_words:
                kept.append(study)
                texts.append(text)
            else:
                left_out[
                    f"reports of under {self.min_words} words left out" if text else "reports without section"
                ] += 1
        films = [study.films[:1] if self.films == "first" else study.films for study in kept]
        sizes = [len(names) for names in films]
        study_ids = np.array([study.study_id for study in kept], dtype=np.int64)
        classes = list(dict.fromkeys(name for study in kept for name in study.labels))
        table = [[study.labels.get(name, np.nan) for name in classes] for study in kept]
        counts = {
            "samples": sum(sizes),
            "studies": len(kept),
            "patients": len({study.patient_id for study in kept}),
            "distinct reports": len(set(map(text_id, texts))),
        }
        return ReportIndex(
            pictures=Pictures([name for names in films for name in names], [self.root]),
            rows=np.arange(sum(sizes)),
            captions=Captions(
                PackedStrings(text for text, size in zip(texts, sizes, strict=True) for _ in range(size)),
                np.arange(sum(sizes) + 1),
            ),
            image_ids=np.repeat(study_ids, sizes),
            counts=counts | dict(left_out),
            files=files,
            defects=defects,
            study_ids=study_ids,
            patient_ids=np.array([study.patient_id for study in kept], dtype=np.int64),
            texts=PackedStrings(texts),
            classes=classes,
            study_labels=np.array(table, dtype=np.float64).reshape(len(kept), len(classes)),
        )

    def _text(self, sections: Sections) -> str:
        findings, impression, last = (self._clean(part) for part in sections)
        if self.last_paragraph and not findings and not impression:
            return last
        return SECTIONS[self.section](findings, impression)

    def _clean(self, text: str) -> str:
        """One line without the marks of what was hidden."""
        return " ".join(text.replace(self.MASK, "").split())


def parse_report(text: str) -> Sections:
    """The sections of a report by their headings; one that comes twice is joined. What stands under a heading that names both findings
    and impression is both. The last paragraph is what follows the last blank line or heading.
    """
    headings = list(_HEADING.finditer(text))
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    for heading, following in zip(headings, [*headings, None][1:], strict=True):
        body = text[heading.end() : len(text) if following is None else following.start()].strip()
        named = set(re.split(r"[ /&,]+", heading[1]))
        if named & set(_IMPRESSION):
            parts["impression"].append(body)
        if named & set(_FINDINGS):
            parts["findings"].append(body)
    last = _BLANK_LINE.split(text[headings[-1].end() :] if headings else text)
    found = [paragraph.strip() for paragraph in last if paragraph.strip()]
    return Sections(*(" ".join(filter(None, part)) for part in parts.values()), found[-1] if found else "")


def find_table(root: Path, stem: str) -> Path | None:
    """`<stem>.csv` or `<stem>.csv.gz` below a folder; the stem may hold `*`. The name that sorts last, for releases are numbered."""
    found = [*root.glob(f"{stem}.csv"), *root.glob(f"{stem}.csv.gz")]
    return max(found, key=lambda path: path.name.removesuffix(".gz")) if found else None


def read_table(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a csv file, gzipped where its name ends in .gz.

    Raises:
        UserError: the file is missing or damaged, is not UTF-8, or lacks one of the columns.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in columns if name not in (rows.fieldnames or ())]
            if lacking:
                raise UserError(f"{path}: no column {', '.join(lacking)} (found {', '.join(rows.fieldnames or ())}).")
            for row in rows:
                yield rows.line_num, row
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from None
    except (UnicodeDecodeError, EOFError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}). Restore the file.") from None


def whole_number(value: str | None) -> int | None:
    """An id as an integer, from `10000032` or with letters before it (`p10000032`, `s50414267`); None where it is none."""
    found = re.fullmatch(r"\s*[a-zA-Z]*(\d{1,18})\s*", value or "")
    return int(found[1]) if found else None


def one_of(key: str, value: object, known: Sequence[str] | Mapping[str, Any]) -> None:
    """Raises UserError where a value of `data.<key>` is not known."""
    if value not in known:
        raise UserError(f"data.{key}={value} is not one of {', '.join(map(str, known))}.")
