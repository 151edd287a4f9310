"""Annotations and manifests that a stranger has written: what they name is read as a picture or not at all."""

import json

import pytest

from crossvit.data.coco import COCODataModule
from crossvit.data.shards.stream import StreamDataModule
from crossvit.errors import UserError

SECRET = "root:x:0:0:a line of a file that is none of their business"


@pytest.mark.parametrize("form", ["up", "absolute", "link"])
def test_an_image_outside_of_the_root_that_is_no_picture(coco_root, tokenizer, tmp_path, form):
    """It is counted as damaged; what it holds is shown nowhere."""
    outside = tmp_path / "passwd"
    outside.write_text(SECRET)
    names = {"up": "../../passwd", "absolute": str(outside), "link": "link.jpg"}
    (coco_root / "train2017" / "link.jpg").symlink_to(outside)
    file = coco_root / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = names[form]
    file.write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    data = COCODataModule(
        root=coco_root, image_size=8, batch_size=5, tokenizer=tokenizer, max_bad_fraction=0.5, bad_samples_dir=tmp_path
    )
    data.validate()
    assert sum(len(batch.index) for batch in data.train_dataloader()) in (5, 10)  # replaced, or left out
    lines = (tmp_path / "bad_samples.jsonl").read_text().splitlines()
    assert data.bad_count == len(lines) in (1, 4)  # with the captions of an image that is left out
    assert "business" not in "".join(lines) and any(word in lines[0] for word in ("passwd", "link.jpg", "images[0]"))
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "bad_samples.jsonl"])


@pytest.mark.parametrize(
    "name", ["a.tar; touch owned", "$(touch owned)", "../up.tar", "-o", "a.tar|sh", "pipe:touch owned"]
)
def test_a_manifest_names_files_and_no_commands(tokenizer, tmp_path, name, monkeypatch):
    """Where the folder is a command's output, what the manifest names becomes part of a command."""
    monkeypatch.chdir(tmp_path)
    shard = {"name": name, "samples": 2, "bytes": 10, "sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"train": {"shards": [shard]}}}))
    data = StreamDataModule(
        root=f"pipe:cat {tmp_path}",
        cache_dir=tmp_path / "cache",
        image_size=8,
        batch_size=2,
        tokenizer=tokenizer,
        retries=0,
    )
    with pytest.raises(UserError, match="is no manifest of"):
        data.remotes("train")
    assert not (tmp_path / "owned").exists()
