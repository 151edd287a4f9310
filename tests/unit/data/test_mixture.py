"""Several sources in one training split."""

import logging
import pickle
from collections import Counter
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from crossvit.config import compose
from crossvit.data.coco import COCODataModule
from crossvit.data.imagenet import ImageNetDataModule
from crossvit.data.mixture import MixtureDataModule
from crossvit.data.nlvr2 import NLVR2DataModule
from crossvit.data.sampler import MixtureSampler, SampleKey
from crossvit.data.shards.pack import packing
from crossvit.data.vsr import VSRDataModule
from crossvit.errors import UserError
from crossvit.stages.build import make as instantiate


def keys(sizes, shares, epoch=0, **options):
    sampler = MixtureSampler(sizes, shares, 4, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


class TestOrder:
    SIZES, SHARES = (10, 3), (8, 8)

    def test_every_sample_once_before_any_again(self):
        seen = [key for epoch in range(5) for key in keys(self.SIZES, self.SHARES, epoch)]
        first, second = ([key for key in seen if (key.index >= 10) == own] for own in (False, True))
        assert len(first) == len(second) == 40
        assert Counter(key.index for key in first) == dict.fromkeys(range(10), 4)  # 40 rows of ten samples
        assert {(key.epoch, key.index) for key in first} == {(turn, i) for turn in range(4) for i in range(10)}
        assert max(Counter(second).values()) == 1  # a sample comes under another number each time
        assert {key.epoch for key in keys(self.SIZES, self.SHARES, 0) if key.index >= 10} == {0, 1, 2}

    def test_passes_differ_from_each_other_and_between_sources_and_seeds(self):
        def order(seed, source, turn):
            rows = MixtureSampler((50, 50), (50, 50), 4, seed=seed)
            rows.set_epoch(turn)
            return rows._rows(source)[:, 1].tolist()

        found = [order(seed, source, turn) for seed in (0, 1) for source in (0, 1) for turn in (0, 1)]
        assert len(set(map(tuple, found))) == 8 and all(sorted(rows) == list(range(50)) for rows in found)

    @pytest.mark.parametrize("world", [2, 4])
    def test_ranks_share_one_order(self, world):
        alone = keys(self.SIZES, self.SHARES, 3, seed=5)
        dealt = [keys(self.SIZES, self.SHARES, 3, seed=5, rank=rank, world_size=world) for rank in range(world)]
        assert [key for row in zip(*dealt, strict=True) for key in row] == alone

    def test_resume_in_mid_epoch(self):
        sampler = MixtureSampler(self.SIZES, self.SHARES, 4)
        sampler.seek(2, 3)
        assert list(sampler) == keys(self.SIZES, self.SHARES, 2)[12:]
        assert len(sampler) == 16
        changed = MixtureSampler(self.SIZES, (9, 7), 4)
        assert sampler.state_dict() != changed.state_dict()


@pytest.fixture
def vsr_root(tmp_path, coco_root, write_jsonl):
    """12 statements about 4 pictures that are COCO's and 2 of its own."""
    records = [{"image": f"{100 + i % 6:012d}.jpg", "caption": f"red circle {i}", "label": i % 2} for i in range(12)]
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"vsr/{split}.jsonl", records)
    (tmp_path / "vsr/images").mkdir()
    for i in (4, 5):
        (coco_root / f"train2017/{100 + i:012d}.jpg").rename(tmp_path / f"vsr/images/{100 + i:012d}.jpg")
    return tmp_path / "vsr"


@pytest.fixture
def sources(coco_root, vsr_root):
    roots = [coco_root / "train2017", vsr_root / "images"]
    coco = partial(COCODataModule, root=coco_root, negatives=2, max_bad_fraction=0.3)
    vsr = partial(VSRDataModule, root=vsr_root, image_roots=roots, flip=False, val_split="dev", test_split="dev")
    return {"coco": {"data": coco, "weight": None}, "vsr": {"data": vsr, "weight": None}, "gone": None}


