"""The data modules on real pictures and texts, found below the folder that CROSSVIT_REAL_DATA names."""

import csv
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.mimic_cxr import MIMICCXRDataModule
from crossvit.data.nlvr import NLVRDataModule
from crossvit.data.openi import OpenIDataModule
from crossvit.data.sugarcrepe import KINDS, SugarCrepeDataModule
from crossvit.data.tokenizer import ClipTokenizer
from crossvit.data.transforms import EvalTransform
from crossvit.data.vsr import VSRDataModule
from crossvit.errors import UserError

pytestmark = pytest.mark.real

DATA = Path(os.environ.get("CROSSVIT_REAL_DATA") or Path(__file__).parents[2] / "../shared/data").resolve()


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there: set CROSSVIT_REAL_DATA to the folder that holds {name}/")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer()


def settings(**options):
    return {"image_size": 64, "batch_size": 100, "max_bad_fraction": 0.0, "fit": "squash"} | options


def check(data, split):
    """The split validates, and its first batch is whole and of normal brightness."""
    data.validate()
    batch = next(iter(data.train_dataloader() if split == data.train_split else data.pair_loader(split)))
    image = data.normalize(batch.image)
    assert image.isfinite().all() and image.abs().mean() < 2
    return batch


def test_imagenet():
    data = ImageNetDataModule(root=folder("imagenet"), train_scale=(0.35, 1.0), cache=True, **settings())
    batch = check(data, "train")
    assert data.manifest()["splits"] == {
        "train": {"samples": 8000, "classes": 40},
        "val": {"samples": 1000, "classes": 40},
    }
    assert (
        len({name for _, name in data.classes}) == 40 and ("n01443537", "goldfish, Carassius auratus") in data.classes
    )
    assert len(batch.label.unique()) > 20
    assert sum(len(batch.index) for batch in data.val_dataloader()) == 1000


def test_flickr8k(tokenizer):
    data = COCODataModule(root=folder("coco_flickr8k"), tokenizer=tokenizer, num_workers=2, **settings())
    batch = check(data, "train")
    assert data.index("train").counts == {"samples": 2400, "captions": 12000}
    assert data.index("val").counts == {"samples": 400, "captions": 2000}
    assert 10 < batch.token_mask.sum(1).float().mean() < 20
    images, texts = data.val_dataloader()
    ids = torch.cat([batch.label for batch in images])
    assert ids.tolist() == [image_id for image_id, _ in data.images("val")]
    assert torch.equal(torch.cat([batch.image_id for batch in texts]), ids.repeat_interleave(5))


def test_official_coco_at_full_size(tokenizer):
    data = COCODataModule(root=folder("coco_official"), tokenizer=tokenizer, **settings(batch_size=40, image_size=224))
    assert check(data, "train").image.shape == (40, 3, 224, 224)
    assert data.index("train").counts["samples"] == 80 and data.index("val").counts["samples"] == 40


def test_reduced_decoding_of_photographs_is_close_to_the_exact_one(tokenizer):
    data = COCODataModule(root=folder("coco_official"), tokenizer=tokenizer, **settings())
    pictures, transform = data.index("train").pictures, EvalTransform(64, "squash")
    reduced = 0
    for i in range(40):
        exact, fast = pictures.read(i), pictures.read(i, transform.min_side)
        reduced += exact.shape != fast.shape
        assert (transform(exact).int() - transform(fast).int()).abs().float().mean() < 2.5  # grey levels
    assert reduced


def test_matching_pairs(tokenizer):
    photos = folder("coco_flickr8k")
    data = VSRDataModule(
        root=folder("vlr_itm_flickr8k"),
        image_roots=[photos / "train2017", photos / "val2017"],
        val_split="dev",
        test_split="dev",
        tokenizer=tokenizer,
        **settings(),
    )
    batch = check(data, "train")
    assert data.index("train").counts["samples"] == 12_174 and data.index("dev").counts["samples"] == 2_035
    assert 0.3 < batch.label.float().mean() < 0.7
    assert set(data.relations("dev")) == {"match"}


