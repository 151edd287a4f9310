"""Samples a second and core of the whole input path: decode, crop, resize, flip, tokenise, collate.

    python benchmarks/data.py [--pictures DIR] [--rounds 5] [--samples 480] [--size 224] [--out FILE]

Three loaders read the same folder in turns, in one process and one thread: that of this project (COCODataModule), a torch DataLoader as
one writes it by hand (Pillow, torchvision.transforms.v2), and open_clip's own (`open_clip_train.data.get_csv_dataset` with
`open_clip.image_transform`). All keep 50 to 100 % of a picture's area and use CLIP's tokens; batches hold 64 samples. open_clip does not
flip. This project hands on uint8 and normalises on the device; `crossvit_normalised` does that in this thread too, as the others do, and
`crossvit_decoding` reads and decodes the files and does no more.

The pictures are the JPEG files below --pictures, or drawn ones, scaled (short side 256) or cropped and scaled (500 x 375), JPEG of quality
90; captions are drawn. Figures are samples by process CPU seconds, the best of the rounds. Prints one json object, and writes it to --out.
"""

import argparse
import csv
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from keeping import add_out, keep  # beside this file
from PIL import Image, ImageFilter, ImageOps

SCALE = (0.5, 1.0)
BATCH = 64
WORDS = "a man woman dog cat sits stands on near the table street red blue with two people riding large small"
PATHS = ("crossvit", "crossvit_normalised", "torch_by_hand", "open_clip", "crossvit_decoding")


def main() -> None:
    """Makes the pictures, measures, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder with JPEG photographs; without it pictures are drawn")
    for name, value in (("rounds", 5), ("samples", 480), ("size", 224)):
        parser.add_argument(f"--{name}", type=int, default=value)
    add_out(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for kind, shrink in (("short_side_256", short_side_256), ("500x375", fixed)):
            write(Path(folder) / kind, given.pictures, shrink, given.samples)
            figures[kind] = measure(Path(folder) / kind, given.size, given.rounds)
    report = {
        "figures": figures,
        "samples": given.samples,
        "rounds": given.rounds,
        "size": given.size,
        "batch_size": BATCH,
        "scale": SCALE,
        "threads": 1,
        "pictures": "photographs" if given.pictures else "drawn",
    }
    keep(report, given.out, ("torch", "torchvision", "open_clip_torch", "pillow", "numpy"))


def measure(root: Path, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Samples a CPU second of each path, the best of the rounds, and its ratio to open_clip's."""
    loaders = {"crossvit": crossvit_loader, "torch_by_hand": torch_loader, "open_clip": open_clip_loader}
    paths = {name: make(root, size) for name, make in loaders.items()}
    data, loader = paths["crossvit"]
    paths["crossvit"] = loader
    paths["crossvit_normalised"] = Normalised(data.on_after_batch_transfer, loader)
    paths["crossvit_decoding"] = Decoded(data.index("train").pictures)
    best = dict.fromkeys(PATHS, 0.0)
    for number in range(rounds + 1):  # the first warms up
        for name in PATHS:
            started, samples = time.process_time(), 0
            for batch in paths[name]:
                samples += len(batch[0])
            if number:
                best[name] = max(best[name], samples / (time.process_time() - started))
    return {
        name: {"samples_per_cpu_second": round(speed, 1), "over_open_clip": round(speed / best["open_clip"], 2)}
        for name, speed in best.items()
    }


class Normalised:
    """A loader's batches as the model sees them."""

    def __init__(self, normalise: Callable, loader: Iterable) -> None:
        self.normalise = normalise
        self.loader = loader

    def __iter__(self):
        return (self.normalise(batch, 0) for batch in self.loader)


class Decoded:
    """Pictures one by one at full size, as batches of one."""

    def __init__(self, pictures) -> None:
        self.pictures = pictures

    def __iter__(self):
        return ([[self.pictures.read(i)]] for i in range(len(self.pictures)))