def make(sources, tokenizer, **options):
    settings = {
        "image_size": 12,
        "batch_size": 4,
        "max_bad_fraction": 0.3,
        "eval_source": "vsr",
        "val_split": "dev",
    } | options
    return MixtureDataModule(sources=sources, tokenizer=tokenizer, test_split="dev", **settings)


def test_a_mixture_is_packed_source_by_source(sources, tokenizer):
    with pytest.raises(UserError, match="MixtureDataModule holds no files of its own: pack each of its sources"):
        packing(make(sources, tokenizer), "train")


def test_captions_and_statements_in_one_batch(sources, tokenizer):
    data = make(sources, tokenizer, batch_size=22)
    data.validate()
    assert data.index("train").counts == {"samples": 22, "coco samples": 10, "vsr samples": 12}
    assert data.num_negatives == 2  # what terms may count on
    assert data.bad_count == 2  # COCO's pictures that lie elsewhere
    (batch,) = data.train_dataloader()
    captions, statements = batch.index < 10, batch.index >= 10
    assert batch.image.shape == (22, 3, 12, 12) and batch.tokens.shape == batch.token_mask.shape
    assert batch.label[captions].all() and batch.label[statements].tolist() == (batch.index[statements] % 2).tolist()
    assert batch.negatives.shape[:2] == (22, 2) and not batch.negatives_mask[statements].any()
    assert batch.negatives_mask[captions].any(dim=(1, 2)).float().mean() > 0.7  # the last caption has none
    assert batch.token_mask.any(1).all() and (batch.tokens[~batch.token_mask] == tokenizer.pad_id).all()


def test_one_photograph_has_one_id_and_others_have_not(sources, tokenizer):
    dataset = make(sources, tokenizer)._train_dataset("train")
    coco, vsr = (part.image_ids for part in dataset.parts)
    assert len(set(coco.tolist())) == 10
    assert vsr[:4].tolist() == coco[:4].tolist()  # the same files
    assert not set(vsr[4:6].tolist()) & set(coco.tolist()) and vsr[:6].tolist() == vsr[6:].tolist()


def test_a_sample_that_comes_twice_is_augmented_in_two_ways(sources, tokenizer):
    dataset = make(sources, tokenizer, train_scale=(0.3, 1.0))._train_dataset("train")
    dataset.parts[0].transform = make(sources, tokenizer)._train_transform
    first, again, second = (dataset[SampleKey(turn, 1)].batch for turn in (0, 0, 1))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, second.image)


@pytest.mark.parametrize(
    ("weights", "samples", "shares"), [((3, 1), None, [17, 5]), ((1, 1), 100, [50, 50]), ((0, 2), 12, [0, 12])]
)
def test_weights(sources, tokenizer, caplog, weights, samples, shares):
    for name, weight in zip(("coco", "vsr"), weights, strict=True):
        sources[name]["weight"] = weight
    data = make(sources, tokenizer, samples=samples)
    with caplog.at_level(logging.INFO, "crossvit.data.mixture"):
        data.validate()
    assert data.shares() == shares and f"coco: {shares[0]} of 10 samples" in caplog.text
    index = torch.cat([batch.index for batch in data.train_dataloader()])
    left_out = sum(shares) % 4
    assert abs(int((index < 10).sum()) - shares[0]) <= left_out and len(index) == sum(shares) - left_out


def test_evaluation_is_that_of_one_source(sources, tokenizer):
    data = make(sources, tokenizer)
    assert torch.cat([batch.label for batch in data.val_dataloader()]).tolist() == [0, 1] * 6
    images, texts = make(sources, tokenizer, eval_source="coco", val_split="val").val_dataloader()
    assert sum(len(batch.label) for batch in images) == 4 and sum(len(batch.index) for batch in texts) == 8


def test_settings_that_are_shared(sources, tokenizer, caplog):
    sources["coco"]["data"].keywords["batch_size"] = 7
    data = make(sources, tokenizer, seed=3)
    assert "data.sources.coco.data.batch_size=7 has no effect: data.batch_size=4 holds for all sources" in caplog.text
    assert [source.data.seed for source in data.sources] == [3, 3]


