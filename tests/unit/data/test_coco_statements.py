import json
from collections import Counter

import numpy as np
import pytest

from crossvit.data.coco import COCODataModule
from crossvit.data.coco_statements import COCOStatementDataModule
from crossvit.errors import UserError
from crossvit.metrics import verification_accuracy
from crossvit.metrics.blind import downsample, image_only_logits, text_only_logits


def make(root, tokenizer, **options):
    return COCOStatementDataModule(root=root, image_size=8, batch_size=4, tokenizer=tokenizer, **options)


def statements(data, split="train"):
    """(picture, caption, label) of each sample."""
    index = data.index(split)
    names = [index.pictures.names[row] for row in index.rows.tolist()]
    return list(zip(names, index.captions.texts, index.labels.tolist(), strict=True))


def edit(root, change):
    path = root / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_caption_is_true_once_and_false_once_and_every_picture_as_often(coco_root, tokenizer):
    data = make(coco_root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 60, "pictures": 10, "label 0": 30, "label 1": 30}
    found = statements(data)
    assert set(Counter((text, label) for _, text, label in found).values()) == {1}
    assert set(Counter((name, label) for name, _, label in found).values()) == {3}
    assert set(Counter((name, text) for name, text, _ in found).values()) == {1}


def test_the_true_ones_are_the_captions_of_their_pictures(coco_root, tokenizer):
    data = make(coco_root, tokenizer)
    captions = COCODataModule(root=coco_root, image_size=8, batch_size=4, tokenizer=tokenizer)
    names = dict(captions.images("train"))
    own = {(names[image_id], text) for _, image_id, text in captions.captions("train")}
    found = {(str(coco_root / "train2017" / name), text, label) for name, text, label in statements(data)}
    assert {(name, text) for name, text, label in found if label == 1} == own
    assert not {(name, text) for name, text, label in found if label == 0} & own


def test_the_two_statements_of_a_caption_are_one_sentence(coco_root, tokenizer):
    data = make(coco_root, tokenizer)
    sentences = data.sentences("train").tolist()
    assert set(Counter(sentences).values()) == {2} and sentences[::2] == sentences[1::2]
    assert data.index("train").labels.tolist() == [1, 0] * 30


def test_pictures_have_different_neighbours_for_each_of_their_captions(coco_root, tokenizer):
    found = statements(make(coco_root, tokenizer))
    false = np.array([int(name[:-4]) for name, _, label in found if label == 0]).reshape(10, 3)
    assert any(len(set(row)) > 1 for row in false.tolist())


def test_the_draw_is_of_its_own_seed_alone(coco_root, tokenizer):
    drawn = statements(make(coco_root, tokenizer))
    assert statements(make(coco_root, tokenizer, seed=5)) == drawn
    other = statements(make(coco_root, tokenizer, draw_seed=1))
    assert other != drawn and [s for s in other if s[2]] == [s for s in drawn if s[2]]
    for bad in (-1, 0.5):
        with pytest.raises(UserError, match=rf"data\.draw_seed={bad} must be a whole number from 0"):
            make(coco_root, tokenizer, draw_seed=bad)


def test_a_caption_that_is_true_of_both_pictures_is_left_out(coco_root, tokenizer, caplog):
    caplog.set_level("INFO")
    edit(coco_root, lambda c: [a.update(caption="A red circle.") for a in c["annotations"] if a["image_id"] < 109])
    found = statements(make(coco_root, tokenizer))
    left = [(name, label) for name, text, label in found if text == "A red circle."]
    # in each of the three circles one of the nine pictures stands before the tenth, the only one that these words are false of
    assert len(left) == 6 and {name for name, label in left if label == 0} == {"000000000109.jpg"}
    assert "captions are left out: no other picture was drawn that they are false of" in caplog.text


def test_what_is_left_out_leaves_texts_balanced(coco_root, tokenizer):
    edit(coco_root, lambda c: [a.update(caption="A red circle.") for a in c["annotations"] if a["image_id"] < 109])
    counts = Counter((text, label) for _, text, label in statements(make(coco_root, tokenizer)))
    assert all(counts[text, 1] == counts[text, 0] for text, _ in counts)


def test_captions_that_cannot_be_false_of_anything_are_an_error(coco_root, tokenizer):
    edit(coco_root, lambda c: [a.update(caption="A red circle.") for a in c["annotations"]])
    with pytest.raises(UserError, match=r"captions_train2017\.json: no caption has another picture to be false of"):
        make(coco_root, tokenizer).index("train")


def test_pictures_with_more_and_with_fewer_captions(coco_root, tokenizer):
    def change(content):
        rows = content["annotations"]
        content["annotations"] = [a for a in rows if a["image_id"] > 104 or a["id"] % 10 == 0]
        content["annotations"] += [{"id": 9000 + i, "image_id": i, "caption": f"more of {i}"} for i in (107, 108)]

    edit(coco_root, change)
    counts = Counter((name, label) for name, _, label in statements(make(coco_root, tokenizer)))
    expected = [1] * 5 + [3, 3, 4, 4, 3]
    for label in (0, 1):
        assert [counts[f"{100 + i:012d}.jpg", label] for i in range(10)] == expected


def test_a_picture_with_equal_captions_has_statements_of_both(coco_root, tokenizer):
    edit(coco_root, lambda c: [a.update(caption="twice") for a in c["annotations"] if a["id"] in (1000, 1001)])
    data = make(coco_root, tokenizer)
    found = [(name, label) for name, text, label in statements(data) if text == "twice"]
    assert found.count(("000000000100.jpg", 1)) == 2 and len(found) == 4
    assert len(set(data.sentences("train").tolist())) == 30


def test_a_caption_without_a_neighbour_is_left_out(coco_root, tokenizer):
    edit(coco_root, lambda c: c["annotations"].append({"id": 9999, "image_id": 100, "caption": "the only fourth"}))
    found = statements(make(coco_root, tokenizer))
    assert len(found) == 60 and "the only fourth" not in {text for _, text, _ in found}


def test_whoever_sees_one_side_is_at_chance_even_in_training(coco_root, tokenizer):
    (batch,) = make(coco_root, tokenizer, eval_batch_size=100).pair_loader("train")
    words = text_only_logits(batch.tokens, batch.token_mask, batch.label, batch.tokens, batch.token_mask)
    pixels = downsample(batch.image)
    assert verification_accuracy(words, batch.label).mean() == 0.5
    assert verification_accuracy(image_only_logits(pixels, batch.label, pixels), batch.label).mean() == 0.5


def test_batches_carry_labels(coco_root, tokenizer):
    data = make(coco_root, tokenizer, eval_batch_size=40)
    (batch,) = data.val_dataloader()
    assert batch.label.tolist() == [1, 0] * 8 and batch.image.shape == (16, 3, 8, 8)
    assert next(iter(data.train_dataloader())).label.shape == (4,)


def test_missing_files_are_named(coco_root, tokenizer):
    with pytest.raises(UserError, match=r"captions_test2017\.json is not there(.|\n)*train2017"):
        make(coco_root, tokenizer).index("test")
    (coco_root / "val2017").rename(coco_root / "elsewhere")
    with pytest.raises(UserError, match="val2017 is not a folder"):
        make(coco_root, tokenizer).index("val")
