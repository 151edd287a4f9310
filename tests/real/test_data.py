"""The data modules on real pictures and texts, found below the folder that CROSSVIT_REAL_DATA names."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.nlvr import NLVRDataModule
from crossvit.data.sugarcrepe import KINDS, SugarCrepeDataModule
from crossvit.data.tokenizer import ClipTokenizer
from crossvit.data.transforms import EvalTransform
from crossvit.data.vsr import VSRDataModule

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
