"""Json lists in the form of ALBEF and BLIP."""

import json

import pytest

from crossvit.data.caption_list import CaptionListDataModule
from crossvit.errors import UserError


@pytest.fixture
def root(tmp_path, picture):
    """Training: 8 pictures with two rows each; validation: 2 pictures with a list of captions."""
    root = tmp_path / "albef"
    for i in range(10):
        picture(root / f"images/{i}.jpg", i)
    train = [
        {"caption": f"red {i} {k}", "image": f"images/{i}.jpg", "image_id": f"coco_{i}"}
        for k in (0, 1)
        for i in range(8)
    ]
    val = [{"image": f"images/{i}.jpg", "caption": [f"blue {i} {k}" for k in range(3)]} for i in (8, 9)]
    (root / "coco_train.json").write_text(json.dumps(train))
    (root / "coco_val.json").write_text(json.dumps(val))
    return root


def make(root, tokenizer, **options):
    options = {"annotations": "coco_{split}.json", "max_bad_fraction": 0.0} | options
    return CaptionListDataModule(root=root, image_size=12, batch_size=4, tokenizer=tokenizer, **options)


def test_rows_of_one_picture_and_lists_of_captions(root, tokenizer):
    data = make(root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 8, "captions": 16}
    assert data.captions("train")[:2] == [(0, 0, "red 0 0"), (8, 0, "red 0 1")]
    assert [text for _, _, text in data.captions("val")] == [f"blue {i} {k}" for i in (8, 9) for k in range(3)]
    assert sum(len(batch.index) for batch in data.train_dataloader()) == 8


def test_paths_from_another_folder(root, tokenizer, tmp_path):
    (root / "images").rename(tmp_path / "images")
    make(root, tokenizer, images_root=tmp_path).validate()
    rows = [
        {"image": str(tmp_path / "images/0.jpg"), "caption": "red"},
        {"image": "/elsewhere/0.jpg", "caption": "red"},
    ]
    (root / "coco_train.json").write_text(json.dumps(rows))
    data = make(root, tokenizer, images_root=tmp_path, max_bad_fraction=0.5)
    assert list(data.index("train").pictures.names) == ["images/0.jpg"]
    assert "does not lie under data.images_root" in data.index("train").defects[0].reason


def test_what_cannot_be_used(root, tokenizer):
    (root / "coco_train.json").write_text(
        json.dumps([{"image": "images/0.jpg"}, 7, {"image": "images/0.jpg", "caption": []}])
    )
    with pytest.raises(UserError, match=r"no usable sample.*coco_train\.json: \[0\]: no text 'caption'"):
        make(root, tokenizer, max_bad_fraction=1.0).index("train")
    (root / "coco_train.json").write_text("{}")
    with pytest.raises(UserError, match=r"coco_train\.json: expected a list of"):
        make(root, tokenizer).index("train")
    with pytest.raises(UserError, match=r"coco_dev\.json is not there(.|\n)*coco_\{split\}\.json"):
        make(root, tokenizer).index("dev")


def test_a_held_out_share(root, tokenizer):
    data = make(root, tokenizer, held_out=0.4, val_split="held_out")
    train, held = (set(data.index(split).pictures.names) for split in ("train", "held_out"))
    assert train and held and not train & held and len(train | held) == 8
    with pytest.raises(UserError, match=r"Split 'held_out' is empty with data\.held_out=0"):
        make(root, tokenizer).index("held_out")
    with pytest.raises(UserError, match=r"data\.held_out=1 must be at least 0 and below 1"):
        make(root, tokenizer, held_out=1)
