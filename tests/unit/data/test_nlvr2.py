import pytest
import torch

from crossvit.data.nlvr2 import NLVR2DataModule
from crossvit.errors import UserError


@pytest.fixture
def root(tmp_path, picture, write_jsonl):
    root = tmp_path / "nlvr2"
    for split in ("train", "dev", "test1"):
        records = []
        for i in range(6):
            pair, directory = i // 2, {"directory": i // 2} if split == "train" else {}
            label = "True" if i % 2 else "False"
            records.append({"sentence": f"red {i}", "label": label, "identifier": f"{split}-1-{pair}-{i}"} | directory)
            folder = root / "images" / split / (str(pair) if directory else "")
            for k in (0, 1):
                picture(folder / f"{split}-1-{pair}-img{k}.png", 10 * pair + k)
        write_jsonl(root / f"data/{split}.json", records)
    return root


def make(root, tokenizer, **options):
    splits = {"val_split": "dev", "test_split": "test1"}
    return NLVR2DataModule(root=root, image_size=12, batch_size=3, tokenizer=tokenizer, **splits, **options)


def test_two_pictures_a_sample(root, tokenizer):
    data = make(root, tokenizer, max_bad_fraction=0.0)
    data.validate()
    assert data.index("train").counts == {"samples": 6, "pictures": 6, "label 0": 3, "label 1": 3}
    batch = next(iter(data.pair_loader("train")))
    assert batch.image.shape == (3, 2, 3, 12, 12) and batch.label.tolist() == [0, 1, 0]
    assert batch.image_id.tolist() == [0, 0, 1]
    assert torch.equal(batch.image[0], batch.image[1]) and not torch.equal(batch.image[0, 0], batch.image[0, 1])
    assert torch.equal(batch.image[2, 1], data.index("train").pictures.read(3))
    assert data.normalize(batch.image).shape == (3, 2, 3, 12, 12)
    assert sum(len(b.index) for b in data.train_dataloader()) == 6


def test_official_folder(root, tokenizer):
    (root / "nlvr2").mkdir()
    (root / "data").rename(root / "nlvr2/data")
    make(root, tokenizer).validate()


def test_identifier_of_another_form(root, tokenizer, write_jsonl):
    write_jsonl(root / "data/dev.json", [{"sentence": "red", "label": "True", "identifier": 7}])
    with pytest.raises(UserError, match="identifier 7 is not 'split-set-pair-sentence'"):
        make(root, tokenizer).validate()


def test_missing_parts(root, tokenizer):
    (root / "images/dev").rename(root / "gone")
    with pytest.raises(UserError, match=r"dev is not there(.|\n)*<root>/images/train"):
        make(root, tokenizer).validate()


def test_parts_and_a_split_outside_images(root, tokenizer, write_jsonl):
    records = [{"sentence": f"red {i}", "label": "False", "identifier": f"dev-1-{i}-0"} for i in range(2)]
    for part in ("balanced", "unbalanced"):
        write_jsonl(root / f"data/{part}/{part}_dev.json", records[: 1 + (part == "balanced")])
    data = make(root, tokenizer, max_bad_fraction=0.0)
    assert data.index("balanced_dev").counts["samples"] == 2 and data.index("unbalanced_dev").counts["samples"] == 1
    (root / "images/dev").rename(root / "dev")
    data = make(root, tokenizer, max_bad_fraction=0.0)
    data.check_split("balanced_dev")
    data.validate()
    with pytest.raises(UserError, match=r"balanced_test1\.json is not there"):
        data.index("balanced_test1")


def test_sentences_are_those_of_the_official_script(root, tokenizer, write_jsonl):
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0"]
    write_jsonl(root / "data/dev.json", [{"sentence": "red", "label": "True", "identifier": name} for name in names])
    sentences = make(root, tokenizer).sentences("dev").tolist()  # all four texts are the same
    assert sentences[0] == sentences[1] and len(set(sentences)) == 3


def test_whole_directories_are_held_out(root, tokenizer):
    data = make(root, tokenizer, held_out=0.5)
    train, held = ({name.split("/")[0] for name in data.index(split).pictures.names} for split in ("train", "held_out"))
    assert train and held and not train & held and train | held == {"0", "1", "2"}
    assert data.index("train").counts["samples"] + data.index("held_out").counts["samples"] == 6
