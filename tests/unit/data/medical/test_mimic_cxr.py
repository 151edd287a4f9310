import math

import pytest
import torch

from crossvit.data.medical.mimic_cxr import MIMICCXRDataModule
from crossvit.data.reading.annotations import text_id
from crossvit.errors import UserError
from tests import films
from tests.films import FilmStudy, write_mimic, write_splits, write_table

CLASSES = ("Cardiomegaly", "No Finding", "Pneumonia")
STUDIES = {
    50000001: FilmStudy(
        10000032, "train", ("PA", "LATERAL"), ("1.0", "", "-1.0"), "The heart is ___ large.", "Cardiomegaly."
    ),
    50000002: FilmStudy(10000032, "train", ("AP", "AP"), ("", "1.0", ""), "The lungs are clear.", ""),
    50000003: FilmStudy(11000001, "train", ("PA",), ("", "1.0", "0.0"), "The lungs  are CLEAR", ""),
    50000004: FilmStudy(11000001, "train", ("LATERAL",), ("", "1.0", ""), "Only from the side.", ""),
    50000005: FilmStudy(11000001, "train", ("AP",), ("", "", ""), "___ Clear.", ""),
    50000006: FilmStudy(12000001, "validate", ("AP",), ("", "", "1.0"), "", "Right lower lobe pneumonia."),
    50000007: FilmStudy(12000002, "test", ("PA",), ("", "1.0", ""), "", ""),
}


@pytest.fixture(params=["csv.gz", "csv"])
def ending(request):
    return request.param


@pytest.fixture
def root(tmp_path, ending):
    """Seven studies of five patients."""
    return write_mimic(tmp_path / "mimic", STUDIES, CLASSES, ending)


def folder(study: int) -> str:
    return films.folder(STUDIES[study].patient, study)


def module(root, tokenizer, **options):
    settings = {"val_split": "validate", "test_split": "test", "max_bad_fraction": 0.0}
    return MIMICCXRDataModule(root=root, image_size=8, batch_size=3, tokenizer=tokenizer, **settings | options)


def test_frontal_films_with_the_report_of_their_study(root, tokenizer):
    data = module(root, tokenizer)
    data.validate()
    index = data.index("train")
    assert index.counts == {
        "samples": 4,
        "studies": 3,
        "patients": 2,
        "distinct reports": 2,
        "films of other views left out": 2,
        "reports of under 3 words left out": 1,
    }
    assert index.image_ids.tolist() == [50000001, 50000002, 50000002, 50000003]
    assert index.captions.texts[0] == "The heart is large. Cardiomegaly."  # without the mark of what was hidden
    assert data.images("train")[0] == (50000001, str(root / folder(50000001) / f"{films.dicom(50000001, 0)}.jpg"))
    assert [study for study, _, _ in data.captions("train")] == [50000001, 50000002, 50000003]
    assert index.patient_ids.tolist() == [10000032, 10000032, 11000001]
    assert [data.index(split).counts["samples"] for split in ("validate", "test")] == [1, 1]
    assert data.captions("test")[0][2] == "Lines and tubes are in place."  # neither section: the last paragraph


def test_equal_reports_share_their_text_id(root, tokenizer):
    data = module(root, tokenizer, eval_batch_size=9)
    (texts,) = data.text_loader("train")
    assert texts.image_id.tolist() == [50000001, 50000002, 50000003]
    assert texts.text_id.tolist()[1:] == [text_id("the lungs are clear.")] * 2
    (images,) = data.image_loader("train")
    assert images.label.tolist() == data.index("train").image_ids.tolist()
    batch = next(iter(data.train_dataloader()))
    ids = {50000001: text_id("The heart is large. Cardiomegaly.")}
    for study, text in zip(batch.image_id.tolist(), batch.text_id.tolist(), strict=True):
        assert text == ids.get(study, text_id("the lungs are clear"))


def test_labels(root, tokenizer):
    index = module(root, tokenizer).index("train")
    assert index.classes == list(CLASSES)
    rows = index.study_labels.tolist()
    assert rows[0][:2] == [1, 0] and math.isnan(rows[0][2])  # uncertain
    assert rows[1:] == [[0, 1, 0], [0, 1, 0]]
    other = module(root, tokenizer, uncertain="positive", unmentioned="ignore").index("train").study_labels
    assert other[0, 2] == 1 and math.isnan(other[0, 1]) and other[2, 2] == 0
    assert module(root, tokenizer, labels=None).index("train").classes == []


