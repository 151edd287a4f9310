"""Tars in webdataset form: what is read of them, damage, order and resume."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from crossvit.data.reading.annotations import text_id
from crossvit.data.reading.decoding import decode_image
from crossvit.data.shards import index as shard_index
from crossvit.data.shards.captions import ShardsDataModule, expand_braces
from crossvit.data.shards.index import ShardIndex, index_of
from crossvit.data.shards.tars import split_name
from crossvit.errors import UserError
from tests.unit.data.conftest import save_picture
from tests.unit.data.test_module import as_rank, fit, keep_all


def png(number: int, side: int = 12) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    """members: (name, bytes), or a TarInfo that has no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def sample(number: int, caption: str | list[str] | None = None):
    """As img2dataset writes it: picture, json and txt of one key."""
    caption = f"red {number}" if caption is None else caption
    key = f"{number // 10:05d}{number % 10:04d}"
    record = {"url": "https://...", "caption": caption, "key": key, "status": "success", "width": 12}
    first = caption if isinstance(caption, str) else caption[0]
    return [(f"{key}.png", png(number)), (f"{key}.json", json.dumps(record).encode()), (f"{key}.txt", first.encode())]


def samples(*numbers: int):
    return [member for number in numbers for member in sample(number)]


@pytest.fixture
def root(tmp_path):
    """Three training tars of 5, 4 and 2 pictures; the pictures of the one of validation have two captions each."""
    folder = tmp_path / "tars"
    start = 0
    for number, count in enumerate((5, 4, 2)):
        write_tar(folder / f"train-{number:04d}.tar", samples(*range(start, start + count)))
        start += count
    val = [member for i in range(4) for member in sample(100 + i, [f"red {i}", f"blue {i // 2}"])]
    write_tar(folder / "val-0000.tar", val)
    return folder


def make(root, tokenizer, **options):
    options = {"shards": "{split}-*.tar", "max_bad_fraction": 0.0, "batch_size": 4} | options
    return ShardsDataModule(root=root, image_size=12, tokenizer=tokenizer, **options)


def bad(data, split="train"):
    return [(record.path, record.reason) for record in data.index(split).defects]


# reading ------------------------------------------------------------------------------------------------------------


def test_pictures_and_captions(root, tokenizer, tmp_path):
    data = make(root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 11, "captions": 11, "shards": 3}
    assert [text for _, _, text in data.captions("train")] == [f"red {i}" for i in range(11)]
    pictures = data.index("train").pictures
    for i in range(11):
        assert torch.equal(pictures.read(i), decode_image(save_picture(tmp_path / f"{i}.png", i)))
    assert pictures.sizes().tolist() == [len(png(i)) for i in range(11)]
    assert pictures.path(5) == f"{root / 'train-0001.tar'}: 000000005.png"


def test_an_evaluation_knows_pictures_and_equal_captions(root, tokenizer):
    data = make(root, tokenizer)
    assert data.index("val").counts == {"samples": 4, "captions": 8, "shards": 1}
    assert data.captions("val")[:4] == [(0, 0, "red 0"), (1, 0, "blue 0"), (2, 1, "red 1"), (3, 1, "blue 0")]
    data = make(root, tokenizer, eval_batch_size=8)
    (texts,) = data.text_loader("val")
    assert texts.image_id.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert texts.text_id[1] == texts.text_id[3] == text_id("blue 0") and texts.text_id[1] != texts.text_id[5]
    (images,) = data.image_loader("val")
    assert images.label.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, format):
    names = ["./a.png", f"{'d' * 90}/{'e' * 90}.png", "ü/é.png"]
    if format != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".png"]
    members = [(name, png(i)) for i, name in enumerate(names)] + [(name[:-3] + "txt", b"red") for name in names]
    index = index_of(write_tar(tmp_path / "a.tar", members, format))
    assert [index.name(i) for i in range(len(index))] == ["a.png", *names[1:]]
    assert index.damages == [] and [index.caption(i) for i in range(len(index))] == ["red"] * len(names)


