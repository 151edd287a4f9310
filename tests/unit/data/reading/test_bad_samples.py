import json

import pytest

from crossvit.data.reading.bad_samples import BadRecord, BadSamples
from crossvit.errors import UserError

ZERO = BadRecord("a.jpg", "zero bytes")


def lines(directory):
    return [json.loads(line) for line in (directory / "bad_samples.jsonl").read_text().splitlines()]


def test_each_sample_is_counted_and_written_once(tmp_path):
    bad = BadSamples(0.5, tmp_path / "run")
    bad.record("train", 10, [ZERO, BadRecord("ü.jpg", "missing file")])
    bad.record("train", 10, [ZERO])
    bad.record("val", 10, [ZERO])
    assert bad.count == {"train": 2, "val": 1}
    assert lines(tmp_path / "run") == [
        {"split": "train", "path": "a.jpg", "reason": "zero bytes"},
        {"split": "train", "path": "ü.jpg", "reason": "missing file"},
        {"split": "val", "path": "a.jpg", "reason": "zero bytes"},
    ]


def test_nothing_is_written_without_damage(tmp_path):
    BadSamples(0.5, tmp_path).record("train", 10, [])
    assert list(tmp_path.iterdir()) == []


def test_records_wait_for_a_directory(tmp_path):
    bad = BadSamples(0.5)
    bad.record("train", 10, [ZERO])
    bad.directory = tmp_path
    bad.flush()
    assert len(lines(tmp_path)) == 1


def test_the_limit_is_reached_but_not_passed(tmp_path):
    bad = BadSamples(0.2, tmp_path)
    bad.record("train", 10, [BadRecord(f"{i}.jpg", "zero bytes") for i in range(2)])
    with pytest.raises(UserError) as caught:
        bad.record("train", 10, [BadRecord("2.jpg", "missing file")])
    message = str(caught.value)
    for part in ("3 of 10", "'train'", "data.max_bad_fraction=0.2", "2.jpg: missing file", "bad_samples.jsonl"):
        assert part in message
    assert len(lines(tmp_path)) == 3


def test_none_allowed():
    with pytest.raises(UserError, match="1 of 1000"):
        BadSamples(0.0).record("train", 1000, [ZERO])


def test_what_every_rank_finds_is_written_by_one(tmp_path):
    bad = BadSamples(0.5, tmp_path)
    bad.record("train", 10, [ZERO], write=False)
    assert bad.count["train"] == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match=r"data\.max_bad_fraction"):
        BadSamples(fraction)
