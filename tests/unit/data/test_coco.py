import json

import pytest
import torch

from crossvit.data.coco import COCODataModule, Twin
from crossvit.data.reading.annotations import text_id
from crossvit.errors import UserError


def make(root, tokenizer, **options):
    return COCODataModule(root=root, image_size=8, batch_size=5, tokenizer=tokenizer, **options)


def edit(root, change, name="captions_train2017.json"):
    path = root / "annotations" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_images_and_captions(coco_root, tokenizer):
    data = make(coco_root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 10, "captions": 30}
    images = data.images("val")
    assert images[1] == (201, str(coco_root / "val2017/000000000201.jpg"))
    captions = data.captions("val")
    assert captions[:3] == [
        (2000, 200, "a red circle image 0 0"),
        (2001, 200, "a red circle image 0 1"),
        (2010, 201, "a red circle image 1 0"),
    ]
    assert len(captions) == 8


def test_evaluation_goes_over_images_and_captions_once(coco_root, tokenizer):
    images, texts = make(coco_root, tokenizer, eval_batch_size=3).val_dataloader()
    images, texts = list(images), list(texts)
    assert [b.label.tolist() for b in images] == [[200, 201, 202], [203]]
    assert torch.cat([b.index for b in texts]).tolist() == list(range(8))
    assert torch.cat([b.image_id for b in texts]).tolist() == [200, 200, 201, 201, 202, 202, 203, 203]
    assert texts[0].text_id[0] == text_id("a red circle image 0 0")


def test_training_pairs_match(coco_root, tokenizer):
    data = make(coco_root, tokenizer)
    own = {}
    for _, image_id, text in data.captions("train"):
        own.setdefault(image_id, set()).add(text_id(text))
    loader = data.train_dataloader()
    seen = set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for image_id, text in zip(batch.image_id.tolist(), batch.text_id.tolist(), strict=True):
                assert text in own[image_id]
                seen.add(text)
    assert len(seen) == 30


def test_equal_captions_of_two_images_share_their_text_id(coco_root, tokenizer):
    edit(coco_root, lambda c: [a.update(caption="A red circle.") for a in c["annotations"][:2]])
    (texts,) = make(coco_root, tokenizer, eval_batch_size=40).text_loader("train")
    assert texts.image_id[[0, 3]].tolist() == [100, 101]
    assert texts.text_id[[0, 3]].tolist() == [text_id("a red circle")] * 2


def test_negatives(coco_root, tokenizer):
    data = make(coco_root, tokenizer, negatives=2)
    data.validate()
    batch = next(iter(data.train_dataloader()))
    assert batch.negatives.shape[:2] == (5, 2) and batch.negatives_mask.any()
    again = next(iter(make(coco_root, tokenizer, negatives=2).train_dataloader()))
    assert torch.equal(batch.negatives, again.negatives)
    assert data.pair_loader("val").dataset.negatives is None
    assert make(coco_root, tokenizer).manifest()["sha256"] != data.manifest()["sha256"]


def test_twins(coco_root, tokenizer):
    twins = make(coco_root, tokenizer).twins("val")
    assert len(twins) == 7 * 3  # the last caption of the file has none
    assert twins[0] == Twin(200, "a red circle image 0 0", "a blue circle image 0 0", "swap_att")


def test_negatives_without_their_file(coco_root, tokenizer):
    (coco_root / "annotations/negatives_train2017.json").unlink()
    with pytest.raises(UserError, match=r"negatives_train2017\.json is not there"):
        make(coco_root, tokenizer, negatives=1).validate()
    with pytest.raises(UserError, match=r"data\.negatives=-1"):
        make(coco_root, tokenizer, negatives=-1)


@pytest.mark.parametrize("content", ['{"1000": ["a"]}', "[1]", '{"1000": [{"caption": "a"}]}'])
def test_negatives_of_another_form(coco_root, tokenizer, content):
    (coco_root / "annotations/negatives_train2017.json").write_text(content)
    with pytest.raises(UserError, match=r"negatives_train2017\.json: expected"):
        make(coco_root, tokenizer, negatives=1).validate()


