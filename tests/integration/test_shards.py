"""A dataset is packed and trained on, as a user does it."""

import json

import pytest


@pytest.mark.slow
def test_pack_and_train(job, corpus, smoke, tmp_path):
    places = [f"paths.root={tmp_path}", f"paths.data={corpus}"]
    small = ["scenes.sizes=smoke", "scenes.folder=smoke"]
    arguments = ["data", "pack", "data=scenes_coco", f"out={tmp_path}/shards", "samples_per_shard=50", *small, *places]
    done = job(*arguments)
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    counts = {split: written["samples"] for split, written in manifest["splits"].items()}
    assert all(f"{split:24} {count:,} samples" in done.out for split, count in counts.items())
    stage = ["experiment=smoke", "stage=coco", "stage.parent=null", "logger=none", "callbacks=quiet"]
    done = job(
        "train",
        *stage,
        "data=shards",
        f"data.root={tmp_path}/shards",
        "trainer.max_steps=2",
        *places,
        "data.num_workers=0",
    )
    assert done.code == 0, done.err
    assert f"ShardsDataModule train: {counts['train']:,} samples" in done.err
    (record,) = tmp_path.glob("runs/stages/*/provenance.json")
    assert json.loads(record.read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=coco", "data.root=nowhere"], "data.root=nowhere is not a folder"),
        (["data=scenes_nlvr2"], "two pictures a sample"),
        (["samples_per_shard=0"], "samples_per_shard=0"),
        (["splits=[traain]"], "captions_traain2017.json"),
    ],
    ids=["root", "two pictures", "samples", "split"],
)
def test_what_a_user_gets_wrong(job, corpus, smoke, tmp_path, arguments, message):
    small = ["data=scenes_coco", "scenes.sizes=smoke", "scenes.folder=smoke"]
    done = job(
        "data", "pack", *small, *arguments, f"out={tmp_path}/out", f"paths.root={tmp_path}", f"paths.data={corpus}"
    )
    assert done.code == 2 and message in done.err
    assert not (tmp_path / "out").exists()
