import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from crossvit.data.batches import ImageBatch, PairBatch, TextBatch
from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.errors import UserError


def make(root, **options):
    settings = {"image_size": 8, "batch_size": 4, "max_bad_fraction": 0.5} | options
    return ImageNetDataModule(root=root, **settings)


def as_rank(data, rank, world_size, directory="."):
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        default_root_dir=str(directory),
        fit_loop=lightning.Trainer(logger=False, enable_checkpointing=False).fit_loop,
    )
    return data


def contents(loader):
    return [(batch.index.tolist(), batch.image.sum().item()) for batch in loader]


# order --------------------------------------------------------------------------------------------------------------


def test_workers_change_no_batch(imagenet_root):
    alone, helped = (make(imagenet_root, num_workers=n).train_dataloader() for n in (0, 2))
    for epoch in (0, 1, 1):
        for loader in (alone, helped):
            loader.sampler.set_epoch(epoch)
        first, second = list(alone), list(helped)
        assert len(first) == len(second) == 5
        for a, b in zip(first, second, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_devices_change_no_batch(imagenet_root, world_size):
    alone = list(make(imagenet_root, batch_size=6).train_dataloader())
    ranks = [
        list(as_rank(make(imagenet_root, batch_size=6), rank, world_size).train_dataloader())
        for rank in range(world_size)
    ]
    for batch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.index, batch.index[rank::world_size])
            assert torch.equal(part.image, batch.image[rank::world_size])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_over_devices_sees_each_sample_once(imagenet_root, world_size):
    seen = []
    for rank in range(world_size):
        data = as_rank(make(imagenet_root, eval_batch_size=4), rank, world_size)
        seen += [i for batch in data.image_loader("train") for i in batch.index.tolist()]
    assert sorted(seen) == list(range(22))


def test_batch_that_does_not_divide(imagenet_root):
    for check in ("validate", "train_dataloader"):
        with pytest.raises(UserError, match=r"data\.batch_size=4 .* does not divide by 3: try 3"):
            getattr(as_rank(make(imagenet_root), 0, 3), check)()


def test_batch_larger_than_the_data(imagenet_root):
    with pytest.raises(UserError, match=r"data\.batch_size=23 is more than the 22 training samples"):
        make(imagenet_root, batch_size=23).validate()


# resume -------------------------------------------------------------------------------------------------------------