def crossvit_loader(root: Path, size: int):
    """The DataModule and its training batches, with the settings of conf/data/coco.yaml."""
    from crossvit.data.coco import COCODataModule
    from crossvit.data.tokenizer import ClipTokenizer

    settings = {"train_scale": SCALE, "flip": True, "fit": "squash", "val_split": None, "test_split": None}
    data = COCODataModule(root=root, image_size=size, batch_size=BATCH, tokenizer=ClipTokenizer(), **settings)
    return data, data.train_dataloader()


def torch_loader(root: Path, size: int) -> Iterable:
    """What one writes by hand."""
    from open_clip import get_tokenizer
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=SCALE, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = Pairs(rows(root), transform)
    collate = partial(collated, tokenizer=get_tokenizer("ViT-B-32"))
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, collate_fn=collate)


class Pairs(torch.utils.data.Dataset):
    """(picture, caption) for each row."""

    def __init__(self, pairs: list[tuple[str, str]], transform: Callable) -> None:
        self.pairs = pairs
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        path, text = self.pairs[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), text


def collated(samples: list, tokenizer: Callable):
    """Pictures and tokens of a batch."""
    images, texts = zip(*samples, strict=True)
    return torch.stack(images), tokenizer(list(texts))


def open_clip_loader(root: Path, size: int) -> Iterable:
    """open_clip's loader of a csv file, with its own transforms and tokenizer."""
    from open_clip import get_tokenizer, image_transform
    from open_clip_train.data import get_csv_dataset

    transform = image_transform(size, is_train=True, aug_cfg={"scale": SCALE})
    settings = {
        "train_data": str(root / "pairs.csv"),
        "csv_img_key": "filepath",
        "csv_caption_key": "title",
        "csv_separator": "\t",
        "distributed": False,
        "batch_size": BATCH,
        "workers": 0,
    }
    info = get_csv_dataset(SimpleNamespace(**settings), transform, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))
    return info.dataloader


def rows(root: Path) -> list[tuple[str, str]]:
    """The pairs of the csv file."""
    with (root / "pairs.csv").open(newline="") as file:
        return [(row["filepath"], row["title"]) for row in csv.DictReader(file, delimiter="\t")]


def write(root: Path, pictures: Path | None, shrink: Callable[[Image.Image], Image.Image], count: int) -> None:
    """A COCO folder and a csv file of the same pictures; captions are drawn, five a picture, the first in the csv file."""
    folder = root / "train2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    rng, words = random.Random(0), WORDS.split()
    files = sorted(pictures.rglob("*.jpg")) if pictures else [None] * min(count, 100)
    made = []
    for number, file in enumerate(files[:count]):
        image = drawn(number) if file is None else Image.open(file).convert("RGB")
        made.append(folder / f"made_{number}.bin")
        shrink(image).save(made[-1], "JPEG", quality=90)
    images, notes, table = [], [], []
    for i in range(count):
        name = f"{i + 1:012d}.jpg"
        (folder / name).hardlink_to(made[i % len(made)])
        texts = [" ".join(rng.choices(words, k=rng.randint(8, 13))) for _ in range(5)]
        images.append({"id": i + 1, "file_name": name})
        notes += [{"id": 5 * i + k, "image_id": i + 1, "caption": text} for k, text in enumerate(texts)]
        table.append((str(folder / name), texts[0]))
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": notes}))
    with (root / "pairs.csv").open("w", newline="") as file:
        lines = csv.writer(file, delimiter="\t")
        lines.writerows([("filepath", "title"), *table])


def short_side_256(image: Image.Image) -> Image.Image:
    """As img2dataset and many a script prepare pictures."""
    factor = 256 / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def fixed(image: Image.Image) -> Image.Image:
    """500 x 375, the common size of ImageNet and Flickr."""
    return ImageOps.fit(image, (500, 375), Image.Resampling.BICUBIC)


def drawn(number: int) -> Image.Image:
    """Soft blobs with some grain, 640 x 480."""
    rng = np.random.default_rng(number)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    grain = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
    return Image.blend(blobs, grain, 0.3)


if __name__ == "__main__":
    main()
