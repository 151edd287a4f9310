import pytest

from crossvit.data import scenes
from crossvit.data.vlr import Quad
from crossvit.data.vsr import VSRDataModule
from crossvit.data.winoground import WinogroundDataModule
from crossvit.errors import UserError

SETTINGS = {"train_split": None, "val_split": None, "test_split": "test", "image_size": 8, "batch_size": 4}


def example(number: int, first: str, second: str) -> dict:
    """A line with the fields of the release."""
    images = {f"image_{i}": f"ex_{number}_img_{i}" for i in range(2)}
    tags = {"tag": "Adjective", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Object"}
    return {"id": number, "caption_0": first, "caption_1": second, **images, **tags}


@pytest.fixture
def root(tmp_path, picture, write_jsonl):
    root = tmp_path / "winoground"
    for number in range(2):
        for i in range(2):
            picture(root / "images" / f"ex_{number}_img_{i}.png", 2 * number + i)
    lines = [example(0, "red circle blue square", "blue circle red square"), example(1, "left of", "of left")]
    write_jsonl(root / "examples.jsonl", lines)
    return root


def test_examples_come_back_as_quads(root, tokenizer):
    data = WinogroundDataModule(root=root, tokenizer=tokenizer, **SETTINGS)
    data.validate()
    assert data.quads("test") == [
        Quad((0, 1), ("red circle blue square", "blue circle red square"), "Object"),
        Quad((2, 3), ("left of", "of left"), "Object"),
    ]
    assert data.manifest()["splits"]["test"] == {"samples": 8, "pictures": 4, "label 0": 4, "label 1": 4}
    assert [label for batch in data.image_loader("test") for label in batch.label.tolist()] == [0, 1, 2, 3]
    assert [label for batch in data.pair_loader("test") for label in batch.label.tolist()] == [1, 0, 0, 1] * 2


def test_damage(root, tokenizer, write_jsonl):
    lines = [example(0, "red", "blue"), {"id": 1, "caption_0": "red"}]
    write_jsonl(root / "examples.jsonl", lines)
    data = WinogroundDataModule(root=root, tokenizer=tokenizer, max_bad_fraction=0.5, **SETTINGS)
    assert len(data.quads("test")) == 1 and data.bad_count == 1
    (root / "images").rename(root / "pictures")
    with pytest.raises(UserError, match=r"images is not there.*\n.*examples.jsonl"):
        WinogroundDataModule(root=root, tokenizer=tokenizer, **SETTINGS).validate()


def test_statements_of_the_corpus_are_quads_too(tmp_path, tokenizer):
    corpus = scenes.generate(tmp_path, "easy", image_size=32, sizes="smoke")
    data = VSRDataModule(root=corpus.path / "vsr", tokenizer=tokenizer, **SETTINGS)
    quads = data.quads("test")
    assert len(quads) == 10 and {position for quad in quads for position in quad.pictures} == set(range(20))
    assert all(len(set(quad.captions)) == 2 for quad in quads)


def test_other_statements_are_none(tmp_path, tokenizer, picture, write_jsonl):
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.jpg", i)
    rows = [(0, "a", 1), (0, "b", 0), (1, "a", 0), (1, "b", 1)]
    odd = [(0, "a", 1), (0, "b", 1), (1, "a", 0), (1, "c", 1)]
    lines = [{"image": f"{i}.jpg", "caption": text, "label": label} for i, text, label in [(2, "c", 1), *odd, *rows]]
    write_jsonl(tmp_path / "test.jsonl", lines)
    data = VSRDataModule(root=tmp_path, tokenizer=tokenizer, **SETTINGS)
    assert data.quads("test") == [Quad((1, 2), ("a", "b"), "")]


def test_the_folder_of_the_release(root, tokenizer):
    (root / "data").mkdir()
    for part in ("examples.jsonl", "images"):
        (root / part).rename(root / "data" / part)
    WinogroundDataModule(root=root, tokenizer=tokenizer, max_bad_fraction=0.0, **SETTINGS).validate()
