"""ARO: crops of Visual Genome, and captions shuffled."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossvit.data import aro_order
from crossvit.data.aro import ARODataModule
from crossvit.data.aro_order import KINDS, OrderDataModule, plain
from crossvit.data.reading.decoding import decode_image
from crossvit.errors import UserError


def item(i, box, **fields):
    names = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
    texts = {"true_caption": f"the red circle is left of {i}", "false_caption": f"{i} is left of the red circle"}
    return {
        "image_path": f"{i}.jpg",
        **dict(zip(names, box, strict=True)),
        "relation_name": "left of",
        **texts,
    } | fields


@pytest.fixture
def root(tmp_path, picture):
    """Three items on two pictures of 40 x 30 pixels; the last box goes over the edge."""
    root = tmp_path / "aro"
    for i in (1, 2):
        picture(root / f"images/{i}.jpg", i, size=(40, 30))
    items = [item(1, (0, 0, 40, 30)), item(1, (10, 5, 12, 12)), item(2, (34, 20, 12, 12), attributes=["red", "blue"])]
    for part in ("relation", "attribution"):
        (root / f"visual_genome_{part}.json").write_text(json.dumps(items))
    return root


def make(root, tokenizer, **options):
    settings = {"part": "relation", "train_split": None, "val_split": None, "test_split": "test", "fit": "squash"}
    return ARODataModule(root=root, image_size=12, batch_size=2, tokenizer=tokenizer, **(settings | options))


@pytest.mark.parametrize("cache", [False, True])
def test_a_picture_is_what_the_box_cuts_out(root, tokenizer, cache):
    if cache:  # the boxes of a cache are of one size
        path = root / "visual_genome_relation.json"
        path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    data = make(root, tokenizer, max_bad_fraction=0.0, cache=cache)
    data.validate()
    images = torch.cat([batch.image for batch in data.image_loader("test")])
    whole = [decode_image(root / f"images/{i}.jpg") for i in (1, 2)]
    cut = torch.zeros(3, 12, 12, dtype=torch.uint8)
    cut[:, :10, :6] = whole[1][:, 20:, 34:]
    assert torch.equal(images[-2], whole[0][:, 5:17, 10:22]) and torch.equal(images[-1], cut)


def test_twins(root, tokenizer):
    data = make(root, tokenizer, part="attribution")
    twins = data.twins("test")
    assert [(twin.image_id, twin.kind) for twin in twins] == [(i, "attribution") for i in range(3)]
    assert twins[2].caption == "the red circle is left of 2" and twins[2].negative == "2 is left of the red circle"
    assert data.index("test").labels.tolist() == [1, 0] * 3
    with pytest.raises(UserError, match=r"data\.captions_root is null"):
        data.training_texts()


def test_what_cannot_be_used(root, tokenizer):
    items = [
        item(1, (0, 0, 9, 9)),
        item(1, (1, 1, 9, 9)),
        item(1, (0, 0, None, 9)),
        item(1, (0, 0, 9, 9), true_caption=None),
        item(1, (50, 0, 9, 9)),
    ]
    (root / "visual_genome_relation.json").write_text(json.dumps(items))
    data = make(root, tokenizer, max_bad_fraction=1.0)
    assert [defect.reason.split()[1] for defect in data.index("test").defects] == ["numbers", "texts"]
    assert [batch.index.tolist() for batch in data.image_loader("test")] == [[0, 1]]
    assert data.bad_count == 3  # the last box holds nothing of its picture
    (root / "visual_genome_attribution.json").write_text("{}")
    with pytest.raises(UserError, match=r"attribution\.json: expected a list"):
        make(root, tokenizer, part="attribution").validate()
    (root / "visual_genome_attribution.json").unlink()
    with pytest.raises(UserError, match=r"attribution\.json is not there(.|\n)*bbox_x"):
        make(root, tokenizer, part="attribution").validate()
    with pytest.raises(UserError, match=r"data\.part=order is not one of relation, attribution"):
        make(root, tokenizer, part="order")


TRIGRAMS = ["shuffle_within_trigrams", "shuffle_trigrams"]
TAGS = {"red": "JJ", "blue": "JJ", "dog": "NN", "cats": "NNS", "street": "NN"}


@pytest.fixture
def karpathy(tmp_path, picture):
    root = tmp_path / "coco"
    records = []
    for i in range(3):
        picture(root / f"val2014/{i}.jpg", i)
        raws = [f"A red dog meets {i} blue cats, on the street.", "A dog."]
        sentences = [{"tokens": [], "raw": raw, "imgid": i, "sentid": 10 * i + k} for k, raw in enumerate(raws)]
        record = {"filepath": "val2014", "filename": f"{i}.jpg", "imgid": i, "cocoid": 100 + i, "split": "test"}
        records.append(record | {"sentences": sentences})
    (root / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    return root


def order(root, tokenizer, **options):
    settings = {"source": "coco", "train_split": None, "val_split": None, "test_split": "test"} | options
    return OrderDataModule(root=root, image_size=12, batch_size=2, tokenizer=tokenizer, **settings)


def test_shuffled_captions_hold_the_same_words(karpathy, tokenizer):
    data = order(karpathy, tokenizer, kinds=TRIGRAMS)
    data.validate()
    choices = data.choices("test")
    assert [choice.image_id for choice in choices] == [100, 100, 101, 101, 102, 102]
    assert choices[0].caption == "a red dog meets 0 blue cats on the street"
    for choice in choices:
        assert len(choice.false) == 2 and all(sorted(f.split()) == sorted(choice.caption.split()) for f in choice.false)
    assert len({choice.false for choice in choices[::2]}) == 3  # another shuffle for each caption
    assert order(karpathy, tokenizer, kinds=TRIGRAMS).choices("test") == choices
    assert order(karpathy, tokenizer, kinds=TRIGRAMS, shuffle_seed=1).choices("test") != choices


def test_what_each_kind_moves():
    words = ["the", "red", "dog", "saw", "blue", "cats", "near", "that", "street", "again"]
    tokens = [(word, TAGS.get(word, "X")) for word in words]
    rng = np.random.default_rng(3)
    moved = {kind: [tuple(shuffle(tokens, rng)) for _ in range(20)] for kind, shuffle in KINDS.items()}
    assert all(len(set(results)) > 3 and set(map(len, results)) == {10} for results in moved.values())
    nouns, adjectives = (2, 5, 8), (1, 4)
    for result in moved["shuffle_nouns_and_adj"]:
        assert {result[i] for i in nouns} == {"dog", "cats", "street"} and {result[i] for i in adjectives} == {
            "red",
            "blue",
        }
        assert all(result[i] == words[i] for i in (0, 3, 6, 7, 9))
    for result in moved["shuffle_allbut_nouns_and_adj"]:
        assert all(result[i] == words[i] for i in (*nouns, *adjectives))
    for result in moved["shuffle_within_trigrams"]:
        assert all(sorted(result[i : i + 3]) == sorted(words[i : i + 3]) for i in (0, 3, 6, 9))
    for result in moved["shuffle_trigrams"]:
        assert " ".join(words[:3]) in " ".join(result) and " ".join(words[6:9]) in " ".join(result)


def test_plain():
    assert plain('A  man\'s (red) hat - "cheap", 5/6; done!') == "a mans red hat cheap 5 6 done"
    assert len(plain("word " * 50).split()) == 30


def test_nouns_need_a_tagger(karpathy, tokenizer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "spacy", None)
        with pytest.raises(UserError, match=r"pip install 'crossvit\[aro\]'.*data\.kinds=\[shuffle_within_trigrams"):
            order(karpathy, tokenizer).validate()

    class Tagger:
        def pipe(self, texts):
            for text in texts:
                yield [
                    SimpleNamespace(text=w, tag_=TAGS.get(w, "X")) for w in text.rstrip(".").replace(",", " ,").split()
                ]

    monkeypatch.setattr(aro_order, "_tagger", Tagger)
    data = order(karpathy, tokenizer)
    data.validate()
    choices = data.choices("test")
    assert all(len(choice.false) == 4 for choice in choices)
    first = choices[0].false[0].split()
    assert {first[2], first[6], first[9]} == {"dog", "cats", "street"} and first[0] == "a"
    with pytest.raises(UserError, match=r"data\.kinds=\['backwards'\]: name some of shuffle_nouns_and_adj"):
        order(karpathy, tokenizer, kinds=["backwards"])