def test_what_belongs_to_no_sample_is_passed_over(tmp_path):
    folder = tarfile.TarInfo("sub")
    folder.type = tarfile.DIRTYPE
    members = [folder, ("sub/._0.jpg", b"x"), ("README", b"x"), ("sub/0.seg.png", b"x"), ("sub/0.png", png(0))]
    index = index_of(write_tar(tmp_path / "a.tar", [*members, ("sub/0.TXT", b" red \n")]))
    assert (len(index), index.damages, index.caption(0)) == (1, [], "red")


@pytest.mark.parametrize(
    ("texts", "captions", "damaged"),
    [
        ({"json": b'{"caption": ["a", "", 3, "b"]}', "txt": b"c"}, ["a", "b"], 0),
        ({"json": b'{"caption": null}', "txt": b"c"}, ["c"], 0),
        ({"json": b"[]", "txt": b"c"}, ["c"], 1),
        ({"json": b'{"caption": "\xff"}'}, [], 1),
        ({"json": b'{"caption": "\\ud83d"}'}, ["?"], 0),
        ({"txt": b"  "}, [], 0),
        ({}, [], 0),
    ],
)
def test_captions(tmp_path, texts, captions, damaged):
    members = [("0.png", png(0)), *((f"0.{kind}", text) for kind, text in texts.items())]
    index = index_of(write_tar(tmp_path / "a.tar", members))
    assert [index.caption(i) for i in range(int(index.caption_starts[1]))] == captions
    assert len(index.damages) == damaged


def test_labels(tmp_path):
    texts = [("cls", b"3\n"), ("json", b'{"label": 7}'), ("cls", b"cat"), ("json", b'{"label": -2}'), ("txt", b"red")]
    members = [(f"{i}.{e}", c) for i, (kind, text) in enumerate(texts) for e, c in (("png", png(i)), (kind, text))]
    assert index_of(write_tar(tmp_path / "a.tar", members)).labels.tolist() == [3, 7, -1, -1, -1]


def test_split_name():
    assert split_name("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_name("a/.hidden.png") is split_name("a/b") is None


# patterns -----------------------------------------------------------------------------------------------------------


def test_braces():
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{a,b}{9..10}") == ["a9", "a10", "b9", "b10"]
    for wrong in ("{a}", "{3..1}"):
        with pytest.raises(UserError, match=r"must be as \{0000\.\.0575\}"):
            expand_braces(wrong)


@pytest.mark.parametrize(
    ("shards", "train"),
    [
        ("{split}-{0000..0001}.tar", 9),
        ("{split}-000[02].tar", 7),
        ({"train": ["train-0002.tar", "train-*.tar"], "val": "val-0000.tar"}, 11),
        ({"train": "train-{0000,0002}.tar", "val": "val*"}, 7),
    ],
)
def test_patterns(root, tokenizer, shards, train):
    if not isinstance(shards, dict) and "0001" in shards:
        os.link(root / "val-0000.tar", root / "val-0001.tar")
    data = make(root, tokenizer, shards=shards)
    data.validate()
    assert data.index("train").counts["samples"] == train


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("{split}-{0000..0004}.tar", r"train-0003\.tar is not there, 2 of 5 shards"),
        ("nothing-*.tar", r"No shard .*nothing-\*\.tar"),
        ("{{split},nope}-*.tar", r"No shard .*nope-\*\.tar"),
        ([], r"data\.shards=\[\] names no shard of split 'train'"),
        ("train-*.tar", r"names no \{split\}, so there is no split 'val': set data\.shards to \{train"),
        ({"train": "train-*.tar"}, r"names no split 'val' \(its splits: train\)"),
        ("pipe:cat x.tar", "is no path"),
        ("https://a.b/{split}-0.tar", "is no path"),
    ],
)
def test_patterns_that_lead_nowhere(root, tokenizer, shards, message):
    with pytest.raises(UserError, match=message):
        make(root, tokenizer, shards=shards).validate()


def test_held_out(root, tokenizer):
    data = make(root, tokenizer, shards="train-*.tar", held_out=0.4, val_split="held_out", test_split=None)
    parts = [[text for _, _, text in data.captions(split)] for split in ("train", "held_out")]
    assert all(parts) and sorted(parts[0] + parts[1]) == sorted(f"red {i}" for i in range(11))
    index = data.index("held_out")
    names = [index.pictures.path(i).rpartition(" ")[2] for i in range(len(parts[1]))]
    assert names == [sample(int(text[4:]))[0][0] for text in parts[1]]