class Recorder(lightning.LightningModule):
    """Writes down what it sees; may fail at a step."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple] = []
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise ZeroDivisionError
        self.seen.append((self.current_epoch, batch_idx, batch.index.tolist(), round(batch.image.sum().item(), 2)))
        return self.layer(batch.image.mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


def fit(root, directory, resume=None, workers=0, fail_at=None, callbacks=(), batch_size=4, make=make, **options):
    model = Recorder(fail_at)
    trainer = lightning.Trainer(
        **{"max_epochs": 3} | options,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        num_sanity_val_steps=0,
        default_root_dir=directory,
        callbacks=list(callbacks),
    )
    data = make(root, num_workers=workers, batch_size=batch_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        except ZeroDivisionError:
            trainer.save_checkpoint(Path(directory) / "failed.ckpt")
    assert not [w for w in caught if "resum" in str(w.message)]
    return model.seen


def keep_all(directory, **options):
    return ModelCheckpoint(
        dirpath=directory, save_top_k=-1, filename="{step}", auto_insert_metric_name=False, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "when",
    [
        {"every_n_train_steps": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    ],
    ids=["every step", "after training", "after validation"],
)
def test_resume_sees_what_the_uninterrupted_run_sees(imagenet_root, tmp_path, when, workers):
    checkpoints = tmp_path / "checkpoints"
    whole = fit(imagenet_root, tmp_path, callbacks=[keep_all(checkpoints, **when)])
    assert len(whole) == 15
    files = sorted(checkpoints.glob("*.ckpt"), key=lambda file: int(file.stem))
    chosen = [files[i] for i in (1, 4, 7)] if len(files) > 3 else files[:2]  # in mid-epoch, at its end, in the next
    for file in chosen:
        assert fit(imagenet_root, tmp_path, resume=str(file), workers=workers) == whole[int(file.stem) :]


def test_resume_after_a_validation_in_mid_epoch(imagenet_root, tmp_path):
    when = {"every_n_epochs": 1, "save_on_train_epoch_end": False}
    whole = fit(imagenet_root, tmp_path, callbacks=[keep_all(tmp_path / "c", **when)], val_check_interval=2)
    for step in (2, 7):
        resumed = fit(imagenet_root, tmp_path, resume=str(tmp_path / f"c/{step}.ckpt"), val_check_interval=2)
        assert resumed == whole[step:]


@pytest.mark.parametrize("step", [3, 4, 5])
def test_resume_after_a_failure_repeats_the_step_that_failed(imagenet_root, tmp_path, step):
    whole = fit(imagenet_root, tmp_path)
    before = fit(imagenet_root, tmp_path, fail_at=step)
    assert before + fit(imagenet_root, tmp_path, resume=str(tmp_path / "failed.ckpt")) == whole


def test_resume_with_a_limit_on_batches(imagenet_root, tmp_path):
    limit = {"limit_train_batches": 3}
    whole = fit(imagenet_root, tmp_path, callbacks=[keep_all(tmp_path / "c", every_n_train_steps=1)], **limit)
    for step in (2, 3, 4):
        assert fit(imagenet_root, tmp_path, resume=str(tmp_path / f"c/{step}.ckpt"), **limit) == whole[step:]


def test_resume_in_mid_epoch_with_another_order(imagenet_root, tmp_path):
    fit(imagenet_root, tmp_path, callbacks=[keep_all(tmp_path / "c", every_n_train_steps=1)], max_epochs=1)
    with pytest.raises(UserError, match="batch_size was 4, is 2"):
        fit(imagenet_root, tmp_path, resume=str(tmp_path / "c/2.ckpt"), batch_size=2)
    assert fit(imagenet_root, tmp_path, resume=str(tmp_path / "c/5.ckpt"), batch_size=2, max_epochs=2)


def test_reloading_loaders_each_epoch_changes_nothing(imagenet_root, tmp_path):
    whole = fit(imagenet_root, tmp_path)
    assert fit(imagenet_root, tmp_path, reload_dataloaders_every_n_epochs=1) == whole


def test_overfitting_repeats_the_same_batches(imagenet_root, tmp_path):
    seen = fit(imagenet_root, tmp_path, overfit_batches=2)
    assert [row[2] for row in seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3


# damage -------------------------------------------------------------------------------------------------------------


def damage(root, *names):
    for name in names:
        (root / name).write_bytes(b"")


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_named_and_the_batch_stays_whole(imagenet_root, tmp_path, workers):
    damage(imagenet_root, "train/n001/n001_3.JPEG", "val/n002/n002_0.JPEG")
    data = make(imagenet_root, num_workers=workers, batch_size=22, bad_samples_dir=tmp_path / "run")
    for _ in range(2):
        (batch,) = data.train_dataloader()
        assert len(batch.index) == 22
    (batch,) = data.val_dataloader()
    assert batch.index.tolist() == [0, 1, 2, 4, 5]
    lines = [json.loads(line) for line in (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()]
    assert lines == [
        {"split": split, "path": str(imagenet_root / name), "reason": "zero bytes"}
        for split, name in (("train", "train/n001/n001_3.JPEG"), ("val", "val/n002/n002_0.JPEG"))
    ]
    assert data.bad_count == 2


def test_the_default_place_is_the_trainers(imagenet_root, tmp_path):
    damage(imagenet_root, "train/n001/n001_3.JPEG")
    data = as_rank(make(imagenet_root, batch_size=22), 0, 1, tmp_path / "trainer")
    list(data.train_dataloader())
    assert (tmp_path / "trainer/bad_samples.jsonl").is_file()


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_samples_stop_the_run(imagenet_root, workers):
    damage(imagenet_root, *(f"train/n001/n001_{i}.JPEG" for i in range(4)))
    with pytest.raises(UserError, match=r"of 22 samples of split 'train' .*data\.max_bad_fraction=0\.1"):
        list(make(imagenet_root, num_workers=workers, max_bad_fraction=0.1, batch_size=22).train_dataloader())


def test_an_evaluation_batch_without_a_readable_sample_is_left_out(imagenet_root):
    damage(imagenet_root, "val/n001/n001_0.JPEG", "val/n001/n001_1.JPEG")
    data = make(imagenet_root, eval_batch_size=2)
    assert [batch.index.tolist() for batch in data.val_dataloader()] == [[2, 3], [4, 5]]


def test_no_readable_training_sample(imagenet_root):
    damage(imagenet_root, *(path.relative_to(imagenet_root) for path in (imagenet_root / "train").rglob("*.JPEG")))
    with pytest.raises(UserError, match="no readable sample was found for a whole batch"):
        list(make(imagenet_root, max_bad_fraction=1.0).train_dataloader())


def test_missing_pictures_are_found_before_anything_starts(coco_root, tokenizer):
    for i in range(101, 104):
        (coco_root / f"train2017/{i:012d}.jpg").unlink()
    data = COCODataModule(root=coco_root, image_size=8, batch_size=2, tokenizer=tokenizer, max_bad_fraction=0.2)
    with pytest.raises(UserError, match=r"3 of 10 samples of split 'train'.*missing file"):
        data.validate()


# the rest -----------------------------------------------------------------------------------------------------------


def test_wrong_and_empty_roots_show_the_expected_tree(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError) as caught:
            make(root).validate()
        message = str(caught.value)
        assert str(root) in message and "<root>/train/<class>/*.JPEG" in message


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"eval_batch_size": 0}, "eval_batch_size"),
        ({"image_size": 0}, "image_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"fit": "stretch"}, "fit"),
        ({"train_scale": (0.0, 1.0)}, "scale"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"max_bad_fraction": 2}, "max_bad_fraction"),
    ],
)
def test_values_out_of_range(imagenet_root, option, name):
    with pytest.raises(UserError, match=f"data.*{name}"):
        make(imagenet_root, **option)


def test_missing_split_name(imagenet_root):
    data = make(imagenet_root, train_split=None, val_split=None, test_split=None)
    data.validate()
    assert data.val_dataloader() == []
    for call, key in ((data.train_dataloader, "train_split"), (data.test_dataloader, "test_split")):
        with pytest.raises(UserError, match=rf"data\.{key} is null"):
            call()


def test_manifest_follows_the_content_and_not_the_place(imagenet_root, tmp_path, picture):
    def manifest(root=imagenet_root):
        return make(root).manifest()

    first = manifest()
    assert first["dataset"] == "ImageNetDataModule"
    assert first["splits"] == {"train": {"samples": 22, "classes": 2}, "val": {"samples": 6, "classes": 2}}
    assert first == manifest() and json.loads(json.dumps(first)) == first
    moved = imagenet_root.rename(tmp_path / "elsewhere")
    assert manifest(moved) == first
    picture(moved / "train/n001/n001_0.JPEG", size=(13, 12))
    changed = manifest(moved)
    assert changed["splits"] == first["splits"] and changed["sha256"] != first["sha256"]
    (moved / "LOC_synset_mapping.txt").write_text("n001 carp\n")
    assert manifest(moved)["sha256"] != changed["sha256"]
    picture(moved / "train/n001/new.JPEG")
    assert manifest(moved)["splits"]["train"]["samples"] == 23


def test_pictures_are_normalised_after_the_transfer(imagenet_root, coco_root, tokenizer):
    data = make(imagenet_root)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, ImageBatch) and batch.image.dtype == torch.uint8
    moved = data.on_after_batch_transfer(batch, 0)
    assert isinstance(moved, ImageBatch) and torch.equal(moved.image, data.normalize(batch.image))
    pairs = COCODataModule(root=coco_root, image_size=8, batch_size=2, tokenizer=tokenizer)
    batch = next(iter(pairs.train_dataloader()))
    assert isinstance(batch, PairBatch)
    assert pairs.on_after_batch_transfer(batch, 0).image.dtype == torch.float32
    texts = next(iter(pairs.text_loader("val")))
    assert isinstance(texts, TextBatch) and pairs.on_after_batch_transfer(texts, 0) is texts


def test_truncated_texts_are_counted(coco_root, tokenizer):
    tokenizer.context_length = 4
    data = COCODataModule(root=coco_root, image_size=8, batch_size=5, tokenizer=tokenizer, num_workers=1)
    list(data.train_dataloader())
    assert data.truncated_texts == 10


def test_memory_changes_no_batch(imagenet_root):
    assert contents(make(imagenet_root, cache=True).train_dataloader()) == contents(
        make(imagenet_root).train_dataloader()
    )


def test_str_builds_no_loader(tmp_path):
    assert str(make(tmp_path / "x")) == f"ImageNetDataModule(root={tmp_path / 'x'}, splits=['train', 'val'])"