def test_what_does_not_mix(sources, tokenizer, tmp_path, picture, write_jsonl, imagenet_root):
    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            make(sources | options.pop("more", {}), tokenizer, **options).validate()

    refused(r"data\.eval_source=gone is not one of the sources: coco, vsr", eval_source="gone")
    refused(r"data\.samples=0", samples=0)
    refused(r"data\.shuffled=0\.5: give it to a source", shuffled=0.5)
    sources["coco"]["weight"] = -1
    refused(r"data\.sources\.coco\.weight=-1 must not be negative")
    sources["coco"]["weight"] = 1e-9
    refused(r"coco\.weight=1e-09 leaves it no sample")
    sources["coco"]["weight"] = sources["vsr"]["weight"] = 0
    refused(r"every weight is 0")
    sources["coco"]["weight"] = sources["vsr"]["weight"] = None
    for k in (0, 1):
        picture(tmp_path / f"nlvr2/images/train/0/train-1-0-img{k}.png", k)
    row = {"sentence": "red", "label": "True", "identifier": "train-1-0-0", "directory": 0}
    write_jsonl(tmp_path / "nlvr2/data/train.json", [row])
    nlvr2 = {"data": partial(NLVR2DataModule, root=tmp_path / "nlvr2"), "weight": None}
    refused(r"do not mix with those of two", more={"nlvr2": nlvr2})
    refused(
        r"data\.sources\.imagenet: ImageNetDataModule holds no texts",
        more={"imagenet": {"data": partial(ImageNetDataModule, root=imagenet_root)}},
    )


def test_manifest_changes_with_every_source(sources, tokenizer, vsr_root):
    before = make(sources, tokenizer).manifest()
    assert before["dataset"] == "MixtureDataModule" and before == make(sources, tokenizer).manifest()
    (vsr_root / "train.jsonl").write_text((vsr_root / "train.jsonl").read_text().replace("circle 3", "square 3"))
    assert make(sources, tokenizer).manifest()["sha256"] != before["sha256"]


class Recorder(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.index.tolist(), round(batch.image.sum().item(), 2)))
        return self.layer(batch.image.mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(sources, tokenizer, tmp_path):
    def fit(resume=None, workers=0):
        task = Recorder()
        keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=[keep], default_root_dir=tmp_path, **quiet
        )
        data = make(sources, tokenizer, train_scale=(0.3, 1.0), num_workers=workers, val_split=None)
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        return task.seen

    whole = fit()
    assert len(whole) == 15 and whole[0][1] != whole[5][1]
    assert fit(str(tmp_path / "step=7.ckpt"), workers=1) == whole[7:]


def test_every_source_knows_the_rank(sources, tokenizer):
    data = make(sources, tokenizer)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, default_root_dir=".")
    assert [source.data._rank_and_world_size() for source in data.sources] == [(1, 2)] * 2


def test_dataset_passes_through_a_pickle(sources, tokenizer):
    dataset = make(sources, tokenizer)._train_dataset("train")
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[SampleKey(0, 15)].batch.image, again[SampleKey(0, 15)].batch.image)


def test_the_config_makes_one(coco_root, tokenizer, tmp_path):
    (coco_root / "train.csv").write_text(
        "image,caption\n" + "".join(f"train2017/{100 + i:012d}.jpg,blue {i}\n" for i in range(10))
    )
    words = [
        "data=mixture",
        f"paths.coco={coco_root}",
        f"paths.own={coco_root}",
        "data.sources.own.weight=1",
        "data.sources.coco.weight=3",
    ]
    cfg = compose(["stage=coco", *words, "data.batch_size=5", "data.num_workers=0", "model=tiny"], "train")
    data = instantiate(cfg.data, tokenizer=tokenizer)
    data.validate()
    assert data.shares() == [15, 5] and data.image_size == data.sources[0].data.image_size == 32
    ids = [part.image_ids.tolist() for part in data._train_dataset("train").parts]
    assert ids[0] == ids[1]
