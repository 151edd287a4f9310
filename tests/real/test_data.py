"""The data modules on real pictures and texts, found below the folder that CROSSVIT_REAL_DATA names."""

import csv
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from crossvit.data.aro import ARODataModule
from crossvit.data.caption_folder import CaptionFolderDataModule
from crossvit.data.caption_list import CaptionListDataModule
from crossvit.data.coco import COCODataModule
from crossvit.data.coco_statements import COCOStatementDataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.karpathy import KarpathyDataModule
from crossvit.data.medical.mimic_cxr import MIMICCXRDataModule
from crossvit.data.medical.openi import OpenIDataModule
from crossvit.data.mixture import MixtureDataModule
from crossvit.data.nlvr import NLVRDataModule
from crossvit.data.sugarcrepe import KINDS, SugarCrepeDataModule
from crossvit.data.table import CaptionTableDataModule
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


def test_statements_of_captions(tokenizer):
    data = COCOStatementDataModule(root=folder("coco_flickr8k"), tokenizer=tokenizer, **settings())
    check(data, "train")
    for split, captions, pictures in (("train", 12_000, 2_400), ("val", 2_000, 400)):
        index = data.index(split)
        expected = {"samples": 2 * captions, "pictures": pictures, "label 0": captions, "label 1": captions}
        assert index.counts == expected  # no caption is left out
        assert (torch.bincount(torch.from_numpy(index.rows * 2 + index.labels)) == 5).all()


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


def official_captions(split):
    """File name and captions of the pictures of COCO's own split, and its folder."""
    photos = folder("coco_official")
    content = json.loads((photos / f"annotations/captions_{split}2017.json").read_text())
    captions = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return {image["file_name"]: captions[image["id"]] for image in content["images"]}, photos


def test_flat_imagenet_with_kaggles_labels(tmp_path):
    photos = folder("imagenet")
    (tmp_path / "val").mkdir()
    (tmp_path / "train").symlink_to(photos / "train")
    rows, expected = [], []
    wnids = sorted(path.name for path in (photos / "val").iterdir())
    for number, (label, wnid) in enumerate(((label, w) for label, w in enumerate(wnids) for _ in range(2)), start=1):
        name = f"ILSVRC2012_val_{number:08d}"
        source = sorted((photos / "val" / wnid).iterdir())[number % 2]
        (tmp_path / "val" / f"{name}.JPEG").symlink_to(source)
        rows.append((name, f"{wnid} 1 2 3 4"))
        expected.append(label)
    with (tmp_path / "LOC_val_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ImageId", "PredictionString"), *rows])
    data = ImageNetDataModule(root=tmp_path, **settings(batch_size=50))
    data.validate()
    assert torch.cat([batch.label for batch in data.val_dataloader()]).tolist() == expected


def test_karpathys_splits_of_official_captions(tokenizer, tmp_path):
    records = []
    for split in ("val", "train"):
        captions, photos = official_captions(split)
        for name, texts in captions.items():
            number = len(records)
            sentences = [{"raw": text, "sentid": 10 * number + k, "imgid": number} for k, text in enumerate(texts)]
            part = "val" if split == "val" else ("train", "restval")[number % 2]
            records.append(
                {"filepath": "val2014", "filename": f"COCO_val2014_{name}", "cocoid": int(name[:-4]), "imgid": number}
                | {"split": part, "sentences": sentences}
            )
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    options = {"root": tmp_path, "source": "coco", "images_root": photos, "tokenizer": tokenizer, "test_split": None}
    data = KarpathyDataModule(**options, eval_captions=5, **settings(batch_size=40))
    check(data, "train")
    assert data.index("train").counts == {"samples": 80, "captions": 400}
    assert data.index("val").counts == {"samples": 40, "captions": 200}
    assert KarpathyDataModule(**options, restval="leave_out", **settings()).index("train").counts["samples"] == 40


