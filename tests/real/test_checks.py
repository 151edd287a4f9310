"""What docs/data_checks.md says was found in the photographs."""

import os
from pathlib import Path

import pytest

from crossvit.data.checks.check import check
from crossvit.data.medical.mimic_cxr import MIMICCXRDataModule
from crossvit.data.nlvr import NLVRDataModule
from crossvit.data.tokenizer import WordTokenizer

pytestmark = pytest.mark.real

DATA = Path(os.environ.get("CROSSVIT_REAL_DATA") or Path(__file__).parents[2] / "../shared/data").resolve()


def found(kind, name: str, splits: list[str], **options) -> dict[tuple[str, str], int]:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there: set CROSSVIT_REAL_DATA to the folder that holds {name}/")
    settings = {"image_size": 32, "batch_size": 1, "max_bad_fraction": 1.0, "tokenizer": WordTokenizer()}
    report = check(kind(root=DATA / name, **settings, **options), splits)
    assert report["faults"] == 0
    return {(finding["check"], finding["split"]): finding["count"] for finding in report["findings"]}


def test_drawings_that_are_there_twice_are_no_look_alikes_of_others():
    notes = found(NLVRDataModule, "vlr_nlvr1", ["dev"])
    assert notes == {("size", "dev"): 2_967, ("duplicates", "dev"): 69, ("repeated_pairs", "dev"): 44}


def test_one_patient_under_two_numbers():
    options = {"shared_patients": "leave_out", "views": None}
    notes = found(MIMICCXRDataModule, "mimic_cxr_like", ["train", "validate"], **options)
    assert notes[("look_alikes", "train")] == 4
