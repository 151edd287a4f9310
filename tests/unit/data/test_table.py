"""Tables of one's own: csv, tsv, jsonl."""

import csv

import pytest

from crossvit.data.table import CaptionTableDataModule, LabelledTableDataModule
from crossvit.errors import UserError

ROWS = [
    (f"{i % 6}.png", f"red, {i}\nsquare" if i == 3 else f"red {i}", i % 2, "val" if i % 6 == 5 else "train")
    for i in range(12)
]


@pytest.fixture
def root(tmp_path, picture):
    for i in range(6):
        picture(tmp_path / f"own/{i}.png", i)
    return tmp_path / "own"


def write(file, rows, header=("image", "caption", "label", "split"), **options):
    with file.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as lines:
        csv.writer(lines, **options).writerows([header, *rows])


def make(root, tokenizer, kind=CaptionTableDataModule, **options):
    options = {"max_bad_fraction": 0.0} | options
    return kind(root=root, image_size=12, batch_size=2, tokenizer=tokenizer, **options)


def texts(data, split):
    return [text for _, _, text in data.captions(split)]


def test_csv_with_a_column_of_splits(root, tokenizer):
    write(root / "all.csv", ROWS, encoding="utf-8-sig")
    data = make(root, tokenizer, annotations="all.csv", split_column="split")
    data.validate()
    assert data.index("train").counts == {"samples": 5, "captions": 10}
    assert texts(data, "val") == ["red 5", "red 11"]
    assert "red, 3\nsquare" in texts(data, "train")  # a quoted cell with separator and line end
    with pytest.raises(UserError, match=r"no row of split 'test' in column 'split' \(its splits: train, val\)"):
        data.index("test")


def test_tsv_a_split_a_file_other_names(root, tokenizer):
    for split in ("train", "val"):
        rows = [row[:2] for row in ROWS if row[3] == split and "\n" not in row[1]]
        write(root / f"{split}.tsv", rows, ("filepath", "title"), delimiter="\t")
    options = {"annotations": "{split}.tsv", "image_column": "filepath", "caption_column": "title"}
    data = make(root, tokenizer, **options)
    data.validate()
    assert data.index("val").counts == {"samples": 1, "captions": 2}
    with pytest.raises(UserError, match=r"no column 'image' \(it has filepath, title\): set the key"):
        make(root, tokenizer, annotations="{split}.tsv").validate()


def test_jsonl_with_lists_of_captions(root, tokenizer, write_jsonl):
    write_jsonl(root / "train.jsonl", [{"image": f"{i}.png", "caption": [f"a {i}", f"b {i}"]} for i in range(4)])
    write_jsonl(root / "val.jsonl", [{"image": "5.png", "caption": "c"}])
    data = make(root, tokenizer, annotations="{split}.jsonl")
    data.validate()
    assert texts(data, "train")[:3] == ["a 0", "b 0", "a 1"]


def test_labels_make_statements(root, tokenizer):
    write(root / "all.csv", ROWS)
    options = {"annotations": "all.csv", "split_column": "split", "kind": LabelledTableDataModule}
    data = make(root, tokenizer, **options)
    data.validate()
    assert data.index("train").counts == {"samples": 10, "pictures": 5, "label 0": 6, "label 1": 4}
    batch = next(iter(data.pair_loader("val")))
    assert batch.label.tolist() == [1, 1] and batch.image_id.tolist() == [0, 0]
    write(root / "all.csv", [("0.png", "red", "maybe", "train"), ("0.png", "red", "1.0", "train")])
    data = make(root, tokenizer, max_bad_fraction=0.5, **options)
    assert data.index("train").labels.tolist() == [1]
    assert data.index("train").defects[0].reason == "label 'maybe' is not one of 2 relations"


def test_one_file_without_splits(root, tokenizer):
    write(root / "all.csv", ROWS)
    with pytest.raises(UserError, match=r"data\.annotations=all\.csv names no \{split\}.*data\.held_out=0\.1"):
        make(root, tokenizer, annotations="all.csv").validate()
    for kind in (CaptionTableDataModule, LabelledTableDataModule):
        data = make(
            root, tokenizer, kind, annotations="all.csv", held_out=0.3, val_split="held_out", test_split="held_out"
        )
        data.validate()
        train, held = (set(data.index(split).pictures.names) for split in ("train", "held_out"))
        assert train and held and not train & held


def test_one_file_has_one_name(root, tokenizer):
    (root / "train.csv").write_text("image,caption\n0.png,red\n./0.png,blue\nmore/../0.png,green\n1.png,square\n")
    ids = [image_id for _, image_id, _ in make(root, tokenizer).captions("train")]
    assert len(set(ids[:3])) == 1 and ids[3] != ids[0]


def test_rows_that_cannot_be_used(root, tokenizer):
    (root / "train.csv").write_text("image,caption\n0.png,red\n,blue\n1.png\n\n2.png, \n")
    data = make(root, tokenizer, max_bad_fraction=0.8)
    index = data.index("train")
    assert [defect.reason for defect in index.defects] == ["no text 'image'", "no text 'caption'", "no text 'caption'"]
    assert index.defects[1].path.endswith("train.csv, line 4")
    (root / "train.csv").write_bytes(b"image,caption\n0.png,\xff\n")
    with pytest.raises(UserError, match=r"train\.csv: not UTF-8"):
        make(root, tokenizer).index("train")
    (root / "train.csv").write_text(f'image,caption\n0.png,"{"x" * 200_000}\n')
    with pytest.raises(UserError, match=r"train\.csv, line 2: field larger"):
        make(root, tokenizer).index("train")
    (root / "train.csv").write_text('image,caption\n0.png,"to be or not\n1.png,red\n')
    with pytest.raises(
        UserError, match=r"train\.csv, line 3: unexpected end of data\. A cell that begins with a quote"
    ):
        make(root, tokenizer).index("train")
    with pytest.raises(UserError, match=r"train\.xlsx is not there(.|\n)*or \.tsv, \.jsonl"):
        make(root, tokenizer, annotations="{split}.xlsx").validate()
    (root / "train.xlsx").touch()
    with pytest.raises(UserError, match=r"train\.xlsx must end in \.csv, \.tsv, \.jsonl"):
        make(root, tokenizer, annotations="{split}.xlsx").validate()
    write(root / "train.csv", ROWS)
    with pytest.raises(UserError, match=r"data\.images_root: .* is not a folder"):
        make(root, tokenizer, images_root=root / "gone").index("train")