def test_form_of_2014(coco_root, tokenizer):
    for split in ("train", "val"):
        (coco_root / f"{split}2017").rename(coco_root / f"{split}2014")
        old = coco_root / f"annotations/captions_{split}2017.json"
        old.rename(coco_root / f"annotations/captions_{split}2014.json")
        for file in (coco_root / f"{split}2014").iterdir():
            file.rename(file.with_name(f"COCO_{split}2014_{file.name}"))

        def rename(content, split=split):
            for image in content["images"]:
                image["file_name"] = f"COCO_{split}2014_{image['file_name']}"

        edit(coco_root, rename, f"captions_{split}2014.json")
    data = make(coco_root, tokenizer, max_bad_fraction=0.0)
    data.validate()
    assert sum(len(batch.index) for batch in data.train_dataloader()) == 10


def test_damaged_records_are_left_out_and_named(coco_root, tokenizer, tmp_path):
    def damage(content):
        images, annotations = content["images"], content["annotations"]
        images[1].pop("file_name")  # its three captions lose their image
        images.append(dict(images[0]))
        annotations[0].pop("caption")
        annotations[2]["caption"] = None
        annotations[3]["id"] = annotations[4]["id"]
        annotations[5]["image_id"] = 999
        annotations[6].pop("id")
        annotations[7]["caption"] = ""
        annotations[8]["caption"] = "🐕 狗在跑 " + "long " * 2000
        annotations.append("nonsense")

    edit(coco_root, damage)
    data = make(coco_root, tokenizer, max_bad_fraction=0.6, bad_samples_dir=tmp_path / "run")
    data.validate()
    lines = [json.loads(line) for line in (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()]
    reasons = {line["path"].split(": ")[1]: line["reason"] for line in lines}
    assert reasons == {
        "images[1]": "no relative 'file_name'",
        "images[10]": "id 100 is used twice",
        "annotations[0]": "no text 'caption'",
        "annotations[1]": "caption of an image that is not listed (image_id 101)",
        "annotations[2]": "no text 'caption'",
        "annotations[4]": "id 1040 is used twice",
        "annotations[5]": "caption of an image that is not listed (image_id 999)",
        "annotations[6]": "no integer 'id'",
        "annotations[11]": "caption of an image that is not listed (image_id 101)",
        "annotations[21]": "caption of an image that is not listed (image_id 101)",
        "annotations[30]": "no integer 'id'",
    }
    assert data.index("train").counts == {"samples": 9, "captions": 22}
    assert "" in data.index("train").captions.texts
    for batch in data.train_dataloader():
        assert batch.tokens.shape[1] <= tokenizer.context_length
    assert sum(len(batch.index) for batch in data.text_loader("train")) == 22


def test_too_many_damaged_records(coco_root, tokenizer):
    edit(coco_root, lambda c: [a.pop("caption") for a in c["annotations"][:9]])
    with pytest.raises(UserError, match=r"captions_train2017\.json: annotations\[.*no text 'caption'"):
        make(coco_root, tokenizer, max_bad_fraction=0.1).validate()


def test_no_usable_record(coco_root, tokenizer):
    edit(coco_root, lambda c: [a.pop("caption") for a in c["annotations"]])
    with pytest.raises(UserError, match=r"holds no usable sample.*annotations\[0\]: no text 'caption'"):
        make(coco_root, tokenizer, max_bad_fraction=1.0).validate()


def test_images_without_a_caption_are_passed_over(coco_root, tokenizer):
    edit(coco_root, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 104]))
    data = make(coco_root, tokenizer, max_bad_fraction=0.0)
    data.validate()
    assert 104 not in [image_id for image_id, _ in data.images("train")]


def test_malformed_json(coco_root, tokenizer):
    path = coco_root / "annotations/captions_val2017.json"
    path.write_text('{"images": [],\n"annotations": [}')
    with pytest.raises(UserError, match=r"captions_val2017\.json, line 2: not valid JSON"):
        make(coco_root, tokenizer).validate()
    path.write_text("[]")
    with pytest.raises(UserError, match=r"captions_val2017\.json: expected"):
        make(coco_root, tokenizer).validate()


def test_missing_parts_show_the_expected_tree(coco_root, tokenizer):
    (coco_root / "val2017").rename(coco_root / "pictures")
    with pytest.raises(UserError, match=r"val2017 is not a folder(.|\n)*<root>/train2017/\*\.jpg"):
        make(coco_root, tokenizer).validate()
    (coco_root / "annotations/captions_train2017.json").unlink()
    with pytest.raises(UserError, match=r"captions_train2017\.json is not there(.|\n)*<root>/annotations"):
        make(coco_root, tokenizer).validate()


def test_a_tokenizer_is_needed(coco_root):
    with pytest.raises(ValueError, match="tokenizer"):
        COCODataModule(root=coco_root, image_size=8, batch_size=5)
