"""Datasets of the Hugging Face library on disk, in the schema that save_to_disk writes."""

import builtins
import json
import pickle

import pytest
import torch

from crossvit.data.saved_dataset import SavedDatasetDataModule
from crossvit.errors import UserError

pa = pytest.importorskip("pyarrow")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def save(folder, images, captions, name="caption", files=1):
    """What Dataset.save_to_disk leaves: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True)
    schema = pa.schema(
        [("image", IMAGE), (name, pa.list_(pa.string()) if isinstance(captions[0], list) else pa.string())]
    )
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for i, file in enumerate(names):
        rows = slice(i * len(images) // files, (i + 1) * len(images) // files)
        table = pa.table({"image": images[rows], name: captions[rows]}, schema=schema)
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table, max_chunksize=2)
    state = {
        "_data_files": [{"filename": file} for file in names],
        "_fingerprint": "0123456789abcdef",
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


@pytest.fixture
def root(tmp_path, picture):
    """Split train in two files: 7 rows, the last with a path in place of bytes; validation: 2 rows with lists of captions."""
    paths = [picture(tmp_path / f"pictures/{i}.png", i) for i in range(9)]
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    rows[6] = {"bytes": None, "path": str(paths[6])}
    root = tmp_path / "saved"
    save(root / "train", rows[:7], [f"red {i}" for i in range(7)], files=2)
    save(root / "validation", rows[7:], [["red 7", "blue 7"], ["red 8"]])
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return root


def make(root, tokenizer, **options):
    options = {"max_bad_fraction": 0.0, "val_split": "validation", "test_split": "validation"} | options
    return SavedDatasetDataModule(root=root, image_size=12, batch_size=2, tokenizer=tokenizer, **options)


def test_rows_are_pictures_with_captions(root, tokenizer, tmp_path):
    data = make(root, tokenizer)
    data.validate()
    assert data.index("train").counts == {"samples": 7, "captions": 7}
    assert data.index("validation").counts == {"samples": 2, "captions": 3}
    pictures = data.index("train").pictures
    from crossvit.data.reading.decoding import decode_image

    for i in range(7):
        assert torch.equal(pictures.read(i), decode_image(tmp_path / f"pictures/{i}.png"))
    assert pictures.sizes().tolist() == [(tmp_path / f"pictures/{i}.png").stat().st_size for i in range(7)]
    again = pickle.loads(pickle.dumps(pictures))
    assert torch.equal(again.read(5), pictures.read(5)) and len(pickle.dumps(pictures)) < 2000


@pytest.mark.parametrize("workers", [0, 1])
def test_training_batches(root, tokenizer, workers):
    seen = [i for batch in make(root, tokenizer, num_workers=workers).train_dataloader() for i in batch.index.tolist()]
    assert len(set(seen)) == len(seen) == 6


def test_cache_gives_the_same(root, tokenizer):
    plain, cached = (make(root, tokenizer, cache=cache).image_loader("train") for cache in (False, True))
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, cached, strict=True))


def test_one_dataset_without_splits(root, tokenizer):
    data = make(root / "train", tokenizer, held_out=0.4, val_split="held_out", test_split=None)
    data.validate()
    train, held = (set(data.index(split).pictures.names) for split in ("train", "held_out"))
    assert train and held and not train & held and len(train | held) == 7
    assert [text for _, _, text in data.captions("held_out")] == [
        name.replace("row", "red") for name in data.index("held_out").pictures.names
    ]
    with pytest.raises(UserError, match=r"is one dataset without splits: set data\.held_out"):
        make(root / "train", tokenizer).validate()


def test_what_cannot_be_used(root, tokenizer, tmp_path, picture):
    good = {"bytes": picture(tmp_path / "a.png").read_bytes(), "path": None}
    empty, damaged = {"bytes": None, "path": None}, {"bytes": b"no picture", "path": None}
    save(tmp_path / "odd", [good, empty, damaged, good], ["red", "blue", "red", " "])
    options = {"val_split": None, "test_split": None, "max_bad_fraction": 1.0, "bad_samples_dir": tmp_path}
    data = make(tmp_path / "odd", tokenizer, **options)
    data.validate()
    assert [batch.index.tolist() for batch in data.image_loader("train")] == [[0]]
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert [(line["path"][-5:], line["reason"]) for line in lines] == [
        ("row 3", "no text 'caption'"),
        ("row 1", "no picture in this row"),
        ("row 2", "not a picture, or a damaged header"),
    ]


def test_wrong_columns_splits_and_files(root, tokenizer):
    with pytest.raises(UserError, match=r"no column 'text' \(it has image, caption\): set data\.caption_column"):
        make(root, tokenizer, caption_column="text").validate()
    with pytest.raises(UserError, match=r"column 'caption' is string, not of type Image"):
        make(root, tokenizer, image_column="caption").validate()
    with pytest.raises(UserError, match=r"no split 'val' was saved \(its splits: train, validation\)"):
        make(root, tokenizer, val_split="val").validate()
    (root / "validation/data-00000-of-00001.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow: not an Arrow stream"):
        make(root, tokenizer).validate()
    (root / "dataset_dict.json").unlink()
    with pytest.raises(UserError, match=r"dataset_dict\.json is not there(.|\n)*save_to_disk"):
        make(root, tokenizer).validate()


def test_without_pyarrow(root, tokenizer, monkeypatch):
    plain = builtins.__import__

    def absent(name, *rest):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"read with pyarrow: pip install 'crossvit\[arrow\]'"):
        make(root, tokenizer).validate()
