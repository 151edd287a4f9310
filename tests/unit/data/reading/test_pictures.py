import logging

import numpy as np
import pytest
import torch
from PIL import Image

from crossvit.data.reading import pictures as module
from crossvit.data.reading.decoding import BadSample
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError


@pytest.fixture
def folder(tmp_path, picture):
    for i, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        picture(tmp_path / "images" / name, i)
    return tmp_path / "images"


NAMES = ["a.png", "sub/b.png", "c.png"]


def test_read(folder):
    pictures = Pictures(NAMES, [folder])
    assert len(pictures) == 3
    assert pictures.path(1) == str(folder / "sub/b.png")
    expected = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    assert np.array_equal(pictures.read(1).permute(1, 2, 0).numpy(), expected)


def test_several_roots_are_searched_in_order(folder, tmp_path, picture):
    picture(tmp_path / "more/d.png", 3)
    picture(tmp_path / "more/a.png", 4)
    pictures = Pictures(["d.png", "a.png", "none.png"], [folder, tmp_path / "more"])
    assert pictures.path(0) == str(tmp_path / "more/d.png")
    assert pictures.path(1) == str(folder / "a.png")
    assert [record.path for record in pictures.missing()] == [str(folder / "none.png")]
    assert pictures.sizes()[2] == -1 and (pictures.sizes()[:2] > 0).all()


def test_missing_folder():
    assert len(Pictures(["x/a.png"], ["nowhere"]).missing()) == 1


def test_memory_holds_the_same_pictures(folder, caplog):
    (folder / "c.png").write_bytes(b"")
    pictures = Pictures(NAMES, [folder])
    expected = pictures.read(0)
    with caplog.at_level(logging.DEBUG, logger="crossvit"):
        pictures.keep_in_memory()
    assert "3 pictures kept in memory" in caplog.text
    (folder / "a.png").unlink()
    assert torch.equal(pictures.read(0), expected)
    with pytest.raises(BadSample, match="zero bytes"):
        pictures.read(2)


def test_memory_holds_what_is_read_at_a_part_of_the_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    assert (tmp_path / "a.jpg").stat().st_size > 131_072
    plain, kept = (Pictures(["a.jpg"], [tmp_path]) for _ in range(2))
    kept.keep_in_memory(100)
    assert plain.read(0, 100).shape == (3, 100, 125)
    for min_side in (100, 150, None):
        assert torch.equal(kept.read(0, min_side), plain.read(0, min_side))


def test_memory_needs_pictures_of_one_size(folder, picture):
    picture(folder / "c.png", size=(20, 12))
    with pytest.raises(UserError, match=r"data\.cache=true .*c\.png is 20 x 12, others are 12 x 12"):
        Pictures(NAMES, [folder]).keep_in_memory()


def test_memory_is_limited(folder, monkeypatch):
    monkeypatch.setattr(module.os, "sysconf", lambda name: 30)
    with pytest.raises(UserError, match=r"data\.cache=true: 3 pictures take .* more than half"):
        Pictures(NAMES, [folder]).keep_in_memory()
