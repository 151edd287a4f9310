"""Order, resume and damage under two gloo processes, as Lightning starts them."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.shards.captions import ShardsDataModule
from crossvit.data.shards.pack import Pack
from crossvit.data.shards.stream import StreamDataModule


class Writer(lightning.LightningModule):
    """Each rank appends what it sees to a file of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.directory = directory

    def _write(self, kind, batch, batch_idx):
        row = [kind, self.current_epoch, batch_idx, batch.index.tolist(), round(batch.image.sum().item(), 2)]
        with open(self.directory / f"rank{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def training_step(self, batch, batch_idx):
        self._write("train", batch, batch_idx)
        return self.layer(batch.image.mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self._write("val", batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


def pictures(root):
    return ImageNetDataModule(root=root, image_size=8, batch_size=4, eval_batch_size=4, max_bad_fraction=0.2)


def fit(root, directory, devices=2, resume=None, build=pictures):
    """Returns the rows of each rank."""
    directory.mkdir()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        callbacks=[ModelCheckpoint(dirpath=directory, every_n_train_steps=3, save_top_k=-1, filename="{step}")],
    )
    trainer.fit(Writer(directory), datamodule=build(root), ckpt_path=resume, weights_only=True)
    files = [directory / f"rank{rank}.jsonl" for rank in range(devices)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def steps(rows, kind="train"):
    return [row for row in rows if row[0] == kind]


@pytest.mark.slow
def test_two_processes_see_what_one_sees_and_resume(imagenet_root, tmp_path):
    (imagenet_root / "val/n001/n001_1.JPEG").write_bytes(b"")
    (alone,) = fit(imagenet_root, tmp_path / "one", devices=1)
    first, second = fit(imagenet_root, tmp_path / "two")
    for one, a, b in zip(steps(alone), steps(first), steps(second), strict=True):
        assert a[3] == one[3][0::2] and b[3] == one[3][1::2]
        assert a[4] + b[4] == pytest.approx(one[4], abs=0.05)
    seen = [i for rows in (first, second) for row in steps(rows, "val") if row[1] == 0 for i in row[3]]
    assert sorted(seen) == [0, 2, 3, 4, 5]
    assert len((tmp_path / "two/bad_samples.jsonl").read_text().splitlines()) == 1
    checkpoint = str(tmp_path / "two/step=3.ckpt")
    again = fit(imagenet_root, tmp_path / "resumed", resume=checkpoint)
    assert [steps(rows) for rows in again] == [steps(first)[3:], steps(second)[3:]]
    (other,) = fit(imagenet_root, tmp_path / "other", devices=1, resume=checkpoint)
    assert steps(other) == steps(alone)[3:]


@pytest.mark.slow
def test_shards_under_two_processes(coco_root, tokenizer, tmp_path):
    settings = {"image_size": 8, "batch_size": 2, "eval_batch_size": 4, "tokenizer": tokenizer, "val_split": None}

    def shards(root):
        return ShardsDataModule(root=root, shards="{split}-*.tar", num_workers=2, **settings)

    root = tmp_path / "shards"
    Pack(COCODataModule(root=coco_root, test_split=None, **settings), root, ["train"], 4, shuffle=False).run()
    (alone,) = fit(root, tmp_path / "one", devices=1, build=shards)
    first, second = fit(root, tmp_path / "two", build=shards)
    for epoch in (0, 1):
        seen = [i for rows in (first, second) for row in rows if row[1] == epoch for i in row[3]]
        assert sorted(seen) == list(range(10))
    for one, a, b in zip(alone, first, second, strict=True):
        assert a[3] + b[3] == one[3] and a[4] + b[4] == pytest.approx(one[4], abs=0.05)
    for devices, whole in ((2, [first, second]), (1, [alone])):
        again = fit(root, tmp_path / f"again{devices}", devices, str(tmp_path / "two/step=3.ckpt"), shards)
        assert again == [rows[3:] for rows in whole]


@pytest.mark.slow
def test_a_stream_under_two_processes(coco_root, tokenizer, tmp_path):
    settings = {"image_size": 8, "batch_size": 2, "eval_batch_size": 4, "tokenizer": tokenizer, "val_split": None}
    packed, address = tmp_path / "packed", "http://127.0.0.1:{}"
    Pack(COCODataModule(root=coco_root, test_split=None, **settings), packed, ["train"], 2, shuffle=False).run()
    handler = partial(SimpleHTTPRequestHandler, directory=packed)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def stream(root):
            given = {"cache_dir": tmp_path / "cache", "shuffle_buffer": 2, "test_split": None}
            return StreamDataModule(root=address.format(server.server_port), **given, **settings)

        first, second = fit(None, tmp_path / "two", build=stream)
        again = fit(None, tmp_path / "again", 2, str(tmp_path / "two/step=3.ckpt"), stream)
        server.shutdown()
    for epoch in (0, 1):
        seen = [i for rows in (first, second) for row in rows if row[1] == epoch for i in row[3]]
        assert sorted(seen) == list(range(10))
    assert again == [first[3:], second[3:]]
