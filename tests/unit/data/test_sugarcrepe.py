import json
import logging

import pytest

from crossvit.data.sugarcrepe import KINDS, SIZES, SugarCrepeDataModule
from crossvit.errors import UserError


@pytest.fixture
def root(tmp_path, picture):
    """Two pictures, three items; all files but two are empty, and the keys have gaps as in the release."""
    root = tmp_path / "sugarcrepe"
    for i in range(2):
        picture(root / "images" / f"{i:012d}.jpg", i)
    items = {
        "add_att": {"0": item(0, "a circle", "a red circle"), "7": item(1, "a square", "a blue square")},
        "swap_obj": {"108": item(1, "circle left of square", "square left of circle")},
    }
    for kind in KINDS:
        (root / f"{kind}.json").write_text(json.dumps(items.get(kind, {})))
    return root


def item(number: int, caption: str, negative: str) -> dict:
    return {"filename": f"{number:012d}.jpg", "caption": caption, "negative_caption": negative}


def module(root, tokenizer, **options):
    settings = {"train_split": None, "val_split": None, "test_split": "test", "max_bad_fraction": 0.5}
    return SugarCrepeDataModule(root=root, image_size=8, batch_size=4, tokenizer=tokenizer, **settings | options)


def test_items_by_kind(root, tokenizer):
    data = module(root, tokenizer)
    data.validate()
    assert data.manifest()["splits"]["test"] == {"samples": 6, "pictures": 2, "label 0": 3, "label 1": 3}
    assert [tuple(twin) for twin in data.twins("test")] == [
        (0, "a circle", "a red circle", "add_att"),
        (1, "a square", "a blue square", "add_att"),
        (1, "circle left of square", "square left of circle", "swap_obj"),
    ]
    (batch,) = data.image_loader("test")
    assert batch.label.tolist() == [0, 1] and batch.image.shape == (2, 3, 8, 8)
    labels = [label for batch in data.test_dataloader() for label in batch.label.tolist()]
    assert labels == [1, 0] * 3


def test_pictures_of_coco_and_files_in_a_folder_of_their_own(root, tokenizer, tmp_path):
    (root / "images").rename(tmp_path / "val2017")
    (root / "data").mkdir()
    for kind in KINDS:
        (root / f"{kind}.json").rename(root / "data" / f"{kind}.json")
    data = module(root, tokenizer, image_roots=[tmp_path / "val2017"])
    assert len(data.twins("test")) == 3


def test_the_baseline_learns_from_cocos_training_captions(root, coco_root, tokenizer):
    alone, beside = module(root, tokenizer), module(root, tokenizer, captions_root=coco_root)
    assert len(beside.training_texts()) == 30 and beside.training_texts()[0] == "a red circle image 0 0"
    assert alone.manifest() != beside.manifest()
    with pytest.raises(UserError, match="data.captions_root is null"):
        alone.training_texts()
    with pytest.raises(UserError, match="captions_train2017.json is not there"):
        module(root, tokenizer, captions_root=root).validate()


def test_damage(root, tokenizer):
    (root / "add_att.json").write_text(json.dumps({"0": item(0, "a circle", "a red circle"), "1": {"caption": "a"}}))
    data = module(root, tokenizer)
    assert len(data.twins("test")) == 2 and data.bad_count == 1
    (root / "add_att.json").write_text("[]")
    with pytest.raises(UserError, match="add_att.json: expected an object of items"):
        module(root, tokenizer).validate()
    (root / "add_att.json").unlink()
    with pytest.raises(UserError, match="add_att.json is not there"):
        module(root, tokenizer).validate()
    with pytest.raises(UserError, match="data.image_roots"):
        module(root, tokenizer, image_roots=[root / "nowhere"]).validate()


def test_counts_beside_the_published_ones(root, tokenizer, caplog):
    with caplog.at_level(logging.INFO, "crossvit.data.sugarcrepe"):
        module(root, tokenizer).index("test")
    assert "add_att 2 (published 692)" in caplog.text and "swap_obj 1 (published 245)" in caplog.text
    assert sum(SIZES.values()) == 7_511
