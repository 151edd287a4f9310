"""Karpathy's splits, in the schema of caption_datasets.zip."""

import json
import logging

import pytest

from crossvit.data.karpathy import KarpathyDataModule
from crossvit.errors import UserError


def record(number, split, captions, filename, filepath=None, cocoid=None):
    sentences = [
        {"tokens": ["red", str(k)], "raw": f"Red {number} {k}.", "imgid": number, "sentid": 10 * number + k}
        for k in range(captions)
    ]
    place = {} if filepath is None else {"filepath": filepath, "cocoid": cocoid}
    return place | {
        "sentids": [s["sentid"] for s in sentences],
        "filename": filename,
        "imgid": number,
        "split": split,
        "sentences": sentences,
    }


@pytest.fixture
def coco(tmp_path, picture):
    """Three training pictures, two of restval, one of val with 6 captions and one of test with 7."""
    root = tmp_path / "coco"
    records = []
    for number, (split, captions) in enumerate(
        [("test", 7), ("train", 5), ("restval", 5), ("val", 6), ("train", 5), ("restval", 5), ("train", 5)]
    ):
        year = "train2014" if split == "train" else "val2014"
        name = f"COCO_{year}_{900 + number:012d}.jpg"
        picture(root / year / name, number)
        records.append(record(number, split, captions, name, year, 900 + number))
    (root / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    return root


def make(root, tokenizer, source="coco", **options):
    return KarpathyDataModule(
        root=root, source=source, image_size=12, batch_size=2, tokenizer=tokenizer, test_split="test", **options
    )


def test_restval_joins_train(coco, tokenizer, caplog):
    data = make(coco, tokenizer, max_bad_fraction=0.0)
    with caplog.at_level(logging.INFO, "crossvit.data.karpathy"):
        data.validate()
    assert data.index("train").counts == {"samples": 5, "captions": 25}
    assert [image_id for image_id, _ in data.images("train")] == [901, 902, 904, 905, 906]
    assert data.captions("train")[0] == (10, 901, "Red 1 0.")
    assert "2 of 5 pictures are of restval (data.restval=train)" in caplog.text
    assert data.index("restval").counts["samples"] == 2


def test_restval_left_out(coco, tokenizer):
    assert make(coco, tokenizer, restval="leave_out").index("train").counts["samples"] == 3


def test_five_captions(coco, tokenizer, caplog):
    assert make(coco, tokenizer).index("test").counts["captions"] == 7
    data = make(coco, tokenizer, eval_captions=5)
    with caplog.at_level(logging.INFO, "crossvit.data.karpathy"):
        assert data.index("test").counts["captions"] == data.index("val").counts["captions"] == 5
    assert [text for _, _, text in data.captions("test")] == [f"Red 0 {k}." for k in range(5)]
    assert "2 captions left out (data.eval_captions=5)" in caplog.text
    assert make(coco, tokenizer, eval_captions=3).index("train").counts["captions"] == 25  # training keeps all


def test_pictures_in_the_form_of_2017(coco, tokenizer, picture):
    before = [batch.image for batch in make(coco, tokenizer).image_loader("val")]
    for number in range(7):
        year = "train2017" if number % 2 else "val2017"
        picture(coco / year / f"{900 + number:012d}.jpg", number)
    for folder in ("train2014", "val2014"):
        (coco / folder).rename(coco / f"gone_{folder}")
    data = make(coco, tokenizer, max_bad_fraction=0.0)
    data.validate()
    assert all((a == b.image).all() for a, b in zip(before, data.image_loader("val"), strict=True))


@pytest.mark.parametrize(("source", "folder"), [("flickr30k", "flickr30k-images"), ("flickr8k", "Flicker8k_Dataset")])
def test_flickr(tmp_path, tokenizer, picture, source, folder):
    root = tmp_path / source
    records = [record(i, split, 5, f"{i}.jpg") for i, split in enumerate(["train", "train", "val", "test"])]
    for i in range(4):
        picture(root / folder / f"{i}.jpg", i)
    (root / "annotations").mkdir()
    (root / f"annotations/dataset_{source}.json").write_text(json.dumps({"images": records, "dataset": source}))
    data = make(root, tokenizer, source, max_bad_fraction=0.0)
    data.validate()
    images, texts = data.val_dataloader()
    assert [batch.label.tolist() for batch in images] == [[2]]
    assert [row for batch in texts for row in batch.image_id.tolist()] == [2] * 5
    (root / folder).rename(tmp_path / "elsewhere")
    make(root, tokenizer, source, images_root=tmp_path / "elsewhere", max_bad_fraction=0.0).validate()


def test_damaged_records_and_unknown_values(coco, tokenizer):
    file = coco / "dataset_coco.json"
    content = json.loads(file.read_text())
    del content["images"][1]["sentences"][0]["raw"]
    content["images"][4]["sentences"] = []
    file.write_text(json.dumps(content))
    data = make(coco, tokenizer, max_bad_fraction=0.5)
    assert [defect.reason for defect in data.index("train").defects] == ["no 'raw'", "no sentence"]
    with pytest.raises(UserError, match=r"no picture of split 'dev' \(its splits: restval, test, train, val\)"):
        data.index("dev")
    with pytest.raises(UserError, match=r"data\.restval=no is not one of train, leave_out"):
        make(coco, tokenizer, restval="no")
    with pytest.raises(UserError, match=r"data\.source=sbu"):
        make(coco, tokenizer, "sbu")
    with pytest.raises(UserError, match=r"data\.eval_captions=0"):
        make(coco, tokenizer, eval_captions=0)
    with pytest.raises(UserError, match=r"dataset_flickr8k\.json is not there\.(.|\n)*Flicker8k_Dataset"):
        make(coco, tokenizer, "flickr8k").validate()


def test_records_that_lack_a_name_or_an_id(coco, tokenizer, picture):
    file = coco / "dataset_coco.json"
    content = json.loads(file.read_text())
    train = [record for record in content["images"] if record["split"] == "train"]
    train[0]["filename"], train[1]["cocoid"] = 3, None
    file.write_text(json.dumps(content))
    reasons = [defect.reason for defect in make(coco, tokenizer, max_bad_fraction=0.5).index("train").defects]
    assert reasons[0] == "no filename 3" and "NoneType" in reasons[1]
    for record in content["images"]:
        record["sentences"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds no usable sample"):
        make(coco, tokenizer, max_bad_fraction=1.0).index("train")


def test_every_caption_is_a_sample(coco, tokenizer):
    data = make(coco, tokenizer, captions="every")
    data.validate()
    loader = data.train_dataloader()
    assert len(loader.dataset) == 25 and len(loader) == 12
    seen = [(i, t) for batch in loader for i, t in zip(batch.image_id.tolist(), batch.text_id.tolist(), strict=True)]
    assert len(set(seen)) == len(seen) == 24  # the last sample does not fill a batch
    assert "every caption is a training sample" in data.text_policy()
    with pytest.raises(UserError, match=r"data\.captions=some is not one of one, every"):
        make(coco, tokenizer, captions="some")
