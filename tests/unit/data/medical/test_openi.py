import csv
import math

import pytest

from crossvit.data.medical.openi import OpenIDataModule, in_split
from crossvit.errors import UserError

# study: (headings, findings, impression, films as (name, projection))
STUDIES = {
    1: (
        ["normal"],
        "The lungs are clear.",
        "Normal chest x-XXXX.",
        [("IM-0001-4001", "Frontal"), ("IM-0001-3001", "Lateral")],
    ),
    2: (
        ["Cardiomegaly/borderline", "Pulmonary Artery/enlarged"],
        "Borderline XXXX cardiomegaly.",
        "",
        [("IM-0652-1001", "Frontal")],
    ),
    3: (["No Indexing"], "", "The lungs are clear.", [("IM-1384-1001", "Frontal")]),
    4: (["normal"], "Nothing to be seen.", "", []),
    5: (["normal"], "", "", [("IM-2117-1003002", "Frontal")]),
}


def official_name(uid: int, name: str) -> str:
    """As the library names its films: the first study's number stands twice."""
    return f"CXR1_1_{name}" if uid == 1 else f"CXR{uid}_{name}"


def projections(root):
    with (root / "indiana_projections.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("uid", "filename", "projection"))
        rows.writerows((uid, f"{uid}_{name}.dcm.png", view) for uid, row in STUDIES.items() for name, view in row[3])


@pytest.fixture
def kaggle(tmp_path, picture):
    root = tmp_path / "kaggle"
    for uid, row in STUDIES.items():
        for number, (name, _) in enumerate(row[3]):
            picture(root / "images" / "images_normalized" / f"{uid}_{name}.dcm.png", 10 * uid + number)
    projections(root)
    with (root / "indiana_reports.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"))
        for uid, (headings, findings, impression, _) in STUDIES.items():
            rows.writerow((uid, ";".join(headings), "", "Chest", "Cough", "None.", findings, impression))
    return root


@pytest.fixture
def official(tmp_path, picture):
    root = tmp_path / "official"
    (root / "ecgen-radiology").mkdir(parents=True)
    (root / "NLMCXR_png").mkdir()
    for uid, (headings, findings, impression, films) in STUDIES.items():
        for number, (name, _) in enumerate(films):
            picture(root / "NLMCXR_png" / f"{official_name(uid, name)}.png", 10 * uid + number)
        images = "".join(
            f'<parentImage id="{official_name(uid, name)}"><caption>Chest</caption></parentImage>' for name, _ in films
        )
        texts = f'<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>'
        majors = "".join(f"<major>{heading}</major>" for heading in headings)
        (root / "ecgen-radiology" / f"{uid}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>{texts}'
            f"</Abstract></Article></MedlineCitation><MeSH>{majors}</MeSH>{images}</eCitation>"
        )
    return root


def module(root, tokenizer, **options):
    settings = {"train_split": None, "val_split": None, "test_split": "all", "max_bad_fraction": 0.0}
    settings |= {"classes": ("normal", "Cardiomegaly"), "last_paragraph": False}
    return OpenIDataModule(root=root, image_size=8, batch_size=2, tokenizer=tokenizer, **settings | options)


def contents(data):
    data.validate()
    index = data.index("all")
    return index.counts, list(index.texts), index.study_labels.tolist()


def test_both_forms_say_the_same(kaggle, official, tokenizer):
    projections(official)
    counts, texts, labels = contents(module(kaggle, tokenizer))
    assert texts == ["The lungs are clear. Normal chest x-.", "The lungs are clear."]
    assert counts == {
        "samples": 2,
        "studies": 2,
        "patients": 2,
        "distinct reports": 2,
        "films of other views left out": 1,
        "reports without film left out": 1,
        "reports of under 3 words left out": 1,
        "reports without section": 1,
    }
    assert labels[0] == [1, 0] and all(map(math.isnan, labels[1]))
    again = contents(module(official, tokenizer))
    assert again[:2] == (counts, texts) and again[2][0] == labels[0]
    for root in (kaggle, official):
        (batch,) = module(root, tokenizer).image_loader("all")
        assert batch.label.tolist() == [1, 3] and batch.image.shape == (2, 3, 8, 8)


def test_views_of_other_films(official, tokenizer):
    (official / "indiana_projections.csv").write_text(
        "uid,filename,projection\n1,another_IM-0001-4001.dcm.png,Frontal\n"
    )
    with pytest.raises(UserError, match=r"indiana_projections\.csv names none of the films"):
        module(official, tokenizer).validate()


def test_the_xml_alone_does_not_name_the_views(official, tokenizer):
    with pytest.raises(UserError, match=r"indiana_projections\.csv is not there(.|\n)*data\.views=null"):
        module(official, tokenizer).validate()
    index = module(official, tokenizer, views=None, min_words=2).index("all")
    assert index.image_ids.tolist() == [1, 1, 2, 3]
    assert index.study_labels[1].tolist() == [0, 1]


def test_splits_are_shares_of_the_studies():
    parts = {
        split: {uid for uid in range(1, 4000) if in_split(uid, split)} for split in ("train", "val", "test", "all")
    }
    assert parts["train"] | parts["val"] | parts["test"] == parts["all"] == set(range(1, 4000))
    assert sum(len(parts[split]) for split in ("train", "val", "test")) == len(parts["all"])
    assert 3100 < len(parts["train"]) < 3300 and 340 < len(parts["val"]) < 460


def test_what_is_missing_is_named(kaggle, official, tokenizer):
    with pytest.raises(UserError, match="split 'dev' of OpenI is not one of train, val, test, all"):
        module(kaggle, tokenizer, test_split="dev").validate()
    (kaggle / "indiana_reports.csv").unlink()
    with pytest.raises(UserError, match=r"indiana_reports\.csv is there\. Expected:(.|\n)*NLMCXR_png"):
        module(kaggle, tokenizer).validate()
    (official / "ecgen-radiology" / "2.xml").write_text("<eCitation>")
    data = module(official, tokenizer, views=None, max_bad_fraction=0.5)
    assert [record.reason.split(" (")[0] for record in data.index("all").defects] == ["not XML"]
