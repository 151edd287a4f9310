import pickle

import numpy as np
import pytest
import torch

from crossvit.data.datasets import Captions, ImageDataset, PairDataset, TextDataset
from crossvit.data.reading.annotations import text_id
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import SampleKey
from crossvit.data.transforms import EvalTransform, TrainTransform

COUNT = 6


@pytest.fixture
def folder(tmp_path, picture):
    for i in range(COUNT):
        picture(tmp_path / "images" / f"{i}.png", i)
    return tmp_path / "images"


def images(folder, training=True, cache=False):
    pictures = Pictures([f"{i}.png" for i in range(COUNT)], [folder])
    if cache:
        pictures.keep_in_memory()
    transform = TrainTransform(8, scale=(0.3, 1)) if training else EvalTransform(8)
    return ImageDataset(pictures, np.arange(10, 10 + COUNT), transform, seed=3)


def pairs(folder, tokenizer, training=True, texts=None, negatives=None, num_negatives=0, **transform):
    groups = texts or [[f"red {i}", f"blue {i}", f"circle {i}"] for i in range(COUNT)]
    flat = [text for group in groups for text in group]
    starts = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    return PairDataset(
        Pictures([f"{i}.png" for i in range(COUNT)], [folder]),
        np.arange(COUNT),
        Captions(PackedStrings(flat), starts),
        np.arange(100, 100 + COUNT),
        tokenizer,
        TrainTransform(12, **transform) if training else EvalTransform(12),
        seed=3,
        negatives=negatives,
        num_negatives=num_negatives,
    )


def keys(epoch, *indices):
    return [SampleKey(epoch, i) for i in indices]


def words(tokenizer, tokens):
    return " ".join(tokenizer.words[int(i)] for i in tokens)


def test_images(folder):
    batch = images(folder, training=False).__getitems__(keys(0, 4, 1)).batch
    assert batch.image.shape == (2, 3, 8, 8) and batch.image.dtype == torch.uint8
    assert batch.label.tolist() == [14, 11] and batch.index.tolist() == [4, 1]


def test_augmentation_depends_on_epoch_and_index_only(folder):
    dataset = images(folder)
    first = dataset.__getitems__(keys(2, 0, 1, 2)).batch.image
    assert torch.equal(first[1], dataset.__getitems__(keys(2, 5, 1)).batch.image[1])
    assert not torch.equal(first[1], dataset.__getitems__(keys(3, 1)).batch.image[0])


def test_plain_indices_are_samples_of_the_first_epoch(folder):
    dataset = images(folder)
    assert torch.equal(dataset[2].batch.image, dataset.__getitems__(keys(0, 2)).batch.image)


def test_memory_changes_no_sample(folder):
    wanted = keys(1, *range(COUNT))
    assert torch.equal(
        images(folder).__getitems__(wanted).batch.image, images(folder, cache=True).__getitems__(wanted).batch.image
    )


def test_damaged_samples_are_replaced_in_training(folder):
    (folder / "1.png").write_bytes(b"")
    (folder / "3.png").unlink()
    dataset = images(folder)
    loaded = dataset.__getitems__(keys(0, 0, 1, 2, 3))
    assert len(loaded.batch.index) == 4
    assert loaded.batch.index[[0, 2]].tolist() == [0, 2]
    assert not {1, 3} & set(loaded.batch.index.tolist())
    assert loaded.batch.label.tolist() == (loaded.batch.index + 10).tolist()
    assert {record.path for record in loaded.bad} == {str(folder / "1.png"), str(folder / "3.png")}
    again = dataset.__getitems__(keys(0, 3, 1))
    assert again.batch.index.tolist() == loaded.batch.index[[3, 1]].tolist()


def test_damaged_samples_are_left_out_in_evaluation(folder):
    (folder / "1.png").write_bytes(b"")
    loaded = images(folder, training=False).__getitems__(keys(0, 0, 1, 2))
    assert loaded.batch.index.tolist() == [0, 2] and len(loaded.batch.image) == 2
    assert [record.reason for record in loaded.bad] == ["zero bytes"]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_readable(folder, training):
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(b"")
    loaded = images(folder, training).__getitems__(keys(0, 0, 1))
    assert loaded.batch is None and loaded.bad


def test_captions_are_drawn_from_epoch_and_index(folder, tokenizer):
    dataset = pairs(folder, tokenizer)
    wanted = [SampleKey(epoch, 2) for epoch in range(40)]
    drawn = [dataset.caption_of(key) for key in wanted]
    assert drawn == [pairs(folder, tokenizer).caption_of(key) for key in wanted]
    assert set(drawn) == {6, 7, 8}
    batch = dataset.__getitems__(wanted[:5]).batch
    assert [words(tokenizer, row[1:3]) for row in batch.tokens] == [dataset.captions.texts[i] for i in drawn[:5]]


def test_evaluation_takes_the_first_caption(folder, tokenizer):
    dataset = pairs(folder, tokenizer, training=False)
    assert {dataset.caption_of(SampleKey(epoch, 2)) for epoch in range(10)} == {6}


