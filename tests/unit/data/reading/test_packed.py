import pickle

import pytest

from crossvit.data.reading.packed import PackedStrings

TEXTS = ["", "a red circle", "ünï çødé 狗 🐕", "lone surrogate \udcff", "x" * 5000]


def test_gives_back_every_string():
    packed = PackedStrings(TEXTS)
    assert len(packed) == len(TEXTS)
    assert list(packed) == TEXTS
    assert list(pickle.loads(pickle.dumps(packed))) == TEXTS


def test_empty():
    assert list(PackedStrings([])) == []


@pytest.mark.parametrize("index", [-1, 5])
def test_out_of_range(index):
    with pytest.raises(IndexError):
        PackedStrings(TEXTS)[index]
