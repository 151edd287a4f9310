"""Shards from a server on loopback: order and resume, and what it does wrong."""

import json
import multiprocessing
import pickle
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from crossvit.data.mixture import MixtureDataModule
from crossvit.data.reading.annotations import text_id
from crossvit.data.sampler import ShardSampler
from crossvit.data.shards.captions import ShardsDataModule
from crossvit.data.shards.fetching import Cache, Fetcher, FetchError, Remote
from crossvit.data.shards.pack import Pack
from crossvit.data.shards.stream import StreamDataModule
from crossvit.errors import UserError
from tests.unit.data.shards.test_captions import sample, samples, write_tar
from tests.unit.data.test_module import as_rank, fit, keep_all

SIZES = (5, 4, 2, 6, 3, 4)  # 24 training samples


class Server(ThreadingHTTPServer):
    """Serves a folder. `faults`: for each name what its next answers are: 500, 404, "stall", ("cut", bytes) or "good"."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list] = {}
        self.asked: list[str] = []
        self.end = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked.append(name)
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else "good"
        if isinstance(fault, int):
            self.send_error(fault)
            return
        content = (self.server.folder / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "stall":
            self.wfile.write(content[:600])
            self.server.end.wait(30)
            return
        self.wfile.write(content[: fault[1]] if isinstance(fault, tuple) else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, tokenizer):
    """Six training shards and one for validation, with the manifest of `crossvit data pack`."""
    folder, start, written = tmp_path / "tars", 0, {"train": [], "val": []}
    for split, sizes, first in (("train", SIZES, 0), ("val", (4,), 100)):
        start = first
        for number, count in enumerate(sizes):
            name = f"{split}-{number:05d}.tar"
            tar = write_tar(folder / name, samples(*range(start, start + count)))
            written[split].append(entry(tar, count))
            start += count
    (folder / "manifest.json").write_text(json.dumps({"splits": {s: {"shards": rows} for s, rows in written.items()}}))
    server = Server(folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.end.set()
    server.shutdown()
    server.server_close()


def entry(tar, count):
    import hashlib

    content = tar.read_bytes()
    return {"name": tar.name, "samples": count, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def make(server, tokenizer, tmp_path, **options):
    given = {"root": server.address, "cache_dir": tmp_path / "cache", "batch_size": 4, "shuffle_buffer": 3}
    quick = {"timeout": 0.3, "retries": 2, "backoff": 0.01, "max_bad_fraction": 0.0}
    return StreamDataModule(image_size=12, tokenizer=tokenizer, **given | quick | options)


def rows(loader, epoch=0, start=0):
    loader.sampler.seek(epoch, start)
    return [(batch.index.tolist(), batch.text_id.tolist(), int(batch.image.sum())) for batch in loader]


def indices(read):
    return [index for row in read for index in row[0]]


def bad(data):
    return [json.loads(line) for line in (data.bad_samples_dir / "bad_samples.jsonl").read_text().splitlines()]


# order --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_holds_every_sample_once_and_the_second_is_local(server, tokenizer, tmp_path, workers):
    data = make(server, tokenizer, tmp_path, num_workers=workers)
    data.validate()
    loader = data.train_dataloader()
    epochs = [rows(loader, epoch) for epoch in range(3)]
    assert [sorted(indices(read)) for read in epochs] == [list(range(24))] * 3
    assert indices(epochs[0]) != indices(epochs[1])
    for index, text in zip(indices(epochs[2]), [t for row in epochs[2] for t in row[1]], strict=True):
        assert text == text_id(f"red {index}")
    tars = [name for name in server.asked if name.startswith("train")]
    assert sorted(tars) == [f"train-{number:05d}.tar" for number in range(6)]
    again = rows(make(server, tokenizer, tmp_path, num_workers=workers).train_dataloader(), 1)
    assert again == epochs[1] and len(server.asked) == len(tars) + 3  # the manifest twice and the shard of validation


def test_pictures_are_those_of_the_tars(server, tokenizer, tmp_path):
    local = ShardsDataModule(root=server.folder, image_size=12, tokenizer=tokenizer, batch_size=4)
    data = make(server, tokenizer, tmp_path)
    pictures, expected = data.index("train").pictures, local.index("train").pictures
    assert all(torch.equal(pictures.read(i), expected.read(i)) for i in range(24))
    assert data.index("val").counts == local.index("val").counts and data.captions("val") == local.captions("val")
    images, texts = data.eval_loaders("val")
    assert [batch.index.tolist() for batch in (*images, *texts)] == [[0, 1, 2, 3]] * 2
    pairs = [batch.index.tolist() for batch in data.pair_loader("train")]
    assert pairs == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_share_the_samples_and_resume(server, tokenizer, tmp_path, workers):
    def read(rank, start):
        data = make(server, tokenizer, tmp_path, num_workers=workers)
        return rows(as_rank(data, rank, 2).train_dataloader(), 1, start)

    first, second = read(0, 0), read(1, 0)
    assert len(first) == len(second) == 6
    assert sorted(indices(first) + indices(second)) == list(range(24))
    for start in (1, 4):
        assert (read(0, start), read(1, start)) == (first[start:], second[start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_repeats_and_loses_nothing(server, tokenizer, tmp_path, workers):
    def build(root, **options):
        return make(server, tokenizer, tmp_path, val_split=None, test_split=None, **options)

    given = {"batch_size": 5, "make": build, "workers": workers}
    whole = fit(None, tmp_path, callbacks=[keep_all(tmp_path / "c", every_n_train_steps=1)], max_epochs=2, **given)
    for epoch in range(2):
        seen = [index for row in whole if row[0] == epoch for index in row[2]]
        assert len(seen) == len(set(seen)) == 20
    for step in (2, 6):
        assert fit(None, tmp_path, resume=str(tmp_path / f"c/{step}.ckpt"), max_epochs=2, **given) == whole[step:]
    if workers:
        with pytest.raises(UserError, match="devices x workers was 2, is 1"):
            fit(None, tmp_path, resume=str(tmp_path / "c/2.ckpt"), **given | {"workers": 0})


def test_shards_come_one_after_the_other_and_are_mixed_within_the_buffer():
    sizes, starts = [50] * 12, [50 * number for number in range(12)]
    for buffer in (0, 20):
        sampler = ShardSampler(sizes, 20, workers=2, buffer=buffer, seed=3, world_size=2)
        order = sampler._order().reshape(-1, 10, 2)
        hands = sampler.dealt(0)
        assert sorted(shard for hand in hands for shard in hand) == list(range(12))
        for reader, hand in enumerate(hands):
            read = order[reader % 2 :: 2, :, reader // 2].reshape(-1)
            place = {starts[shard] + row: 50 * k for k, shard in enumerate(hand) for row in range(50)}
            off = [i - place[row] for i, row in enumerate(read.tolist()) if row in place]
            assert len(off) >= 140 and min(off) >= -buffer and max(off) < 50 + buffer
            assert (min(off) < 0) == (max(off) >= 50) == (buffer > 0)
    assert (ShardSampler(sizes, 20, workers=2, buffer=20, seed=4)._order() != sampler._order()).any()


@pytest.mark.parametrize(
    ("batch_size", "world_size", "workers"), [(4, 1, 1), (6, 2, 1), (6, 3, 2), (10, 1, 4), (2, 2, 3)]
)
def test_uneven_shards_give_even_ranks_and_every_sample_once(batch_size, world_size, workers):
    sizes = [1, 9, 3, 30, 2, 7, 1]
    orders = []
    for rank in range(world_size):
        sampler = ShardSampler(
            sizes, batch_size, workers=workers, buffer=4, rank=rank, world_size=world_size, seed=batch_size
        )
        orders.append([key.index for key in sampler])
        assert len(orders[-1]) == len(sampler) == 53 // batch_size * (batch_size // world_size)
    seen = [index for order in orders for index in order]
    assert len(set(seen)) == len(seen) == 53 // batch_size * batch_size


def test_too_few_shards(server, tokenizer, tmp_path):
    data = as_rank(make(server, tokenizer, tmp_path, num_workers=4), 0, 2)
    with pytest.raises(UserError, match=r"6 shards are too few for 2 devices x 4 workers = 8: lower data\.num_workers"):
        data.train_dataloader()


# a server that fails ------------------------------------------------------------------------------------------------


def test_what_goes_wrong_once_is_tried_again(server, tokenizer, tmp_path):
    faults = (500, "stall", ("cut", 3000), ("cut", 0), 503, 429)
    server.faults = {f"train-{number:05d}.tar": [fault] for number, fault in enumerate(faults)}
    server.faults["manifest.json"] = [500]
    data = make(server, tokenizer, tmp_path)
    assert sorted(indices(rows(data.train_dataloader()))) == list(range(24))
    assert data.bad_count == 0 and len([name for name in server.asked if name.startswith("train")]) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_for_good_is_counted_and_the_rest_goes_on(server, tokenizer, tmp_path, workers):
    cut = server.folder.joinpath("train-00003.tar").read_bytes().index(b"000010003.png")  # the third of six
    server.faults = {
        "train-00000.tar": [500] * 3,
        "train-00003.tar": [("cut", cut)] * 3,
        "train-00004.tar": ["stall"] * 3,
    }
    data = make(server, tokenizer, tmp_path, num_workers=workers, max_bad_fraction=0.9, bad_samples_dir=tmp_path)
    loader = data.train_dataloader()
    begin = time.monotonic()
    read = indices(rows(loader))
    assert time.monotonic() - begin < 5
    lost = {*range(5), *range(13, 17), *range(17, 20)}
    assert len(read) == 24 and set(read) == set(range(24)) - lost  # others stand in for what is lost
    reasons = {line["path"].removeprefix(f"{server.address}/"): line["reason"] for line in bad(data)}
    expected = {f"train-00000.tar: sample {i}": "the server says 500 Internal Server Error" for i in range(5)}
    expected |= {f"train-00003.tar: sample {i}": f"cut off: {cut:,} of" for i in range(2, 6)}
    expected |= {f"train-00004.tar: sample {i}": "nothing came for 0.3 s" for i in range(3)}
    assert data.bad_count == 12 and reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(reason) for name, reason in expected.items())
    assert sorted(indices(rows(loader, 1))) == list(range(24))  # the next epoch has it all
    assert not [path for path in (tmp_path / "cache").iterdir() if ".part" in path.name and path.suffix != ".lock"]


def test_too_much_that_is_lost_stops_the_run(server, tokenizer, tmp_path):
    server.faults = {"train-00003.tar": [404] * 9}
    with pytest.raises(UserError, match=r"of 24 samples of split 'train' are damaged.*the server says 404"):
        rows(make(server, tokenizer, tmp_path, max_bad_fraction=0.1).train_dataloader())
    assert server.asked.count("train-00003.tar") == 1


def test_nothing_at_all_comes(server, tokenizer, tmp_path):
    server.faults = {f"train-{number:05d}.tar": [500] * 9 for number in range(6)}
    with pytest.raises(UserError, match="no readable sample"):
        rows(make(server, tokenizer, tmp_path, max_bad_fraction=1.0).train_dataloader())


def test_a_tar_that_is_not_that_of_the_manifest(server, tokenizer, tmp_path):
    tar = server.folder / "train-00002.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 255
    tar.write_bytes(content)
    data = make(server, tokenizer, tmp_path, max_bad_fraction=0.5, bad_samples_dir=tmp_path)
    rows(data.train_dataloader())
    assert {line["reason"] for line in bad(data)} == {"its SHA-256 is not that of the manifest"} and data.bad_count == 2


def test_an_evaluation_needs_all_of_its_shards(server, tokenizer, tmp_path):
    server.faults = {"val-00000.tar": [("cut", 3000)] * 3}
    with pytest.raises(UserError, match=r"val-00000\.tar: cut off: .*an evaluation needs all"):
        make(server, tokenizer, tmp_path).validate()


# other ways ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "command"])
def test_pipes_and_commands(server, tokenizer, tmp_path, kind):
    if kind == "pipe":
        given = {"root": "", "shards": f"pipe:cat {server.folder}/{{split}}-0000{{0..5}}.tar | cat"}
    else:
        script = tmp_path / "cp.sh"
        script.write_text(f'cat {server.folder}/"${{1##*/}}"\n')
        given = {
            "root": "s3://bucket/folder",
            "commands": {"s3": f"sh {script} {{url}} -"},
            "shards": "{split}-0000{0..5}.tar",
        }
    options = {
        "samples": 4,
        "val_split": None,
        "test_split": None,
        "max_bad_fraction": 0.5,
        "bad_samples_dir": tmp_path,
    }
    data = make(server, tokenizer, tmp_path, **given, **options)
    rows(data.train_dataloader())
    # four of each: the shards of 5 and 6 have more, those of 2 and 3 less
    assert [line["reason"][-22:] for line in sorted(bad(data), key=lambda line: line["path"])] == [
        "holds 2 samples, not 4",
        "holds 2 samples, not 4",
        "holds 3 samples, not 4",
    ]


def test_the_manifest_of_pack(server, tokenizer, tmp_path):
    local = ShardsDataModule(root=server.folder, image_size=12, tokenizer=tokenizer, batch_size=4)
    Pack(local, tmp_path / "packed", ["train", "val"], 7, False).run()
    server.folder = tmp_path / "packed"
    data = make(server, tokenizer, tmp_path)
    data.validate()
    assert data.index("train").counts == {"samples": 24, "shards": 4}
    assert sorted(indices(rows(data.train_dataloader()))) == list(range(24))


def fetcher(**options):
    return Fetcher(**{"timeout": 0.2, "retries": 1, "backoff": 0.0, "commands": {}} | options)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("sleep 9", "nothing came for 0.2 s"),
        ("echo a; sleep 9 & sleep 9", "nothing came for 0.2 s"),
        ("exec >&-; sleep 9", "nothing came for 0.2 s"),
        ("echo first >&2; echo no such key >&2; exit 3", "the command ends with status 3: no such key"),
        ("nowhere_to_be_found", "the command ends with status 127"),
    ],
)
def test_commands_that_fail(tmp_path, command, reason):
    begin = time.monotonic()
    with pytest.raises(FetchError, match=reason):
        fetcher().fetch(Remote(f"pipe:{command}", 1), tmp_path / "a")
    assert time.monotonic() - begin < 3


def test_the_waits_double(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(FetchError):
        fetcher(retries=3, backoff=0.5).fetch(Remote("pipe:exit 1", 1), tmp_path / "a")
    assert [wait for wait in waits if wait >= 0.5] == [0.5, 1.0, 2.0]  # waiting for a command sleeps as well


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(FetchError, match="refused"):
        fetcher().fetch(Remote("http://127.0.0.1:9/a.tar", 1), tmp_path / "a")


def test_the_cache_is_bounded_and_what_was_used_longest_ago_goes(tmp_path):
    tars = [write_tar(tmp_path / f"{i}.tar", samples(i)) for i in range(3)]
    size = tars[0].stat().st_size
    remotes = [Remote(f"pipe:cat {tar}", 1) for tar in tars]
    cache = Cache(tmp_path / "cache", 2 * size, fetcher())
    first = cache.open(remotes[0])
    cache.open(remotes[1])
    cache.open(remotes[0])
    cache.open(remotes[2])
    assert [cache.path(remote).exists() for remote in remotes] == [True, False, True]
    assert len(list((tmp_path / "cache").glob("*.idx"))) == 2
    cache.open(remotes[1])
    assert not cache.path(remotes[0]).exists() and first.index.name(0) == "000000000.png"
    tars[2].unlink()
    assert cache.open(remotes[2]).index.name(0) == "000000002.png"


def test_what_an_ended_process_left_goes(tmp_path):
    cache, remote = (
        Cache(tmp_path / "cache", 10**9, fetcher()),
        Remote(f"pipe:cat {write_tar(tmp_path / 'a.tar', samples(0))}", 1),
    )
    left = [cache.folder / f"other.tar{suffix}" for suffix in (".part", ".part.try")]
    held = cache.folder / "held.tar.part"
    cache.folder.mkdir()
    for path in (*left, held):
        path.write_bytes(b"x")
    with FileLock(cache.folder / "held.tar.lock"):
        cache.open(remote)
    assert held.exists() and not any(path.exists() for path in left)


def test_a_process_that_is_forked_or_gets_a_copy_begins_anew(server, tokenizer, tmp_path):
    dataset = make(server, tokenizer, tmp_path, num_workers=1).train_dataloader().dataset
    image = dataset.pictures.read(3)
    copy = pickle.loads(pickle.dumps(dataset)).pictures
    assert not copy.here() and torch.equal(copy.read(3), image)
    begun = dataset.pictures.begin(0)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(pool.apply(dataset.pictures.read, (3,)), image)
    dataset.pictures._process = -1  # as in a fork
    assert dataset.pictures.begin(0) is not begun


def test_messages_keep_a_signature_to_themselves(server, tokenizer, tmp_path):
    options = {"shards": "{split}-0000{0..5}.tar?key=secret", "samples": 3, "val_split": None, "test_split": None}
    server.faults = {f"train-{number:05d}.tar?key=secret": [404] * 9 for number in range(6)}
    with pytest.raises(UserError, match=r"train-0000\d\.tar: sample \d: the server says 404") as caught:
        rows(make(server, tokenizer, tmp_path, **options).train_dataloader())
    assert "secret" not in str(caught.value)


def test_a_cache_smaller_than_the_data_repeats_and_loses_nothing(server, tokenizer, tmp_path):
    size = max(path.stat().st_size for path in server.folder.glob("train-*.tar"))
    loader = make(server, tokenizer, tmp_path, cache_gib=4 * size / 2**30, shuffle_buffer=1).train_dataloader()
    for epoch in range(2):
        assert sorted(indices(rows(loader, epoch))) == list(range(24))
    kept = [path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.suffix == ".tar"]
    assert 0 < sum(kept) <= 4 * size and len(server.asked) > 1 + 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "data/shards"}, r"data/shards is no address .*http, https, pipe.*data=shards"),
        ({"root": "s3://a"}, r"s3://a is no address .*data\.commands"),
        ({"train_split": "dev"}, r"manifest\.json names no split 'dev' \(its splits: train, val\)"),
        ({"shards": "train-{0..1}.tar", "samples": 4}, r"names no \{split\}"),
        ({"shards": {"train": "train-{0..1}.tar"}, "samples": 4}, r"names no split 'val'"),
        ({"shards": "{split}-{0..1}.tar"}, r"train-0\.tar is not in .*manifest\.json: set data\.samples"),
        ({"shards": "{split}-{0..1}.tar", "samples": 0}, r"data\.samples=0"),
        ({"samples": 4}, r"data\.samples goes with data\.shards"),
        ({"captions": "every"}, "use data=shards"),
        ({"shuffled": 0.5}, "use data=shards"),
        ({"timeout": 0}, r"data\.timeout=0 must be more"),
        ({"cache_gib": 0}, r"data\.cache_gib=0 must be more"),
        ({"commands": {"s3": "aws s3 cp"}}, r"data\.commands\.s3=aws s3 cp must name \{url\}"),
    ],
)
def test_mistakes(server, tokenizer, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(server, tokenizer, tmp_path, **options).validate()


def test_mistakes_that_show_later(server, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_gib=1e-06 is too small: 1 workers hold up to"):
        make(server, tokenizer, tmp_path, cache_gib=1e-6).train_dataloader()
    with pytest.raises(UserError, match="its texts cannot be listed"):
        make(server, tokenizer, tmp_path).training_texts()
    (server.folder / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"is no manifest of `crossvit data pack`"):
        make(server, tokenizer, tmp_path).validate()
    server.faults["manifest.json"] = [404]
    with pytest.raises(UserError, match=r"the server says 404 .*set data\.shards and data\.samples"):
        make(server, tokenizer, tmp_path).validate()


def test_a_picture_without_a_caption_is_counted(server, tokenizer, tmp_path):
    write_tar(server.folder / "train-00002.tar", [sample(9)[0], *samples(10)])
    options = {"shards": "{split}-0000{0..5}.tar", "samples": 2, "val_split": None, "test_split": None}
    data = make(server, tokenizer, tmp_path, max_bad_fraction=0.5, bad_samples_dir=tmp_path, **options)
    assert len(indices(rows(data.train_dataloader()))) == 12
    assert [(line["path"][-25:], line["reason"]) for line in bad(data)] == [("train-00002.tar: sample 0", "no caption")]


def test_a_mixture_takes_no_stream(server, tokenizer, tmp_path):
    source = {"data": partial(StreamDataModule, root=server.address, cache_dir=tmp_path / "c"), "weight": None}
    given = {"image_size": 12, "batch_size": 4, "tokenizer": tokenizer}
    with pytest.raises(UserError, match="a stream one shard after the other: use data=shards"):
        MixtureDataModule(sources={"web": source}, eval_source="web", **given)