# the index ----------------------------------------------------------------------------------------------------------


def test_the_index_is_made_once_and_anew_where_the_tar_changes(root, monkeypatch):
    tar = root / "train-0000.tar"
    scanned = []
    scan = shard_index._scan
    monkeypatch.setattr(shard_index, "_scan", lambda tar: scanned.append(tar) or scan(tar))
    first = index_of(tar)
    assert first.file == root / "train-0000.tar.idx" and len(index_of(tar)) == 5 and len(scanned) == 1
    os.utime(tar, ns=(0, 1))
    assert index_of(tar).sha256 == first.sha256 and len(scanned) == 2
    write_tar(tar, sample(0))
    assert len(index_of(tar)) == 1 and len(scanned) == 3
    for damage in (b"", first.file.read_bytes()[:-40], b"\0" * 500, b"v1.2 5\npng 512 12 0.png\n"):
        first.file.write_bytes(damage)
        again = index_of(tar)
        assert (len(again), again.name(0), again.caption(0)) == (1, "000000000.png", "red 0")
    assert len(scanned) == 7
    assert sorted(path.name for path in root.iterdir() if "0000" in path.name) == [
        "train-0000.tar",
        "train-0000.tar.idx",
        "val-0000.tar",
    ]


def test_an_index_that_points_outside_of_the_tar_is_made_anew(root):
    index = index_of(root / "train-0000.tar")
    offset = index.header["start"] + index.header["arrays"]["offsets"][2]
    with open(index.file, "r+b") as file:
        file.seek(offset)
        file.write(np.int64(10**9).tobytes())
    with pytest.raises(ValueError, match="outside"):
        ShardIndex(index.tar, index.file)
    assert index_of(index.tar).offsets[0] == 512


def test_the_index_of_a_folder_that_cannot_be_written(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / "train-0000.tar.idx").mkdir()  # in the way of the file, for root as well
    index = index_of(root / "train-0000.tar")
    assert index.file.parent == tmp_path / "cache/crossvit/shards" and len(index) == 5
    given = index_of(root / "train-0001.tar", tmp_path / "given")
    assert given.file.parent == tmp_path / "given" and not (root / "train-0001.tar.idx").exists()


def test_processes_read_the_index_from_its_file(root, tokenizer):
    data = make(root, tokenizer)
    index = data.index("train")
    index.pictures.read(0)
    pictures, texts = pickle.loads(pickle.dumps((index.pictures, index.captions.texts)))
    assert torch.equal(pictures.read(7), index.pictures.read(7)) and texts[7] == "red 7"
    assert len(pickle.dumps(index.pictures.shards)) < 1000


def test_many_tars_are_indexed_by_several_processes(tmp_path, tokenizer):
    for number in range(10):
        write_tar(tmp_path / "s" / f"train-{number}.tar", sample(number))
    data = make(tmp_path / "s", tokenizer, val_split=None, test_split=None)
    assert [text for _, _, text in data.captions("train")] == [f"red {i}" for i in range(10)]


def test_more_tars_than_files_may_be_open(root, tokenizer, monkeypatch):
    monkeypatch.setattr("crossvit.data.shards.captions._OPEN_FILES", 1)
    pictures = make(root, tokenizer).index("train").pictures
    assert [pictures.encoded(i) for i in (0, 10, 5, 1)] == [png(i) for i in (0, 10, 5, 1)]
    assert len(pictures._files) == 1


