"""Tiny corpora in the official layouts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossvit.data.tokenizer import WordTokenizer


def save_picture(path: Path, number: int = 0, size: tuple[int, int] = (12, 12)) -> Path:
    """A PNG of noise that depends on `number`; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture
def picture() -> Callable[..., Path]:
    return save_picture


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordTokenizer:
    path = tmp_path / "words.txt"
    path.write_text("a\nred\nblue\ncircle\nsquare\nleft\nof\nimage\n" + "\n".join(str(i) for i in range(40)))
    return WordTokenizer(str(path), context_length=12)


@pytest.fixture
def imagenet_root(tmp_path: Path) -> Path:
    """Two classes; 11 training and 3 validation pictures each."""
    root = tmp_path / "imagenet"
    for split, count in (("train", 11), ("val", 3)):
        for c, wnid in enumerate(("n001", "n002")):
            for i in range(count):
                save_picture(root / split / wnid / f"{wnid}_{i}.JPEG", 1000 * c + i)
    (root / "LOC_synset_mapping.txt").write_text("n001 tench, Tinca tinca\nn002 goldfish\n")
    return root


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """10 training images with 3 captions each and 4 validation images with 2; negatives for training."""
    root = tmp_path / "coco"
    for split, count, per_image in (("train", 10, 3), ("val", 4, 2)):
        first = 100 if split == "train" else 200
        images = [{"id": first + i, "file_name": f"{first + i:012d}.jpg"} for i in range(count)]
        annotations = [
            {"id": 10 * (first + i) + k, "image_id": first + i, "caption": f"a red circle image {i} {k}"}
            for k in range(per_image)  # not sorted by image, as in the official files
            for i in range(count)
        ]
        for i, image in enumerate(images):
            save_picture(root / f"{split}2017" / image["file_name"], first + i)
        negatives = {
            str(a["id"]): [{"caption": f"a blue circle image {a['id'] % 10} {j}", "kind": "swap_att"} for j in range(3)]
            for a in annotations[:-1]
        }
        (root / "annotations").mkdir(exist_ok=True)
        captions = {"info": {}, "images": images, "annotations": annotations}
        (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(captions))
        (root / "annotations" / f"negatives_{split}2017.json").write_text(json.dumps(negatives))
    return root


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[dict]], Path]:
    def write(path: Path, records: list[dict]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write