def test_labels_of_ones_own(root, tokenizer, tmp_path):
    write_table(tmp_path / "mine.csv", ("study_id", "Large heart"), [("s50000001", "1"), ("50000002", "0")])
    data = module(root, tokenizer, labels_file=tmp_path / "mine.csv")
    index = data.index("train")
    assert index.classes == ["Large heart"] and index.study_labels[:2, 0].tolist() == [1, 0]
    assert math.isnan(index.study_labels[2, 0])
    assert data.manifest()["sha256"] != module(root, tokenizer).manifest()["sha256"]
    write_table(tmp_path / "mine.csv", ("study_id", "Large heart"), [("50000001", "yes")])
    with pytest.raises(UserError, match=r"mine\.csv, line 2: Large heart='yes' must be 1, 0, -1 or empty"):
        module(root, tokenizer, labels_file=tmp_path / "mine.csv").validate()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("findings", ["The heart is large.", "The lungs are clear."]),
        ("impression_else_findings", ["The lungs are clear."]),  # Cardiomegaly. is one word
        ("longest", ["The heart is large.", "The lungs are clear."]),
        ("findings_else_impression", ["The heart is large.", "The lungs are clear."]),
    ],
)
def test_text_policies(root, tokenizer, section, expected):
    texts = [text for _, _, text in module(root, tokenizer, section=section).captions("train")]
    assert texts[: len(expected)] == expected


def test_a_policy_leaves_out_what_it_does_not_find(root, tokenizer):
    assert module(root, tokenizer, section="impression", min_words=1).index("train").counts["samples"] == 1
    with pytest.raises(UserError, match="'test' .* holds no usable sample"):
        module(root, tokenizer, last_paragraph=False).validate()


def test_all_views_and_first_films(root, tokenizer):
    assert module(root, tokenizer, views=None).index("train").counts["samples"] == 6
    first = module(root, tokenizer, films="first").index("train")
    assert first.image_ids.tolist() == [50000001, 50000002, 50000003]


def test_sections_from_the_table(root, tokenizer, tmp_path, ending):
    place = tmp_path / "reports"
    place.mkdir()
    rows = [
        (f"s{s}", row.impression, row.findings, "The end of it.", "") for s, row in STUDIES.items() if s != 50000003
    ]
    header = ("study", "impression", "findings", "last_paragraph", "comparison")
    write_table(place / f"mimic_cxr_sectioned.{ending}", header, rows)
    data = module(root, tokenizer, reports_root=place, max_bad_fraction=0.4)
    data.validate()
    assert [text for _, _, text in data.captions("train")] == [
        "The heart is large. Cardiomegaly.",
        "The lungs are clear.",
    ]
    assert data.bad_count == 1  # study 50000003 is not in the table
    assert data.captions("test")[0][2] == "The end of it."


def test_a_patient_in_two_splits_is_an_error(root, tokenizer, ending):
    moved = STUDIES[50000003]._replace(split="validate")
    write_splits(root, STUDIES | {50000003: moved}, ending)
    with pytest.raises(
        UserError, match=r"in more than one split: 1, the first is 11000001 \(train, validate\)(.|\n)*leave_out"
    ):
        module(root, tokenizer).validate()
    data = module(root, tokenizer, shared_patients="leave_out")
    assert data.index("train").patient_ids.tolist() == [10000032, 10000032]
    assert data.index("train").counts["films of patients in another split left out"] == 2
    assert data.index("validate").image_ids.tolist() == [50000003, 50000006]


def test_what_is_missing_or_damaged_is_named(root, tokenizer, ending):
    (root / f"{folder(50000002)}.txt").unlink()
    (root / f"{folder(50000003)}.txt").write_bytes(b" FINDINGS: 37.9\xb0 and clear lungs")
    data = module(root, tokenizer, max_bad_fraction=0.9)
    assert data.index("train").image_ids.tolist() == [50000001]
    assert {record.reason for record in data.index("train").defects} == {"missing file", "not UTF-8 text"}
    (root / f"mimic-cxr-2.0.0-chexpert.{ending}").unlink()
    with pytest.raises(UserError, match=r"mimic-cxr-2\.0\.0-chexpert\.csv\.gz is not there\. Expected:\n  <root>"):
        module(root, tokenizer).validate()
    module(root, tokenizer, labels=None, max_bad_fraction=0.9).index("train")
    (root / f"mimic-cxr-2.0.0-metadata.{ending}").unlink()
    with pytest.raises(UserError, match="metadata"):
        module(root, tokenizer).validate()


def test_no_report_at_all_shows_the_tree(root, tokenizer):
    with pytest.raises(UserError, match=r"no report of any film(.|\n)*mimic_cxr_sectioned\.csv"):
        module(root, tokenizer, reports_root=root / "nowhere").validate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"section": "all"}, r"data\.section=all is not one of findings, impression, both"),
        ({"films": "second"}, r"data\.films=second"),
        ({"uncertain": "maybe"}, r"data\.uncertain=maybe is not one of positive, negative, ignore"),
        ({"labels": "mine"}, r"data\.labels=mine is not one of chexpert, negbio"),
        ({"shared_patients": "yes"}, r"data\.shared_patients=yes"),
        ({"min_words": 0}, r"data\.min_words=0"),
        ({"val_split": "val"}, r"no film of split 'val' \(its splits: test, train, validate\)"),
        ({"views": ["FRONTAL"]}, r"holds no usable sample"),
    ],
)
def test_wrong_values(root, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        module(root, tokenizer, **options).validate()


def test_films_are_read(root, tokenizer):
    batch = next(iter(module(root, tokenizer, flip=False).train_dataloader()))
    assert batch.image.shape == (3, 3, 8, 8) and batch.image.dtype == torch.uint8 and batch.label is None
