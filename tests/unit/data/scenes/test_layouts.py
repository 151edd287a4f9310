"""The written files: official schemas, exact balance, truth in words, and what each split may hold."""

import json
import re
from collections import Counter, defaultdict

import pytest
from PIL import Image

from crossvit.data.scenes import VOCABULARY, Scene, oracle, read_manifest
from crossvit.data.scenes.graph import CLASSES, HELD_OUT_PAIRS
from crossvit.data.scenes.presets import PRESETS, SMOKE_SIZES

VSR_SPLITS = ("train", "dev", "test", "test_compositional")
NLVR2_SPLITS = ("train", "dev", "test1")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scenes_of(path):
    return {name: Scene.from_dict(data) for name, data in json.loads(path.read_text()).items()}


@pytest.fixture(params=PRESETS)
def corpus(request, scenes_root):
    return scenes_root / request.param


def nlvr2_scenes(corpus, split):
    """(row, left scene, right scene) of every statement."""
    scenes = scenes_of(corpus / f"nlvr2/data/scenes_{split}.json")
    for row in lines(corpus / f"nlvr2/data/{split}.json"):
        pair = row["identifier"].rpartition("-")[0]
        yield row, scenes[f"{pair}-img0.png"], scenes[f"{pair}-img1.png"]


def keys_by_split(corpus):
    keys = {}
    for split in ("train2017", "val2017"):
        keys[f"coco {split}"] = {s.key for s in scenes_of(corpus / f"coco/annotations/scenes_{split}.json").values()}
    vsr = scenes_of(corpus / "vsr/scenes.json")
    for split in VSR_SPLITS:
        keys[f"vsr {split}"] = {vsr[row["image"]].key for row in lines(corpus / f"vsr/{split}.jsonl")}
    for split in NLVR2_SPLITS:
        keys[f"nlvr2 {split}"] = {s.key for s in scenes_of(corpus / f"nlvr2/data/scenes_{split}.json").values()}
    return keys


def test_imagenet_folders_and_names(corpus):
    mapping = [line.split(" ", 1) for line in (corpus / "imagenet/LOC_synset_mapping.txt").read_text().splitlines()]
    assert [name for _, name in mapping] == [f"{colour} {shape}" for colour, shape in CLASSES]
    ids = [wnid for wnid, _ in mapping]
    assert ids == sorted(ids) and all(re.fullmatch(r"n\d{8}", wnid) for wnid in ids)
    for split, count in (("train", SMOKE_SIZES["imagenet_train"]), ("val", SMOKE_SIZES["imagenet_val"])):
        assert sorted(folder.name for folder in (corpus / "imagenet" / split).iterdir()) == ids
        for wnid in ids:
            assert len(list((corpus / "imagenet" / split / wnid).glob("*.JPEG"))) == count


def test_pictures_are_rgb_of_one_size_in_the_formats_of_their_endings(corpus):
    kinds = {".JPEG": "JPEG", ".jpg": "JPEG", ".png": "PNG"}
    first = [next(corpus.glob(f"{part}/**/*{ending}")) for part, ending in
             (("imagenet", ".JPEG"), ("coco", ".jpg"), ("vsr", ".jpg"), ("nlvr2", ".png"))]  # fmt: skip
    for path in first:
        with Image.open(path) as picture:
            assert (picture.mode, picture.size, picture.format) == ("RGB", (32, 32), kinds[path.suffix])


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_schema(corpus, split):
    data = json.loads((corpus / f"coco/annotations/captions_{split}.json").read_text())
    assert set(data) == {"info", "licenses", "images", "annotations"}
    assert len(data["images"]) == SMOKE_SIZES["coco_train" if split == "train2017" else "coco_val"]
    for image in data["images"]:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        assert (corpus / "coco" / split / image["file_name"]).is_file()
        assert image["height"] == image["width"] == 32
    captions = Counter(row["image_id"] for row in data["annotations"])
    assert set(captions) == {image["id"] for image in data["images"]}
    assert set(captions.values()) == {2, 3}
    ids = [row["id"] for row in data["annotations"]]
    assert len(set(ids)) == len(ids)


