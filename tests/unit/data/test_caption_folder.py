"""Pictures with a text file each."""

import pytest

from crossvit.data.caption_folder import CaptionFolderDataModule
from crossvit.errors import UserError


@pytest.fixture
def root(tmp_path, picture):
    """Training: 6 pictures, one of them in a folder inside; validation: 2."""
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            place = tmp_path / "own" / split / ("inside" if i == 5 else "")
            picture(place / f"{i}.PNG", i)
            (place / f"{i}.txt").write_text(f"red {i}\n\nblue {i}\n" if i % 2 else f"red {i}")
    return tmp_path / "own"


def make(root, tokenizer, **options):
    options = {"max_bad_fraction": 0.0} | options
    return CaptionFolderDataModule(root=root, image_size=12, batch_size=2, tokenizer=tokenizer, **options)


def test_a_line_is_a_caption(root, tokenizer):
    data = make(root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 6, "captions": 9}
    assert list(data.index("train").pictures.names)[-1] == "inside/5.PNG"
    assert [text for _, _, text in data.captions("val")] == ["red 0", "red 1", "blue 1"]
    before = data.manifest()["sha256"]
    (root / "train/0.txt").write_text("green 0")  # of the same length
    assert make(root, tokenizer).manifest()["sha256"] != before


def test_a_folder_without_splits(root, tokenizer):
    for split in ("train", "val"):
        (root / split).rename(root / f"a_{split}")
    data = make(root, tokenizer, held_out=0.4, val_split="held_out", test_split=None)
    data.validate()
    assert data.index("train").counts["samples"] + data.index("held_out").counts["samples"] == 8
    with pytest.raises(UserError, match=r"val is not a folder\.(.|\n)*<name>\.txt"):
        make(root, tokenizer).validate()


def test_a_training_folder_of_another_name_is_not_the_whole_root(root, tokenizer):
    (root / "train").rename(root / "training")
    with pytest.raises(UserError, match="train is not a folder"):
        make(root, tokenizer).validate()


def test_names_in_an_old_encoding(root, tokenizer):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    for ending in ("PNG", "txt"):
        (root / f"train/0.{ending}").rename(root / f"train/{name}.{ending}")
    assert make(root, tokenizer).manifest(("train",))["sha256"] != ""


def test_text_files_that_cannot_be_used(root, tokenizer):
    (root / "train/0.txt").unlink()
    (root / "train/1.txt").write_text("\n")
    (root / "train/2.txt").write_bytes(b"\xff")
    reasons = [defect.reason for defect in make(root, tokenizer, max_bad_fraction=0.5).index("train").defects]
    assert reasons[:2] == ["no text file of this name", "its text file holds no caption"]
    assert reasons[2].startswith("its text file cannot be read ('utf-8'")
    with pytest.raises(UserError, match=r"1 of 6 samples of split 'train' are damaged"):
        make(root, tokenizer).validate()
