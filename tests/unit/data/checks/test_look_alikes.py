"""Looks, thumbnails and the search for near pairs."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from crossvit.data.checks import look_alikes
from crossvit.data.checks.look_alikes import BITS, NearPairs, look, same, thumbnail
from crossvit.data.reading.decoding import decode_bytes


def photo(number: int, side: int = 128) -> torch.Tensor:
    """Soft blobs of colour."""
    noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(number))
    return (F.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1)[0] * 255).byte()


def saved_anew(picture: torch.Tensor, side: int) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side)).save(file, "JPEG", quality=60)
    return decode_bytes(file.getvalue(), "x.jpg")


def test_a_look_by_hand():
    row = torch.tensor([0, 9, 8, 7, 20, 30, 25, 40, 50]) * 5
    picture = row.repeat(3, 8, 1).byte()
    assert look(picture) == int("10011011" * 8, 2)
    assert look(torch.full((3, 20, 20), 90, dtype=torch.uint8)) is None


def test_a_picture_saved_anew_looks_the_same_and_another_does_not():
    pictures = [photo(number) for number in range(40)]
    again = [saved_anew(picture, 70) for picture in pictures]
    distance = [(look(a) ^ look(b)).bit_count() for a, b in zip(pictures, again, strict=True)]
    assert np.mean(np.array(distance) <= BITS) >= 0.9
    first, second = (np.stack([thumbnail(p) for p in some]) for some in (pictures, again))
    assert same(first, second).all()
    assert not same(first, np.roll(first, 1, axis=0)).any()


@pytest.mark.parametrize("step", [7, 2_000_000])
def test_near_pairs_are_those_of_comparing_all(monkeypatch, step):
    """Looks with few bits set, so that many are near each other; the result does not depend on how many are compared at a time."""
    monkeypatch.setattr(look_alikes, "_STEP", step)
    rng = np.random.default_rng(0)
    bits = rng.random((120, 64)) < 0.03
    looks = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    found = [tuple(pair) for some in NearPairs(looks) for pair in some.tolist()]
    difference = (bits[:, None] != bits[None]).sum(axis=2)
    wanted = [(i, j) for i in range(120) for j in range(i + 1, 120) if difference[i, j] <= BITS]
    assert sorted(found) == wanted and len(wanted) > 50


def test_a_crowd_is_passed_over_and_counted(monkeypatch):
    monkeypatch.setattr(look_alikes, "_CROWD", 10)
    near = NearPairs(np.zeros(11, dtype=np.uint64))
    assert sum(map(len, near)) == 0 and near.crowded == 11
    near = NearPairs(np.zeros(10, dtype=np.uint64))
    assert sum(map(len, near)) == 45 and near.crowded == 0
