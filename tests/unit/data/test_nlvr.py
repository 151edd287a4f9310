import pytest

from crossvit.data.nlvr import NLVRDataModule
from crossvit.data.reading.annotations import text_id
from crossvit.errors import UserError


@pytest.fixture
def root(tmp_path, picture, write_jsonl):
    root = tmp_path / "nlvr"
    records = [
        {"sentence": f"red {i}", "label": "true" if i % 2 else "false", "identifier": f"{i}-0", "directory": str(i % 2)}
        for i in range(4)
    ]
    for i, orders in enumerate(((0, 1, 2), (0, 5), (3,), (0, 1))):
        for k in orders:
            picture(root / f"dev/images/{i % 2}/dev-{i}-0-{k}.png", 10 * i + k, size=(40, 10))
    write_jsonl(root / "dev/dev.json", records)
    return root


def make(root, tokenizer, **options):
    options = {"train_split": None, "val_split": None, "test_split": "dev", "fit": "squash"} | options
    return NLVRDataModule(root=root, image_size=8, batch_size=4, tokenizer=tokenizer, **options)


def test_each_picture_of_a_sentence_is_a_sample(root, tokenizer):
    data = make(root, tokenizer)
    data.validate()
    assert data.index("dev").counts == {"samples": 8, "pictures": 8, "label 0": 4, "label 1": 4}
    batches = list(data.test_dataloader())
    assert [b.label.tolist() for b in batches] == [[0, 0, 0, 1], [1, 0, 1, 1]]
    assert batches[0].text_id.tolist() == [text_id("red 0")] * 3 + [text_id("red 1")]
    assert data.index("dev").pictures.names[4] == "1/dev-1-0-5.png"


def test_sentence_without_pictures(root, tokenizer):
    (root / "dev/images/0/dev-2-0-3.png").unlink()
    data = make(root, tokenizer, max_bad_fraction=0.2)
    data.validate()
    assert data.bad_count == 1
    with pytest.raises(UserError, match="line 3: no picture of sentence '2-0'"):
        make(root, tokenizer).validate()


@pytest.mark.parametrize("part", ["dev.json", "images"])
def test_missing_parts(root, tokenizer, part):
    (root / "dev" / part).rename(root / "gone")
    with pytest.raises(UserError, match=rf"{part} is not there(.|\n)*<root>/<split>/images"):
        make(root, tokenizer).validate()


def test_fewer_orders_of_the_boxes(root, tokenizer):
    assert make(root, tokenizer, permutations=1).index("dev").counts["samples"] == 4
    with pytest.raises(UserError, match=r"data\.permutations=7 must be 1 to 6"):
        make(root, tokenizer, permutations=7)


def test_whole_directories_are_held_out(root, tokenizer):
    (root / "dev").rename(root / "train")
    (root / "train/dev.json").rename(root / "train/train.json")
    for path in list(root.rglob("dev-*.png")):
        path.rename(path.with_name(path.name.replace("dev-", "train-")))
    data = make(root, tokenizer, held_out=0.5, train_split="train", val_split="held_out", test_split=None)
    data.validate()
    train, held = ({name.split("/")[0] for name in data.index(split).pictures.names} for split in ("train", "held_out"))
    assert len(train) == len(held) == 1 and train != held
