"""Pictures that change places."""

import numpy as np
import pytest

from crossvit.data.pairs import exchanged
from crossvit.data.vsr import VSRDataModule
from crossvit.errors import UserError

IDS = np.array([5, 5, 2, 9, 2, 7, 9, 9])


def test_no_share_changes_nothing():
    assert exchanged(IDS, 0, seed=3).tolist() == list(range(8))


def test_all_of_them_and_no_picture_keeps_its_place():
    source = exchanged(IDS, 1, seed=0)
    assert all(IDS[source] != IDS)
    given = dict(zip(IDS.tolist(), IDS[source].tolist(), strict=True))
    assert [given[i] for i in IDS.tolist()] == IDS[source].tolist()  # one picture for all samples of one
    assert set(given.values()) == set(IDS.tolist())


def test_a_share():
    ids = np.arange(1000)
    for share in (0.1, 0.5):
        assert (exchanged(ids, share, seed=0) != ids).sum() == 1000 * share


def test_follows_the_seed_alone():
    ids = np.arange(50)
    assert exchanged(ids, 0.5, 1).tolist() == exchanged(ids, 0.5, 1).tolist() != exchanged(ids, 0.5, 2).tolist()


@pytest.fixture
def vsr(tmp_path, picture, write_jsonl, tokenizer):
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.png", i, size=(8, 8))
    rows = [{"image": f"{i % 6}.png", "caption": f"red circle {i}", "label": i % 2} for i in range(12)]
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)

    def make(shuffled):
        return VSRDataModule(
            root=tmp_path,
            image_size=8,
            batch_size=12,
            tokenizer=tokenizer,
            val_split="dev",
            test_split=None,
            train_scale=(1, 1),
            flip=False,
            shuffled=shuffled,
        )

    return make


def test_captions_and_labels_stay_together_and_only_training_is_touched(vsr):
    plain, shuffled = (_in_order(next(iter(vsr(share).train_dataloader()))) for share in (0.0, 1.0))
    assert (plain.tokens == shuffled.tokens).all()
    assert (plain.label == shuffled.label).all()
    assert (plain.image_id != shuffled.image_id).all()
    for row in range(12):  # the picture is the one that the id says
        (other,) = (plain.image_id[:6] == shuffled.image_id[row]).nonzero()[0]
        assert (shuffled.image[row] == plain.image[other]).all()
    before, after = (next(iter(vsr(share).val_dataloader())) for share in (0.0, 1.0))
    assert (before.image == after.image).all()


def _in_order(batch):
    order = batch.index.argsort()
    return type(batch)(*(None if column is None else column[order] for column in batch))


def test_no_share_at_all(vsr):
    with pytest.raises(UserError, match=r"data.shuffled=1.5"):
        vsr(1.5)