def test_coco_ids_differ_between_splits(corpus):
    ids = [
        {
            image["id"]
            for image in json.loads((corpus / f"coco/annotations/captions_{split}.json").read_text())["images"]
        }
        for split in ("train2017", "val2017")
    ]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_captions_are_true_and_their_negatives_false(corpus, split):
    folder = corpus / "coco/annotations"
    scenes = scenes_of(folder / f"scenes_{split}.json")
    negatives = json.loads((folder / f"negatives_{split}.json").read_text())
    annotations = json.loads((folder / f"captions_{split}.json").read_text())["annotations"]
    kinds = set()
    for row in annotations:
        scene = scenes[str(row["image_id"])]
        assert oracle(row["caption"], scene)
        for negative in negatives.pop(str(row["id"])):
            assert not oracle(negative["caption"], scene)
            kinds.add(negative["kind"])
    assert negatives == {}
    assert kinds == set(PRESETS[corpus.name].kinds)


@pytest.mark.parametrize("split", VSR_SPLITS)
def test_vsr_schema_truth_and_exact_balance(corpus, split):
    rows = lines(corpus / f"vsr/{split}.jsonl")
    scenes = scenes_of(corpus / "vsr/scenes.json")
    assert len(rows) == SMOKE_SIZES[f"vsr_{split}"]
    official = {"image", "image_link", "caption", "label", "relation", "subj", "obj"}
    official |= {"annotator_id", "vote_true_validator_id", "vote_false_validator_id"}
    by_caption, by_image = defaultdict(list), defaultdict(list)
    for row in rows:
        assert set(row) == official | {"kind"}
        assert (corpus / "vsr/images" / row["image"]).is_file()
        assert row["label"] == int(oracle(row["caption"], scenes[row["image"]]))
        by_caption[row["caption"]].append(row["label"])
        by_image[row["image"]].append(row["label"])
    for labels in (*by_caption.values(), *by_image.values()):
        assert 2 * sum(labels) == len(labels)


@pytest.mark.parametrize("split", NLVR2_SPLITS)
def test_nlvr2_schema_truth_and_exact_balance(corpus, split):
    by_sentence, by_pair = defaultdict(list), defaultdict(list)
    count = 0
    for row, left, right in nlvr2_scenes(corpus, split):
        count += 1
        assert row["label"] in ("True", "False")
        assert row["label"] == str(oracle(row["sentence"], left, right))
        assert re.fullmatch(rf"{split}-\d+-[01]-[01]", row["identifier"])
        assert ("directory" in row) is (split == "train")
        folder = f"train/{row['directory']}" if split == "train" else split
        pair = row["identifier"].rpartition("-")[0]
        assert all((corpus / f"nlvr2/images/{folder}/{pair}-img{k}.png").is_file() for k in range(2))
        by_sentence[row["sentence"]].append(row["label"])
        by_pair[pair].append(row["label"])
    assert count == SMOKE_SIZES[f"nlvr2_{split}"]
    for labels in (*by_sentence.values(), *by_pair.values()):
        assert 2 * labels.count("True") == len(labels)


def test_no_scene_is_in_two_evaluation_splits_or_in_training(corpus):
    keys = keys_by_split(corpus)
    training = [name for name in keys if "train" in name]
    evaluation = [name for name in keys if "train" not in name]
    for i, name in enumerate(evaluation):
        for other in training + evaluation[i + 1 :]:
            assert not keys[name] & keys[other], (name, other)


def test_held_out_pairs_appear_in_the_compositional_split_and_nowhere_else(corpus):
    for name, keys in keys_by_split(corpus).items():
        for key in keys:
            shown = any((colour, shape) in HELD_OUT_PAIRS for shape, colour, *_ in key)
            assert shown is ("compositional" in name), name


def test_every_word_is_in_the_vocabulary(corpus):
    texts = [row["caption"] for split in VSR_SPLITS for row in lines(corpus / f"vsr/{split}.jsonl")]
    texts += [row["sentence"] for split in NLVR2_SPLITS for row in lines(corpus / f"nlvr2/data/{split}.json")]
    for split in ("train2017", "val2017"):
        folder = corpus / "coco/annotations"
        texts += [row["caption"] for row in json.loads((folder / f"captions_{split}.json").read_text())["annotations"]]
        for rows in json.loads((folder / f"negatives_{split}.json").read_text()).values():
            texts += [row["caption"] for row in rows]
    assert {word for text in texts for word in text.split()} <= set(VOCABULARY)


def test_manifest_counts_what_lies_there(corpus):
    manifest = read_manifest(corpus)
    assert manifest.counts["vsr/train"]["statements"] == SMOKE_SIZES["vsr_train"]
    assert sum(counts["images"] for counts in manifest.counts.values()) == sum(
        1 for path in corpus.rglob("*") if path.suffix in (".jpg", ".JPEG", ".png")
    )