# order --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_holds_every_sample_once_at_any_number_of_workers(root, tokenizer, workers):
    loader = make(root, tokenizer, num_workers=workers, batch_size=1).train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        orders.append([int(batch.index) for batch in batches])
        assert [int(batch.text_id) for batch in batches] == [text_id(f"red {i}") for i in orders[-1]]
        plain = make(root, tokenizer, batch_size=1).train_dataloader()
        plain.sampler.set_epoch(epoch)
        assert all(torch.equal(a.image, b.image) for a, b in zip(batches, plain, strict=True))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(11)) and orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_repeats_and_loses_nothing(root, tokenizer, tmp_path, workers):
    def build(root, **options):
        return make(root, tokenizer, val_split=None, test_split=None, **options)

    arguments = {"batch_size": 2, "make": build}
    whole = fit(root, tmp_path, callbacks=[keep_all(tmp_path / "c", every_n_train_steps=1)], **arguments)
    epochs = [[i for row in whole if row[0] == epoch for i in row[2]] for epoch in range(3)]
    assert all(len(seen) == len(set(seen)) == 10 for seen in epochs)
    for step in (3, 5, 8):
        resumed = fit(root, tmp_path, resume=str(tmp_path / f"c/{step}.ckpt"), workers=workers, **arguments)
        assert resumed == whole[step:]


def test_two_ranks_share_the_order_of_one_and_resume(root, tokenizer):
    def rows(rank, world_size, start):
        loader = as_rank(make(root, tokenizer), rank, world_size).train_dataloader()
        loader.sampler.seek(1, start)
        return [(batch.index.tolist(), int(batch.image.sum())) for batch in loader]

    alone = rows(0, 1, 0)
    first, second = rows(0, 2, 0), rows(1, 2, 0)
    assert len(alone) == 2
    for one, a, b in zip(alone, first, second, strict=True):
        assert (a[0], b[0], a[1] + b[1]) == (one[0][0::2], one[0][1::2], one[1])
    assert (rows(0, 2, 1), rows(1, 2, 1), rows(0, 1, 1)) == (first[1:], second[1:], alone[1:])


def test_manifest_follows_the_content_and_not_the_place(root, tokenizer, tmp_path):
    first = make(root, tokenizer).manifest()
    moved = root.rename(tmp_path / "moved")
    os.utime(moved / "train-0000.tar", ns=(0, 1))
    assert make(moved, tokenizer).manifest() == first
    write_tar(moved / "train-0002.tar", sample(9) + sample(10, "blue 10"))
    assert make(moved, tokenizer).manifest()["sha256"] != first["sha256"]


# damage -------------------------------------------------------------------------------------------------------------


def test_a_tar_that_is_cut_off(root, tokenizer):
    tar = root / "train-0001.tar"
    whole = tar.read_bytes()
    third = whole.index(b"000000007.png")
    for cut, reason in ((third + 600, "the tar is cut off: 88 of"), (third + 100, "ends without its last blocks")):
        tar.write_bytes(whole[:cut])
        data = make(root, tokenizer, max_bad_fraction=0.5)
        data.validate()
        assert data.index("train").counts["samples"] == 9
        assert [text for _, _, text in data.captions("train")][5:] == ["red 5", "red 6", "red 9", "red 10"]
        ((path, found),) = bad(data)
        assert path.startswith(f"{tar}: ") and reason in found and data.bad_count == 1
    with pytest.raises(UserError, match=r"bytes of the shards of split 'train' are damaged, .*train-0001\.tar"):
        make(root, tokenizer).validate()


def test_a_damaged_header_loses_one_file_and_not_the_rest(root, tokenizer):
    tar = root / "train-0001.tar"
    content = bytearray(tar.read_bytes())
    start = content.index(b"000000006.png")
    content[start : start + 512] = os.urandom(512)
    tar.write_bytes(content)
    data = make(root, tokenizer, max_bad_fraction=0.5)
    assert [text for _, _, text in data.captions("train")][5:8] == ["red 5", "red 7", "red 8"]
    assert bad(data) == [(f"{tar}: byte {start}", "damaged header"), (f"{tar}: 000000006", "texts without a picture")]
    for reading in data.train_dataloader():
        assert len(reading.index) == 4


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", os.urandom(5000), b"\0" * 5000])
def test_what_is_no_tar_at_all(root, tokenizer, content):
    (root / "train-0002.tar").write_bytes(content)
    data = make(root, tokenizer, max_bad_fraction=0.9)
    assert data.index("train").counts["samples"] == 9
    assert len(bad(data)) == 1


