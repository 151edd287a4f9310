"""MIMIC-CXR-JPG in the schema of the release, made small."""

import csv
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class FilmStudy(NamedTuple):
    """One study: whose it is, the views of its films, its labels and what its report says."""

    patient: int
    split: str
    views: tuple[str, ...]
    labels: tuple[str, ...]
    findings: str
    impression: str = ""


def write_mimic(root: Path, studies: Mapping[int, FilmStudy], classes: Sequence[str], ending: str = "csv.gz") -> Path:
    """Films of 12 px, reports as text files and the three tables, `csv` or `csv.gz`."""
    films = [(study, number) for study, row in studies.items() for number in range(len(row.views))]
    for seed, (study, number) in enumerate(films):
        path = root / folder(studies[study].patient, study) / f"{dicom(study, number)}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "JPEG")
    for study, row in studies.items():
        (root / f"{folder(row.patient, study)}.txt").write_text(report(row.findings, row.impression))
    header = ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows")
    rows = [(dicom(s, f), studies[s].patient, s, "CHEST", studies[s].views[f], 12) for s, f in films]
    write_table(root / f"mimic-cxr-2.0.0-metadata.{ending}", header, rows)
    write_splits(root, studies, ending)
    rows = [(row.patient, study, *row.labels) for study, row in studies.items()]
    write_table(root / f"mimic-cxr-2.0.0-chexpert.{ending}", ("subject_id", "study_id", *classes), rows)
    return root


def write_splits(root: Path, studies: Mapping[int, FilmStudy], ending: str) -> None:
    """The table of splits."""
    films = [(study, number) for study, row in studies.items() for number in range(len(row.views))]
    rows = [(dicom(s, f), s, studies[s].patient, studies[s].split) for s, f in films]
    write_table(root / f"mimic-cxr-2.0.0-split.{ending}", ("dicom_id", "study_id", "subject_id", "split"), rows)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A csv file, gzipped where its name says so."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def dicom(study: int, number: int) -> str:
    """Five groups of eight hexadecimal figures."""
    return "-".join(f"{study:08x}" for _ in range(4)) + f"-{number:08x}"


def folder(patient: int, study: int) -> str:
    """Where the films of a study lie."""
    return f"files/p{str(patient)[:2]}/p{patient}/s{study}"


def report(findings: str, impression: str) -> str:
    """With the sections that say something, or with neither."""
    parts = [f" FINDINGS:\n\n {findings}\n"] if findings else []
    parts += [f" IMPRESSION:\n\n {impression}\n"] if impression else []
    return " FINAL REPORT\n\n" + ("\n".join(parts) or " Lines and tubes are in place.\n")


def few_films(root: Path) -> Path:
    """12 films to train on and 6 in each of the other splits, of classes Cardiomegaly and Pneumonia, two reports twice."""
    says = ("The heart is large.", "There is an opacity in the left lung.", "The lungs are clear.")
    studies = {}
    for number in range(24):
        split = "train" if number < 12 else "validate" if number < 18 else "test"
        kind = number % 3
        labels = ("1.0" if kind == 0 else "0.0", "1.0" if kind == 1 else "")
        findings = says[kind] if number % 6 < 3 else f"{says[kind]} Unchanged since {number}."
        studies[50000000 + number] = FilmStudy(10000000 + number, split, ("PA",), labels, findings)
    return write_mimic(root, studies, ("Cardiomegaly", "Pneumonia"))


def few_films_of_openi(root: Path) -> Path:
    """12 frontal films in Kaggle's form of OpenI, two reports twice."""
    folder = root / "images" / "images_normalized"
    folder.mkdir(parents=True)
    kinds = (
        ("normal", "The lungs are clear."),
        ("Cardiomegaly/mild", "The heart is large."),
        ("Scoliosis", "No effusion."),
    )
    names = {uid: f"{uid}_IM-{uid:04d}-1001.dcm.png" for uid in range(1, 13)}
    for uid, name in names.items():
        pixels = np.random.default_rng(uid).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    rows = [(uid, name, "Frontal") for uid, name in names.items()]
    write_table(root / "indiana_projections.csv", ("uid", "filename", "projection"), rows)
    says = {uid: f"{kinds[uid % 3][1]}{'' if uid < 7 else f' As in {uid}.'}" for uid in names}
    rows = [(uid, kinds[uid % 3][0], says[uid], "As before.") for uid in names]
    write_table(root / "indiana_reports.csv", ("uid", "MeSH", "findings", "impression"), rows)
    return root
