"""MIMIC-CXR-JPG: chest films of patients, with the reports of MIMIC-CXR."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossvit.data.medical.reports import (
    ReportDataModule,
    Sections,
    Study,
    find_table,
    one_of,
    parse_report,
    read_table,
    whole_number,
)
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.errors import UserError

_PREFIX = "mimic-cxr-2.*"
_LABELLERS = ("chexpert", "negbio")
_VALUES = {"1": 1.0, "0": 0.0, "-1": -1.0}
_POLICIES = {"positive": 1.0, "negative": 0.0, "ignore": float("nan")}
_ORDER = {"train": 0, "validate": 1, "test": 2}
_SECTIONED = "mimic_cxr_sectioned"


class MIMICCXRDataModule(ReportDataModule):
    """MIMIC-CXR-JPG 2.0.0 or 2.1.0 (Johnson et al. 2019). Every table may be csv or csv.gz.

    Args:
        reports_root: folder of the reports, `files/p10/...txt` or `mimic_cxr_sectioned.csv` (which wins); None: `root`.
        views: the values of ViewPosition that are read, by default the frontal ones; None: all films.
        labels: the table that labels come from, `chexpert` or `negbio`; None: no labels.
        labels_file: a table of one's own in its place: a column `study_id` and for each class one of 1, 0, -1 or nothing.
        shared_patients: `error`, or `leave_out`: films of a patient in several splits stay in the last of train, validate, test alone.
        uncertain, unmentioned: what a label of -1, and an empty one, counts as: `positive`, `negative` or `ignore`.
        kwargs: see ReportDataModule.

    Raises:
        UserError: see CrossViTDataModule; also a patient in two splits, and a value that is not known.
    """

    MASK = "___"
    LAYOUT = """\
  <root>/mimic-cxr-2.0.0-metadata.csv.gz   mimic-cxr-2.0.0-split.csv.gz   mimic-cxr-2.0.0-chexpert.csv.gz   (or .csv)
  <root>/files/p10/p<subject>/s<study>/<dicom>.jpg
  <root>/files/p10/p<subject>/s<study>.txt   or   <root>/mimic_cxr_sectioned.csv   (or either at data.reports_root)"""
    DOWNLOAD = """\
  https://physionet.org/content/mimic-cxr-jpg/ (films and tables: 377,110 films) and https://physionet.org/content/mimic-cxr/
  (mimic-cxr-reports.zip: 227,827 reports), for credentialed users. mimic_cxr_sectioned.csv is made from the reports by
  https://github.com/MIT-LCP/mimic-cxr. Licence: PhysioNet Credentialed Health Data License, no redistribution."""

    def __init__(
        self,
        *,
        reports_root: str | Path | None = None,
        views: Sequence[str] | None = ("AP", "PA"),
        labels: str | None = "chexpert",
        labels_file: str | Path | None = None,
        uncertain: str = "ignore",
        unmentioned: str = "negative",
        shared_patients: str = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("labels", labels, (*_LABELLERS, None))
        one_of("shared_patients", shared_patients, ("error", "leave_out"))
        one_of("uncertain", uncertain, _POLICIES)
        one_of("unmentioned", unmentioned, _POLICIES)
        self.reports_root = self.root if reports_root is None else Path(reports_root)
        self.views = None if views is None else tuple(map(str, views))
        self.labels = labels
        self.labels_file = None if labels_file is None else Path(labels_file)
        self.shared_patients = shared_patients
        self._counts_as = {-1.0: _POLICIES[uncertain], None: _POLICIES[unmentioned]}

    def _read_studies(self, split: str) -> tuple[list[Study], list[Path], list[BadRecord], Counter[str]]:
        metadata, splits = self._table("metadata"), self._table("split")
        views = {row["dicom_id"]: row["ViewPosition"] for _, row in read_table(metadata, ("dicom_id", "ViewPosition"))}
        defects: list[BadRecord] = []
        left_out: Counter[str] = Counter()
        films: dict[tuple[int, int], list[str]] = defaultdict(list)
        for number, row in self._films(splits, split, left_out):
            subject, study, dicom = whole_number(row["subject_id"]), whole_number(row["study_id"]), row["dicom_id"]
            if subject is None or study is None or dicom not in views:
                reason = "no whole subject_id and study_id" if dicom in views else f"{dicom} is not in {metadata.name}"
                defects.append(BadRecord(f"{splits}, line {number}", reason))
            elif self.views is not None and views[dicom] not in self.views:
                left_out["films of other views left out"] += 1
            else:
                films[subject, study].append(f"{folder(subject)}/s{study}/{dicom}.jpg")
        labels, label_files = self._labels({study for _, study in films})
        sections, report_files = self._sections(films, defects)
        studies = [
            Study(study, subject, tuple(names), sections[study], labels.get(study, {}))
            for (subject, study), names in films.items()
            if study in sections
        ]
        return studies, [metadata, splits, *label_files, *report_files], defects, left_out

    def _films(self, splits: Path, split: str, left_out: Counter[str]) -> list[tuple[int, dict[str, str]]]:
        """The lines of one split. No patient may be in two."""
        rows: list[tuple[int, dict[str, str]]] = []
        splits_of: dict[str, set[str]] = defaultdict(set)
        for number, row in read_table(splits, ("dicom_id", "study_id", "subject_id", "split")):
            splits_of[row["subject_id"]].add(row["split"])
            if row["split"] == split:
                rows.append((number, row))
        if not rows:
            names = ", ".join(sorted(set().union(*splits_of.values())))
            raise self._layout_error(f"{splits} has no film of split '{split}' (its splits: {names}).")
        shared = {patient: names for patient, names in splits_of.items() if len(names) > 1}
        if shared and self.shared_patients == "error":
            patient, names = next(iter(shared.items()))
            raise UserError(
                f"{splits}: patients in more than one split: {len(shared)}, the first is {patient} ({', '.join(sorted(names))}). "
                "A test on patients seen in training says nothing: mend the table, or set data.shared_patients=leave_out."
            )
        last = {
            patient: max(names, key=lambda name: _ORDER.get(name, len(_ORDER))) for patient, names in shared.items()
        }
        kept = [(number, row) for number, row in rows if last.get(row["subject_id"], split) == split]
        if shared:
            left_out["films of patients in another split left out"] = len(rows) - len(kept)
        return kept

    def _sections(
        self, studies: dict[tuple[int, int], list[str]], defects: list[BadRecord]
    ) -> tuple[dict[int, Sections], list[Path]]:
        """The reports by study, and the files they come from. One that is not there or not to be read is a defect."""
        table = find_table(self.reports_root, _SECTIONED)
        if table is not None:
            wanted = {study for _, study in studies}
            found = {}
            for _, row in read_table(table, ("study", "findings", "impression", "last_paragraph")):
                study = whole_number(row["study"])
                if study in wanted:
                    found[study] = Sections(*(row[name] or "" for name in Sections._fields))
            defects += [BadRecord(f"{table}: s{study}", "no report") for study in sorted(wanted - set(found))]
            return found, [table]
        found, files = {}, []
        for subject, study in studies:
            file = self.reports_root / folder(subject) / f"s{study}.txt"
            try:
                found[study] = parse_report(file.read_text(encoding="utf-8"))
                files.append(file)
            except (OSError, UnicodeDecodeError) as error:
                defects.append(BadRecord(str(file), "missing file" if isinstance(error, OSError) else "not UTF-8 text"))
        if not found and studies:
            raise self._layout_error(f"{self.reports_root}: no report of any film, e.g. {defects[-1].path}.")
        return found, files

    def _labels(self, wanted: set[int]) -> tuple[dict[int, dict[str, float]], list[Path]]:
        """{study: {class: 1, 0 or nan}} and the table they come from."""
        if self.labels is None and self.labels_file is None:
            return {}, []
        path = self.labels_file or self._table(self.labels)
        found = {}
        for number, row in read_table(path, ("study_id",)):
            study = whole_number(row["study_id"])
            if study in wanted:
                classes = (name for name in row if name not in ("subject_id", "study_id", None))
                found[study] = {name: self._label(path, number, name, row[name]) for name in classes}
        return found, [path]

    def _label(self, path: Path, number: int, name: str, text: str | None) -> float:
        text = (text or "").strip()
        value = _VALUES.get(text.removesuffix(".0")) if text else None
        if text and value is None:
            raise UserError(f"{path}, line {number}: {name}={text!r} must be 1, 0, -1 or empty.")
        return self._counts_as.get(value, value)

    def _table(self, kind: str) -> Path:
        path = find_table(self.root, f"{_PREFIX}-{kind}")
        if path is None:
            raise self._layout_error(f"{self.root}/mimic-cxr-2.0.0-{kind}.csv.gz is not there.")
        return path


def folder(subject: int) -> str:
    """Where a patient's studies lie: patients are grouped by the first two figures of their number."""
    return f"files/p{str(subject)[:2]}/p{subject}"