def test_zeros_in_place_of_a_header_and_one_tar_behind_another(tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples(0, 1, 2))
    content = bytearray(tar.read_bytes())
    start = content.index(b"000000001.png")
    tar.write_bytes(content + write_tar(tmp_path / "b.tar", samples(3)).read_bytes())
    assert (len(index_of(tar)), index_of(tar).damages) == (4, [])
    content[start : start + 512] = bytes(512)
    tar.write_bytes(content)
    index = index_of(tar)
    assert [index.name(i) for i in range(len(index))] == ["000000000.png", "000000002.png"]
    assert [damage.reason for damage in index.damages] == ["damaged header", "texts without a picture"]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../../0.png", png(0)), "its name leads outside"),
        (("/etc/0.png", png(0)), "its name leads outside"),
        (("a\\..\\0.png", png(0)), "its name leads outside"),
        (link("1.png", "/etc/passwd"), "not a file but a link or a device"),
        (link("1.png", "0.png", tarfile.LNKTYPE), "not a file but a link or a device"),
        (link("1.png", "", tarfile.FIFOTYPE), "not a file but a link or a device"),
        (("000000009.jpg", png(0)), "a second picture of key 000000009"),
        (("000000009.txt", b"blue"), "its name stands twice"),
    ],
)
def test_members_that_are_refused(root, tokenizer, member, reason):
    write_tar(root / "train-0002.tar", [*sample(9), member, *sample(10)])
    data = make(root, tokenizer, max_bad_fraction=0.5)
    assert data.index("train").counts["samples"] == 11
    name = member.name if isinstance(member, tarfile.TarInfo) else member[0]
    assert bad(data) == [(f"{root / 'train-0002.tar'}: {name}", reason)]
    assert [text for _, _, text in data.captions("train")][9:] == ["red 9", "red 10"]


def test_members_that_are_too_large(root, tokenizer, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_PICTURE_BYTES", len(png(0)) + 50)
    write_tar(root / "train-0002.tar", [("a.png", png(0) + b"x" * 51), ("a.txt", b"red"), *sample(10)])
    data = make(root, tokenizer, max_bad_fraction=0.5)
    reasons = [reason.partition(": ")[2] or reason for _, reason in bad(data)]
    assert reasons == [f"more than {len(png(0)) + 50}", "texts without a picture"]


def test_a_decompression_bomb_is_a_damaged_sample(root, tokenizer, tmp_path):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")  # 400 million pixels in some 50 kB
    assert len(file.getvalue()) < 100_000
    write_tar(root / "train-0002.tar", [("b.png", file.getvalue()), ("b.txt", b"red"), *sample(10)])
    data = make(root, tokenizer, max_bad_fraction=0.1, batch_size=11, bad_samples_dir=tmp_path / "run")
    (batch,) = data.train_dataloader()
    assert len(batch.index) == 11 and 9 not in batch.index.tolist()
    (line,) = (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == f"{root / 'train-0002.tar'}: b.png" and "pixels" in line


def test_pictures_that_cannot_be_decoded_are_counted(root, tokenizer):
    write_tar(root / "train-0002.tar", [("9.png", png(9)[:100]), ("9.txt", b"red"), ("8.png", b""), ("8.txt", b"red")])
    data = make(root, tokenizer, max_bad_fraction=0.5, batch_size=11)
    (batch,) = data.train_dataloader()
    assert len(batch.index) == 11 and data.bad_count == 2


def test_a_tar_that_is_cut_off_while_it_is_read(root, tokenizer):
    data = make(root, tokenizer, max_bad_fraction=0.5, batch_size=11)
    loader = data.train_dataloader()
    os.truncate(root / "train-0002.tar", 600)
    (batch,) = loader
    assert len(batch.index) == 11 and data.bad_count == 2


def test_captions_that_are_missing_are_counted(root, tokenizer):
    write_tar(root / "train-0002.tar", [("a.png", png(0)), *sample(10)])
    data = make(root, tokenizer, max_bad_fraction=0.5)
    assert bad(data) == [(f"{root / 'train-0002.tar'}: a.png", "no caption")]
    with pytest.raises(UserError, match=r"1 of 11 samples of split 'train' are damaged"):
        make(root, tokenizer).validate()