def test_pair_batch(folder, tokenizer):
    groups = [["red"], ["Red ."], ["blue circle square"], [""], ["🐕 狗"], ["red " * 50]]
    loaded = pairs(folder, tokenizer, training=False, texts=groups).__getitems__(keys(0, *range(COUNT)))
    batch = loaded.batch
    assert batch.image.shape == (6, 3, 12, 12)
    assert batch.tokens.shape == batch.token_mask.shape == (6, 12)
    assert batch.token_mask.sum(1).tolist() == [3, 4, 5, 2, 4, 12]
    assert batch.image_id.tolist() == [100, 101, 102, 103, 104, 105]
    assert batch.text_id.tolist() == [text_id(group[0]) for group in groups]
    assert batch.text_id[0] == batch.text_id[1]
    assert batch.label is None and batch.negatives is None
    assert loaded.truncated == 1


def test_captions_with_left_or_right_forbid_the_mirror(folder, tokenizer):
    texts = [["red left of blue"], ["the leftmost"], ["RIGHT here"], ["bright"], ["red"], ["blue"]]
    dataset = pairs(folder, tokenizer, texts=texts, scale=(1, 1))
    plain = pairs(folder, tokenizer, texts=texts, scale=(1, 1), flip=False)
    mirrored = [False] * COUNT
    for epoch in range(20):
        wanted = keys(epoch, *range(COUNT))
        pictures, upright = dataset.__getitems__(wanted).batch.image, plain.__getitems__(wanted).batch.image
        mirrored = [seen or not torch.equal(a, b) for seen, a, b in zip(mirrored, pictures, upright, strict=True)]
    assert mirrored == [False, False, False, True, True, True]


def test_negatives(folder, tokenizer):
    texts = [[f"red {i}"] for i in range(COUNT)]
    false = [["blue 0"], [], ["blue 2", "circle 2", "square 2"], [], [], []]
    negatives = Captions(
        PackedStrings([text for group in false for text in group]), np.array([0, 1, 1, 4, 4, 4, 4], dtype=np.int64)
    )
    dataset = pairs(folder, tokenizer, texts=texts, negatives=negatives, num_negatives=2)
    batch = dataset.__getitems__(keys(0, 0, 1, 2)).batch
    assert batch.negatives.shape == batch.negatives_mask.shape == (3, 2, 4)
    assert [words(tokenizer, row[1:3]) for row in batch.negatives[0]] == ["blue 0", "blue 0"]
    assert not batch.negatives_mask[1].any()
    assert batch.negatives_mask[2].all()

    def drawn(epoch):
        return [words(tokenizer, row[1:3]) for row in dataset.__getitems__(keys(epoch, 2)).batch.negatives[0]]

    assert all(len(set(drawn(epoch))) == 2 for epoch in range(10))
    assert {text for epoch in range(10) for text in drawn(epoch)} == set(false[2])
    assert drawn(4) == drawn(4)


def test_negatives_leave_pictures_and_captions_as_they_are(folder, tokenizer):
    negatives = Captions(PackedStrings(["blue"] * 18), np.arange(19))
    wanted = keys(5, *range(COUNT))
    without = pairs(folder, tokenizer).__getitems__(wanted).batch
    with_them = pairs(folder, tokenizer, negatives=negatives, num_negatives=1).__getitems__(wanted).batch
    assert torch.equal(without.image, with_them.image) and torch.equal(without.tokens, with_them.tokens)


def test_two_pictures_a_sample(folder, tokenizer):
    dataset = pairs(folder, tokenizer, training=False)
    dataset.rows = np.array([[0, 1], [2, 0]])
    batch = dataset.__getitems__(keys(0, 0, 1)).batch
    assert batch.image.shape == (2, 2, 3, 12, 12)
    assert torch.equal(batch.image[0, 0], batch.image[1, 1])
    assert torch.equal(batch.image[0, 1], dataset.pictures.read(1))


def test_texts(tokenizer):
    dataset = TextDataset(PackedStrings(["red", "blue circle", "Red."]), np.array([5, 6, 7]), tokenizer)
    batch = dataset.__getitems__([SampleKey(0, 0), 2]).batch
    assert batch.image_id.tolist() == [5, 7] and batch.index.tolist() == [0, 2]
    assert batch.text_id[0] == batch.text_id[1]
    assert len(dataset) == 3


def test_datasets_travel_to_spawned_workers(folder, tokenizer):
    dataset = pairs(folder, tokenizer)
    copy = pickle.loads(pickle.dumps(dataset))
    wanted = keys(1, 3, 4)
    assert torch.equal(copy.__getitems__(wanted).batch.image, dataset.__getitems__(wanted).batch.image)


def test_no_picture_is_mirrored_whose_false_captions_could_then_be_true(folder, tokenizer):
    texts = [["red above blue"]] * 4 + [["red left of blue"], ["red above blue"]]
    false = ["blue above red"] * 4 + ["red above blue", "red LEFT of blue"]
    negatives = Captions(PackedStrings(false), np.arange(COUNT + 1))
    data = pairs(folder, tokenizer, texts=texts, negatives=negatives, num_negatives=1)
    assert [data.may_flip(key) for key in keys(0, *range(COUNT))] == [True] * 4 + [False] * 2
    assert pairs(folder, tokenizer, texts=texts).may_flip(SampleKey(0, 5))
