"""Datasets written into shards and read again."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.nlvr2 import NLVR2DataModule
from crossvit.data.shards import pack as module
from crossvit.data.shards.captions import ShardsDataModule
from crossvit.data.shards.classes import ClassShardsDataModule
from crossvit.data.shards.pack import Pack
from crossvit.data.shards.statements import StatementShardsDataModule
from crossvit.data.table import CaptionTableDataModule
from crossvit.data.vsr import VSRDataModule
from crossvit.errors import UserError

SIZES = {"image_size": 12, "batch_size": 2}
SHARDS = SIZES | {"shards": "{split}-*.tar", "max_bad_fraction": 0.0}


def coco(root, tokenizer, **options):
    return COCODataModule(root=root, tokenizer=tokenizer, **SIZES, **options)


def write(data, out, splits=("train", "val"), samples_per_shard=4, shuffle=False, workers=1):
    return Pack(data, out, splits, samples_per_shard, shuffle).run(workers)


def same(loaders, others):
    for loader, other in zip(loaders, others, strict=True):
        for a, b in zip(loader, other, strict=True):
            for name, x, y in zip(a._fields, a, b, strict=True):
                assert (x is None and y is None) or torch.equal(x, y), name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_captions(coco_root, tokenizer, tmp_path):
    source = coco(coco_root, tokenizer)
    manifest = write(source, tmp_path / "out")
    assert names(tmp_path / "out") == ["manifest.json", *(f"train-0000{i}.tar" for i in range(3)), "val-00000.tar"]
    assert {s: (w["samples"], w["captions"], len(w["shards"])) for s, w in manifest["splits"].items()} == {
        "train": (10, 30, 3),
        "val": (4, 8, 1),
    }
    data = ShardsDataModule(root=tmp_path / "out", tokenizer=tokenizer, **SHARDS)
    data.validate()
    assert data.training_texts() == source.training_texts()
    for a, b in zip(data.image_loader("val"), source.image_loader("val"), strict=True):
        assert torch.equal(a.image, b.image)
    with tarfile.open(tmp_path / "out/train-00002.tar") as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}
    assert list(members)[:3] == ["000000008.png", "000000008.txt", "000000008.json"]
    assert members["000000008.png"] == (coco_root / "train2017/000000000108.jpg").read_bytes()
    texts = [f"a red circle image 8 {k}" for k in range(3)]
    assert json.loads(members["000000008.json"]) == {"caption": texts, "image_id": 108}
    assert members["000000008.txt"] == texts[0].encode()


def test_classes(imagenet_root, tmp_path):
    source = ImageNetDataModule(root=imagenet_root, **SIZES)
    write(source, tmp_path / "out")
    data = ClassShardsDataModule(root=tmp_path / "out", **SHARDS)
    data.validate()
    assert data.classes == source.classes and data.num_classes == 2
    same([data.image_loader("train"), data.val_dataloader()], [source.image_loader("train"), source.val_dataloader()])
    (tmp_path / "out/LOC_synset_mapping.txt").unlink()
    data = ClassShardsDataModule(root=tmp_path / "out", **SHARDS)
    assert data.classes == [("0", "0"), ("1", "1")]
    (tmp_path / "out/LOC_synset_mapping.txt").write_text("n001 tench\n")
    with pytest.raises(UserError, match=r"class 1, but .*LOC_synset_mapping\.txt names 1"):
        ClassShardsDataModule(root=tmp_path / "out", **SHARDS).validate()


def test_statements(tmp_path, tokenizer, picture, write_jsonl):
    rows = [
        {"image": f"{i % 3}.png", "caption": f"red {i}", "label": i % 2, "relation": ["left of", ""][i % 2]}
        for i in range(6)
    ]
    for i in range(3):
        picture(tmp_path / f"vsr/images/{i}.png", i)
    write_jsonl(tmp_path / "vsr/train.jsonl", rows)
    splits = {"tokenizer": tokenizer, "val_split": None, "test_split": None}
    source = VSRDataModule(root=tmp_path / "vsr", **SIZES, **splits)
    write(source, tmp_path / "out", ["train"])
    data = StatementShardsDataModule(root=tmp_path / "out", **SHARDS, **splits)
    data.validate()
    same([data.pair_loader("train")], [source.pair_loader("train")])
    assert data.relations("train") == source.relations("train") == ["left of", ""] * 3
    assert data.sentences("train").tolist() == source.sentences("train").tolist()
    two = StatementShardsDataModule(root=tmp_path / "out", **SHARDS, **splits)
    assert two.index("train").counts == {"samples": 6, "shards": 2, "label 0": 3, "label 1": 3}
    with pytest.raises(UserError, match="labelled statements: read them with data=statement_shards"):
        ShardsDataModule(root=tmp_path / "out", **SHARDS, **splits).index("train")


def test_a_drawn_order_holds_the_same_samples(coco_root, tokenizer, tmp_path):
    source = coco(coco_root, tokenizer)
    write(source, tmp_path / "out", shuffle=True)
    data = ShardsDataModule(root=tmp_path / "out", tokenizer=tokenizer, **SHARDS)
    texts = data.training_texts()
    assert texts != source.training_texts() and sorted(texts) == sorted(source.training_texts())
    assert [t for _, _, t in data.captions("val")] == [t for _, _, t in source.captions("val")]


def test_what_is_neither_jpeg_nor_png_nor_webp_becomes_png(tmp_path, tokenizer):
    root = tmp_path / "own"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for kind in ("webp", "bmp", "jpg"):
        Image.fromarray(pixels).save(root / f"a.{kind}")
    (root / "train.csv").write_text("image,caption\na.webp,red\na.bmp,red\na.jpg,red\n")
    source = CaptionTableDataModule(root=root, tokenizer=tokenizer, val_split=None, test_split=None, **SIZES)
    write(source, tmp_path / "out", ["train"])
    with tarfile.open(tmp_path / "out/train-00000.tar") as tar:
        assert [name for name in tar.getnames() if name[-3:] not in ("txt", "son")] == [
            "000000000.webp",
            "000000001.png",
            "000000002.jpg",
        ]
    data = ShardsDataModule(root=tmp_path / "out", tokenizer=tokenizer, val_split=None, test_split=None, **SHARDS)
    assert torch.equal(data.index("train").pictures.read(1), torch.from_numpy(pixels).permute(2, 0, 1))


def test_processes_and_an_interruption_change_no_byte(coco_root, tokenizer, tmp_path, monkeypatch):
    whole = write(coco(coco_root, tokenizer), tmp_path / "whole")
    assert write(coco(coco_root, tokenizer), tmp_path / "two", workers=2) == whole
    write_shard, written = module.write_shard, []

    def fails(out, job, source):
        written.append(job.name)
        if job.name == "train-00002.tar":
            (out / ".packing/train-00002.tar.part").write_bytes(b"half of it")
            raise KeyboardInterrupt
        return write_shard(out, job, source)

    monkeypatch.setattr(module, "write_shard", fails)
    with pytest.raises(KeyboardInterrupt):
        write(coco(coco_root, tokenizer), tmp_path / "cut")
    assert names(tmp_path / "cut") == [".packing", "train-00000.tar", "train-00001.tar"]
    monkeypatch.setattr(module, "write_shard", lambda *job: written.append(job[1].name) or write_shard(*job))
    written.clear()
    assert write(coco(coco_root, tokenizer), tmp_path / "cut") == whole
    assert written == ["train-00002.tar", "val-00000.tar"]
    assert names(tmp_path / "cut") == names(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("whole", "two", "cut")}) == 1
    written.clear()
    assert write(coco(coco_root, tokenizer), tmp_path / "cut") == whole and written == []
    (tmp_path / "cut/train-00001.tar").unlink()
    assert write(coco(coco_root, tokenizer), tmp_path / "cut") == whole and "train-00001.tar" in written


def test_the_manifest_has_the_hash_of_each_shard(coco_root, tokenizer, tmp_path):
    import hashlib

    manifest = write(coco(coco_root, tokenizer), tmp_path / "out")
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            content = (tmp_path / "out" / shard["name"]).read_bytes()
            assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest


def test_damaged_pictures_are_left_out_and_named(coco_root, tokenizer, tmp_path):
    (coco_root / "train2017/000000000103.jpg").write_bytes(b"")
    (coco_root / "train2017/000000000107.jpg").write_bytes(b"no picture")
    (coco_root / "train2017/000000000109.jpg").unlink()
    with pytest.raises(UserError, match=r"of 10 samples of split 'train' are damaged"):
        write(coco(coco_root, tokenizer, max_bad_fraction=0.1), tmp_path / "out")
    for _ in range(2):
        manifest = write(coco(coco_root, tokenizer, max_bad_fraction=0.3), tmp_path / "out")
        assert manifest["splits"]["train"]["samples"] == 7 and manifest["splits"]["train"]["left_out"] == 3
    lines = (tmp_path / "out/bad_samples.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["path"][-7:-4] for line in lines) == ["103", "107", "109"]


def test_a_folder_that_holds_something_else(coco_root, tokenizer, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        write(coco(coco_root, tokenizer), out)
    assert names(out) == ["thesis.tex"]
    shutil.rmtree(out)
    write(coco(coco_root, tokenizer), out)
    with pytest.raises(UserError, match=r"other data or settings \(samples_per_shard\)"):
        write(coco(coco_root, tokenizer), out, samples_per_shard=3)
    (coco_root / "train2017/000000000103.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"other data or settings \(source\)"):
        write(coco(coco_root, tokenizer), out)


def test_two_pictures_a_sample(tmp_path, tokenizer, picture, write_jsonl):
    rows = [{"sentence": "red", "label": "True", "identifier": f"train-0-{i}-0", "directory": 3} for i in range(2)]
    write_jsonl(tmp_path / "data/train.json", rows)
    for i in range(2):
        for k in (0, 1):
            picture(tmp_path / f"images/train/3/train-0-{i}-img{k}.png")
    data = NLVR2DataModule(root=tmp_path, tokenizer=tokenizer, val_split=None, test_split=None, **SIZES)
    with pytest.raises(UserError, match="two pictures a sample"):
        write(data, tmp_path / "out", ["train"])