def test_official_vsr_lines(tokenizer):
    photos = folder("coco_official")
    split = "all_vsr_validated_data"
    data = VSRDataModule(
        root=folder("vlr_vsr_official"),
        image_roots=[photos / "train2017", photos / "val2017"],
        train_split=None,
        val_split=None,
        test_split=split,
        tokenizer=tokenizer,
        **settings(),
    )
    batch = check(data, split)
    assert len(batch.index) == 12 and set(batch.label.tolist()) == {0, 1}
    assert "in front of" in data.relations(split)


def test_nlvr(tokenizer):
    data = NLVRDataModule(
        root=folder("vlr_nlvr1"), train_split=None, val_split=None, test_split="dev", tokenizer=tokenizer, **settings()
    )
    check(data, "dev")
    index = data.index("dev")
    assert index.counts["samples"] == 2_967 and index.counts["label 1"] == 1_641
    with Image.open(index.pictures.path(0)) as picture:
        assert picture.size == (400, 100)


def test_official_sugarcrepe_items(tokenizer):
    data = SugarCrepeDataModule(
        root=folder("vlr_sugarcrepe_official"),
        image_roots=[folder("coco_official") / "val2017"],
        captions_root=folder("coco_flickr8k"),
        train_split=None,
        val_split=None,
        test_split="test",
        tokenizer=tokenizer,
        **settings(),
    )
    check(data, "test")
    twins = data.twins("test")
    assert len(twins) == 85 and {twin.kind for twin in twins} == set(KINDS) - {"swap_obj"}  # that file is empty here
    assert all(twin.caption != twin.negative for twin in twins)
    assert len(data.training_texts()) == 12_000
    images = torch.cat([batch.label for batch in data.image_loader("test")])
    assert {twin.image_id for twin in twins} == set(images.tolist())


def test_chest_films(tokenizer):
    options = {"val_split": "validate", "test_split": "validate", "tokenizer": tokenizer, **settings(batch_size=50)}
    root = folder("mimic_cxr_like")
    with pytest.raises(UserError, match=r"more than one split: 1, the first is 10000331 \(train, validate\)"):
        MIMICCXRDataModule(root=root, **options).validate()
    data = MIMICCXRDataModule(root=root, shared_patients="leave_out", flip=False, **options)
    check(data, "train")
    counts = {split: data.index(split).counts for split in ("train", "validate")}
    assert counts["train"] == {
        "samples": 100,
        "studies": 99,
        "patients": 53,
        "distinct reports": 94,
        "films of patients in another split left out": 1,
        "films of other views left out": 22,
    }
    assert [counts["validate"][key] for key in ("samples", "studies", "distinct reports")] == [17, 16, 15]
    index = data.index("validate")
    present = {name for name, column in zip(index.classes, (index.study_labels == 1).T, strict=True) if column.any()}
    assert present == {"Pneumonia"} and len(index.classes) == 14
    assert not set(data.index("train").patient_ids.tolist()) & set(index.patient_ids.tolist())
    assert all(text and "FINDINGS" not in text and "___" not in text for text in index.texts)
    everything = MIMICCXRDataModule(root=root, shared_patients="leave_out", views=None, **options)
    assert everything.index("train").counts["samples"] + everything.index("validate").counts["samples"] == 141 - 1


def test_official_openi_reports(tokenizer, tmp_path):
    """The csv is real; the films, which are not part of this data, are one picture under each of their names."""
    reports = folder("iu_xray_reports_text_only") / "indiana_reports.csv"
    (tmp_path / "indiana_reports.csv").symlink_to(reports)
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "any.png")
    with reports.open(encoding="utf-8", newline="") as file:
        uids = [int(row["uid"]) for row in csv.DictReader(file)]
    lines = "".join(f"{uid},any.png,Frontal\n" for uid in uids)
    (tmp_path / "indiana_projections.csv").write_text(f"uid,filename,projection\n{lines}")
    options = {"train_split": "train", "val_split": None, "test_split": "all", **settings(batch_size=50)}
    data = OpenIDataModule(root=tmp_path, classes=("normal", "Cardiomegaly"), tokenizer=tokenizer, **options)
    data.validate()
    counts, index = data.index("all").counts, data.index("all")
    assert (
        counts["studies"] + counts["reports without section"] + counts.get("reports of under 3 words left out", 0)
        == 3851
    )
    assert counts["reports without section"] == 25 and counts["distinct reports"] < counts["studies"]
    assert (index.study_labels[:, 1] == 1).sum() > 300
    assert not any("XXXX" in text for text in index.texts)
