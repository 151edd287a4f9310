"""What `check` finds in folders with known faults."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from crossvit.data.checks import check as checks
from crossvit.data.checks.check import FAULTS, NOTES, check
from crossvit.data.checks.published import RELEASES, nearest, releases_of
from crossvit.data.checks.words import lines
from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.karpathy import KarpathyDataModule
from crossvit.data.shards.stream import StreamDataModule
from crossvit.data.vsr import VSRDataModule
from crossvit.errors import UserError
from tests.unit.data.conftest import save_picture


@pytest.fixture
def make(tokenizer, tmp_path):
    def of(kind, root, **options):
        settings = {"image_size": 8, "batch_size": 2, "max_bad_fraction": 1.0, "bad_samples_dir": tmp_path / "bad"}
        return kind(root=root, tokenizer=tokenizer, **settings | options)

    return of


@pytest.fixture
def coco(make, coco_root):
    """Its two splits have no caption in common."""
    file = coco_root / "annotations" / "captions_val2017.json"
    file.write_text(file.read_text().replace("red circle", "blue square"))
    return partial(make, COCODataModule, coco_root)


def counts(report, fault=None) -> dict[tuple[str, str], int]:
    found = report["findings"]
    return {(f["check"], f["split"]): f["count"] for f in found if fault is None or f["fault"] is fault}


def blob(number: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def test_a_clean_dataset(coco):
    report = check(coco(), ["train", "val"])
    assert report["faults"] == 0 and counts(report) == {("size", "train"): 118_277, ("size", "val"): 4_996}
    assert report["splits"]["train"] == {
        "counts": {"samples": 10, "captions": 30},
        "pictures": 10,
        "missing": 0,
        "undecodable": 0,
        "unusable_records": 0,
        "captions": {
            "count": 30,
            "empty": 0,
            "duplicated": 0,
            "words": {"min": 6, "median": 6.0, "mean": 6.0, "max": 6},
            "per_sample": {"min": 3, "median": 3.0, "mean": 3.0, "max": 3},
        },
    }
    json.dumps(report)


def test_damage_is_counted_and_named(coco, coco_root, tmp_path):
    folder = coco_root / "train2017"
    (folder / "000000000100.jpg").unlink()
    whole = (folder / "000000000101.jpg").read_bytes()
    (folder / "000000000101.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "000000000102.jpg").write_bytes(b"")
    report = check(coco(), ["train"])
    assert counts(report, fault=True) == {("missing", "train"): 1, ("undecodable", "train"): 2}
    assert report["faults"] == 2
    assert any("000000000101.jpg" in example for found in report["findings"] for example in found["examples"])
    assert len((tmp_path / "bad" / "bad_samples.jsonl").read_text().splitlines()) == 3
    assert counts(check(coco(), ["train"], decode=False), fault=True) == {("missing", "train"): 1}


def test_texts_and_ids(coco, coco_root):
    file = coco_root / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    notes = content["annotations"]
    notes[0]["caption"] = " "
    notes[1]["caption"] = next(
        a["caption"] for a in notes if a["image_id"] == notes[1]["image_id"] and a is not notes[1]
    )
    notes[2]["caption"] = "A red circle, image 200 0."
    notes[3]["caption"] = json.loads((coco_root / "annotations/captions_val2017.json").read_text())["annotations"][0][
        "caption"
    ]
    notes.append({**notes[4]})  # its id again
    content["images"].append({"id": 999, "file_name": content["images"][5]["file_name"]})
    notes.append({"id": 77, "image_id": 999, "caption": "a square"})
    file.write_text(json.dumps(content))
    found = counts(check(coco(), ["train", "val"]))
    assert found[("empty", "train")] == 1
    assert found[("repeated_pairs", "train")] == 1
    assert found[("records", "train")] == 1
    assert found[("ids", "train")] == 1
    assert found[("shared_captions", "train, val")] == 1


def test_copies_and_look_alikes(coco, coco_root):
    """In val: one file of train, one saved anew at another size. In train: one file twice, one saved anew."""
    for split, ids in (("train", range(100, 110)), ("val", range(200, 204))):
        for i in ids:
            blob(i, (96, 80)).save(coco_root / f"{split}2017" / f"{i:012d}.jpg", quality=95)
    train, val = coco_root / "train2017", coco_root / "val2017"
    shutil.copy(train / "000000000100.jpg", val / "000000000200.jpg")
    blob(101, (96, 80)).resize((72, 60)).save(val / "000000000201.jpg", quality=70)
    shutil.copy(train / "000000000103.jpg", train / "000000000104.jpg")
    blob(105, (96, 80)).save(train / "000000000106.jpg", quality=60)
    for workers in (1, 2):
        report = check(coco(), ["train", "val"], workers=workers)
        assert counts(report, fault=True) == {("leaks", "train, val"): 1, ("look_alike_leaks", "train, val"): 1}
        found = counts(report, fault=False)
        assert (found[("duplicates", "train")], found[("look_alikes", "train")]) == (1, 1)
        assert ("duplicates", "val") not in found and ("look_alikes", "val") not in found
    allowed = check(coco(), ["train", "val"], allow=["leaks", "look_alike_leaks"])
    assert allowed["faults"] == 0 and counts(allowed) == counts(report)


def test_too_many_look_alikes_are_said_to_be_a_lower_bound(coco, coco_root, monkeypatch):
    for i in range(100, 110):
        blob(1, (96, 80)).save(coco_root / "train2017" / f"{i:012d}.jpg", quality=60 + i % 100)
    monkeypatch.setattr(checks, "MAX_LOOKED_AT", 4)
    found = counts(check(coco(), ["train"]))
    assert found[("incomplete", "train")] and 0 < found[("look_alikes", "train")] <= 4


def test_a_picture_in_two_classes(make, imagenet_root):
    folder = imagenet_root / "train"
    shutil.copy(folder / "n001" / "n001_0.JPEG", folder / "n002" / "n002_0.JPEG")
    report = check(make(ImageNetDataModule, imagenet_root), ["train"])
    assert counts(report, fault=True) == {("contradictions", "train"): 1}
    labels = report["splits"]["train"]["labels"]
    assert labels["values"] == 2 and labels["largest_share"] == 0.5 and labels["samples_of_a_label"]["min"] == 11


def test_statements_that_contradict_each_other(make, tmp_path, write_jsonl):
    for number in range(3):
        save_picture(tmp_path / "vsr" / "images" / f"{number}.png", number)
    shutil.copy(tmp_path / "vsr/images/0.png", tmp_path / "vsr/images/2.png")
    records = [(0, "a red circle", 1), (2, "A red circle.", 0), (1, "a red circle", 1), (1, "a red circle", 1)]
    rows = [{"image": f"{image}.png", "caption": text, "label": label} for image, text, label in records]
    write_jsonl(tmp_path / "vsr" / "train.jsonl", rows)
    write_jsonl(tmp_path / "vsr" / "dev.jsonl", rows[:1])
    report = check(make(VSRDataModule, tmp_path / "vsr"), ["train", "dev"])
    assert counts(report, fault=True) == {("contradictions", "train"): 1, ("leaks", "train, dev"): 1}
    found = counts(report, fault=False)
    assert found[("repeated_pairs", "train")] == 2 and found[("one_label", "dev")] == 1
    text = "\n".join(lines(report))
    assert "FAULT [contradictions] train: 1 equal pictures and texts with different labels" in text
    assert text.endswith("2 faults")


def test_a_copy_that_lacks_little_of_a_release_is_a_fault(coco, monkeypatch):
    release = RELEASES["COCODataModule"][0]._replace(
        splits={"train": {"samples": 11, "captions": 33}, "val": {"samples": 4, "captions": 8}}
    )
    monkeypatch.setitem(RELEASES, "COCODataModule", (release,))
    report = check(coco(), ["train", "val"])
    assert counts(report, fault=True) == {("counts", "train"): 1}
    assert counts(check(coco(), ["val"])) == {}
    assert next(line for line in lines(check(coco(), ["val"])) if line.startswith("release")) == (
        "release: COCO captions 2017 (val as published)"
    )


def test_releases_are_told_apart(make, tmp_path):
    known = RELEASES["VSRDataModule"]
    assert nearest(known, {"train": {"samples": 3_489}}).name == "VSR, split zeroshot"
    assert nearest(known, {"train": {"samples": 4_713}}).name.endswith("as its README counts")
    assert nearest(known, {"train": {"samples": 12_000}}) is None
    assert nearest(known, {"val": {"samples": 10}}) is None
    karpathy = make(KarpathyDataModule, tmp_path, source="flickr8k")
    assert [release.name for release in releases_of(karpathy)] == ["Karpathy's splits of Flickr8k"]


def test_an_unknown_fault_cannot_be_allowed(coco):
    with pytest.raises(UserError, match="allow=leak is not one of counts, records"):
        check(coco(), ["train"], allow=["leak"])


def test_a_stream_is_not_checked_to_its_end():
    stream = object.__new__(StreamDataModule)
    stream.train_split = "train"
    with pytest.raises(UserError, match="data=stream: its training split has no end to check"):
        check(stream, ["train"])


def test_every_check_has_a_sentence():
    assert not FAULTS.keys() & NOTES.keys()