def test_json_list_table_and_folder_give_the_same_samples(tokenizer, tmp_path):
    captions, photos = official_captions("train")
    rows = [{"image": f"train2017/{name}", "caption": texts} for name, texts in captions.items()]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with (tmp_path / "train.tsv").open("w", newline="") as file:
        lines = csv.writer(file, delimiter="\t")
        lines.writerow(["image", "caption"])
        lines.writerows((row["image"], text) for row in rows for text in row["caption"])
    for name, texts in captions.items():
        (tmp_path / "own/train2017").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own/train2017" / name).symlink_to(photos / "train2017" / name)
        (tmp_path / "own/train2017" / name).with_suffix(".txt").write_text("\n".join(texts))
    options = {"tokenizer": tokenizer, "val_split": None, "test_split": None, **settings(batch_size=40)}
    modules = [
        CaptionListDataModule(root=tmp_path, images_root=photos, **options),
        CaptionTableDataModule(root=tmp_path, images_root=photos, annotations="{split}.tsv", **options),
        CaptionFolderDataModule(root=tmp_path / "own", **options),
    ]
    found = []
    for data in modules:
        check(data, "train")
        names, texts = data.index("train").pictures.names, data.captions("train")
        found.append({(names[image], text.strip()) for _, image, text in texts})
    assert found[0] == found[1] == found[2] and len(found[0]) == 400


def test_saved_dataset(tokenizer, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from crossvit.data.saved_dataset import SavedDatasetDataModule

    captions, photos = official_captions("val")
    images = [{"bytes": (photos / "val2017" / name).read_bytes(), "path": name} for name in captions]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "caption": list(captions.values())})
    with (
        pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    data = SavedDatasetDataModule(
        root=tmp_path,
        held_out=0.2,
        val_split="held_out",
        test_split=None,
        tokenizer=tokenizer,
        **settings(batch_size=20),
    )
    check(data, "train")
    assert data.index("train").counts["samples"] + data.index("held_out").counts["samples"] == 40


def test_nlvr_directories_held_out(tokenizer, tmp_path):
    """The real dev split stands in for train, which is not here."""
    dev = folder("vlr_nlvr1") / "dev"
    (tmp_path / "train").mkdir()
    (tmp_path / "train/train.json").symlink_to(dev / "dev.json")
    for directory in (dev / "images").iterdir():
        (tmp_path / "train/images" / directory.name).mkdir(parents=True)
        for picture in directory.iterdir():
            target = tmp_path / "train/images" / directory.name / picture.name.replace("dev-", "train-")
            target.symlink_to(picture)
    options = {"held_out": 0.2, "val_split": "held_out", "test_split": None, "tokenizer": tokenizer}
    data = NLVRDataModule(root=tmp_path, **options, **settings())
    data.validate()
    train, held = (data.index(split).pictures.names for split in ("train", "held_out"))
    assert len(train) + len(held) == 2_967
    assert not {name.split("/")[0] for name in train} & {name.split("/")[0] for name in held}


def test_aro_items_on_photographs(tokenizer, tmp_path):
    captions, photos = official_captions("val")
    (tmp_path / "images").symlink_to(photos / "val2017")
    items = [
        {"image_path": name, "bbox_x": 20, "bbox_y": 30, "bbox_w": 150, "bbox_h": 120}
        | {"true_caption": texts[0], "false_caption": texts[0][::-1], "relation_name": "on"}
        for name, texts in captions.items()
    ]
    (tmp_path / "visual_genome_relation.json").write_text(json.dumps(items))
    splits = {"train_split": None, "val_split": None, "test_split": "test"}
    data = ARODataModule(root=tmp_path, part="relation", tokenizer=tokenizer, **splits, **settings())
    check(data, "test")
    assert len(data.twins("test")) == 40 and data.index("test").pictures.read(0).shape == (3, 120, 150)


def test_captions_and_matching_pairs_of_the_same_photographs(tokenizer):
    photos = folder("coco_flickr8k")
    roots = [photos / "train2017", photos / "val2017"]
    pairs = partial(
        VSRDataModule, root=folder("vlr_itm_flickr8k"), image_roots=roots, val_split="dev", test_split="dev"
    )
    sources = {
        "captions": {"data": partial(COCODataModule, root=photos), "weight": 1.0},
        "pairs": {"data": pairs, "weight": 1.0},
    }
    data = MixtureDataModule(
        sources=sources,
        eval_source="pairs",
        val_split="dev",
        test_split="dev",
        samples=1000,
        tokenizer=tokenizer,
        **settings(),
    )
    data.validate()
    first = next(iter(data.train_dataloader()))
    assert 0.3 < (first.index < 2400).float().mean() < 0.7 and first.label[first.index < 2400].all()
    captions, statements = (set(part.image_ids.tolist()) for part in data._train_dataset("train").parts)
    assert statements <= captions and len(captions) == 2400


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
