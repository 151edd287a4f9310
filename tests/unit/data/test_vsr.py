import json
import logging

import pytest

from crossvit.data.vsr import VSRDataModule, release
from crossvit.errors import UserError


def record(i, label, **fields):
    return {"image": f"{i:03d}.jpg", "caption": f"red circle {i}", "label": label, "relation": "off"} | fields


@pytest.fixture
def root(tmp_path, picture, write_jsonl):
    root = tmp_path / "vsr"
    for i in range(6):
        picture(root / "images" / f"{i:03d}.jpg", i)
    write_jsonl(root / "train.jsonl", [record(i % 6, i % 2, relation=f"r{i % 3}") for i in range(12)])
    write_jsonl(root / "dev.jsonl", [record(i, 1) for i in range(3)])
    write_jsonl(root / "test.jsonl", [record(i, 0) for i in range(2)])
    return root


def make(root, tokenizer, **options):
    settings = {"val_split": "dev", "test_split": "test", "fit": "squash", "max_bad_fraction": 0.3} | options
    return VSRDataModule(root=root, image_size=8, batch_size=4, tokenizer=tokenizer, **settings)


def test_samples(root, tokenizer):
    data = make(root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 12, "pictures": 6, "label 0": 6, "label 1": 6}
    batch = next(iter(data.pair_loader("train")))
    assert batch.label.tolist() == [0, 1, 0, 1] and batch.image.shape == (4, 3, 8, 8)
    assert data.relations("train")[:4] == ["r0", "r1", "r2", "r0"]
    (batch,) = data.val_dataloader()
    assert batch.label.tolist() == [1, 1, 1]
    (batch,) = data.test_dataloader()
    assert batch.label.tolist() == [0, 0]


def test_statements_about_one_picture_share_its_id(root, tokenizer):
    index = make(root, tokenizer).index("train")
    assert index.image_ids.tolist() == [0, 1, 2, 3, 4, 5] * 2


def test_splits_in_folders(root, tokenizer):
    for variant in ("random", "zeroshot"):
        (root / "splits" / variant).mkdir(parents=True)
    (root / "train.jsonl").rename(root / "splits/random/train.jsonl")
    (root / "dev.jsonl").rename(root / "splits/zeroshot/dev.jsonl")
    data = make(root, tokenizer)
    assert data.index("train").counts["samples"] == 12
    with pytest.raises(UserError, match=r"dev\.jsonl is not there(.|\n)*<root>/splits"):
        data.index("dev")
    assert make(root, tokenizer, variant="zeroshot").index("dev").counts["samples"] == 3


def test_several_image_roots(root, tokenizer, picture, tmp_path):
    (root / "images/002.jpg").unlink()
    picture(tmp_path / "more/002.jpg", 2)
    data = make(root, tokenizer, image_roots=[root / "images", tmp_path / "more"], max_bad_fraction=0.0)
    data.validate()
    assert sum(len(batch.index) for batch in data.train_dataloader()) == 12


def test_missing_image_root(root, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"data\.image_roots: .*none is not a folder"):
        make(root, tokenizer, image_roots=[tmp_path / "none"]).validate()


def test_damaged_lines(root, tokenizer, tmp_path, write_jsonl):
    lines = [record(i % 6, 1) for i in range(12)]
    lines[1].pop("image")
    lines[2].pop("caption")
    lines[3]["label"] = 2
    lines[4]["label"] = "True"
    lines[5]["label"] = None
    lines[6]["caption"] = ""
    write_jsonl(root / "train.jsonl", lines)
    data = make(root, tokenizer, max_bad_fraction=0.4, bad_samples_dir=tmp_path / "run")
    data.validate()
    written = [json.loads(line) for line in (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()]
    assert [(line["path"].rpartition(", ")[2], line["reason"]) for line in written] == [
        ("line 2", "no text 'image'"),
        ("line 3", "no text 'caption'"),
        ("line 4", "label 2 is not one of 2 relations"),
        ("line 6", "label None is not one of 2 relations"),
    ]
    assert data.index("train").labels.tolist() == [1] * 8


def test_malformed_line(root, tokenizer):
    (root / "dev.jsonl").write_text('{"image": "000.jpg"\n')
    with pytest.raises(UserError, match=r"dev\.jsonl, line 1: not valid JSON"):
        make(root, tokenizer).validate()


def test_more_relations(root, tokenizer, write_jsonl):
    write_jsonl(root / "train.jsonl", [record(i % 6, i % 3) for i in range(12)])
    assert set(make(root, tokenizer, num_relations=3).index("train").labels.tolist()) == {0, 1, 2}


def test_official_release_is_named(root, tokenizer, write_jsonl, caplog):
    write_jsonl(root / "dev.jsonl", [record(i % 6, 1) for i in range(340)])
    with caplog.at_level("INFO", logger="crossvit"):
        make(root, tokenizer).index("dev")
    assert "VSR zeroshot" in caplog.text and "340 samples" in caplog.text


def test_unknown_variant(root, tokenizer):
    with pytest.raises(UserError, match=r"data\.variant=randm"):
        make(root, tokenizer, variant="randm")


def test_the_release_is_named(root, tokenizer, caplog, write_jsonl):
    assert release("train", 7_680) == "the official files of VSR random"
    assert release("test", 1_222) == "the official files of VSR zeroshot"
    assert release("train", 4_713) == "what the README of VSR says of zeroshot"
    assert release("dev", 7_680) is None
    write_jsonl(root / "dev.jsonl", [record(i % 6, 1) for i in range(339)] + [record(0, 7)])
    with caplog.at_level(logging.INFO, "crossvit.data.vsr"):
        data = make(root, tokenizer)
        assert data.index("dev").counts["samples"] == 339 and data.index("train").counts["samples"] == 12
    assert caplog.text.count("lines, as in") == 1
    assert "dev.jsonl: 340 lines, as in the official files of VSR zeroshot" in caplog.text
