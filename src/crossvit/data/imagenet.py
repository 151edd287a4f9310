"""ImageNet: pictures in class folders."""

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crossvit.data.bad_samples import BadRecord
from crossvit.data.datasets import ImageDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.module import CrossViTDataModule
from crossvit.data.pictures import Pictures
from crossvit.errors import UserError

_EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_KAGGLE = Path("ILSVRC/Data/CLS-LOC")


@dataclass
class ImageIndex:
    """One split: pictures and their classes (int64, position of the folder's name among the sorted training
    folders).
    """

    pictures: Pictures
    labels: np.ndarray
    counts: dict[str, int]
    files: list[Path] = field(default_factory=list)
    defects: list[BadRecord] = field(default_factory=list)


class ImageNetDataModule(CrossViTDataModule):
    """ImageNet ILSVRC2012, or any data in the same form. Classes are the sorted names of the folders under `train/`.

    Names come from `LOC_synset_mapping.txt` ("n01440764 tench, Tinca tinca"), or are the folder names where there is
    none. The form Kaggle
    ships is read as well: pictures under `ILSVRC/Data/CLS-LOC`, a flat `val/` with `LOC_val_solution.csv`.

    The arguments are those of CrossViTDataModule. Training and evaluation yield `ImageBatch(image, label = class,
    index)`.
    """

    LAYOUT = """\
  <root>/train/<class>/*.JPEG
  <root>/val/<class>/*.JPEG        (or val/*.JPEG and LOC_val_solution.csv)
  <root>/LOC_synset_mapping.txt    (class names, optional)"""

    @property
    def classes(self) -> list[tuple[str, str]]:
        """(folder name, readable name) in the order of the labels."""
        names = self._names()
        return [(wnid, names.get(wnid, wnid)) for wnid in self._wnids()]

    @property
    def num_classes(self) -> int:
        """Number of class folders under `train/`."""
        return len(self._wnids())

    def image_loader(self, split: str) -> EpochLoader:
        """Every picture of a split once, in order."""
        dataset = ImageDataset(self._pictures(split), self.index(split).labels, self._eval_transform)
        return self._eval_loader(split, dataset, self.num_workers)

    def eval_loaders(self, split: str) -> EpochLoader:
        return self.image_loader(split)

    def _train_dataset(self, split: str) -> ImageDataset:
        return ImageDataset(self._pictures(split), self.index(split).labels, self._train_transform, self.seed)

    def _read_split(self, split: str) -> ImageIndex:
        folder = self._images() / split
        if not folder.is_dir():
            raise self._layout_error(f"{folder} is not a folder.")
        wnids = self._wnids()
        found = _folders(folder)
        if unknown := sorted(set(found) - set(wnids)):
            raise UserError(f"{folder / unknown[0]}: this class has no folder in {self._images() / 'train'}.")
        if found:
            names, labels = _class_folders(folder, wnids)
            files = []
        else:
            names, labels, files = self._flat_folder(folder, wnids)
        counts = {"samples": len(names), "classes": len(set(labels))}
        return ImageIndex(Pictures(names, [folder]), np.array(labels, dtype=np.int64), counts, files + self._mapping())

    def _flat_folder(self, folder: Path, wnids: list[str]) -> tuple[list[str], list[int], list[Path]]:
        """A flat folder with its labels in a table of `ImageId,PredictionString`, where the class is the string's first
        word.
        """
        table = self.root / f"LOC_{folder.name}_solution.csv"
        names = sorted(entry for entry in os.listdir(folder) if entry.lower().endswith(_EXTENSIONS))
        if not table.is_file():
            raise self._layout_error(f"{folder} holds no class folder, and there is no {table.name}.")
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        with open(table, encoding="utf-8", newline="") as file:
            rows = {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) == 2 and row[1].strip()}
        labels = []
        for name in names:
            wnid = rows.get(Path(name).stem)
            if wnid not in label_of:
                raise UserError(f"{table}: no known class for {name} (found {wnid!r}).")
            labels.append(label_of[wnid])
        return names, labels, [table]

    def _images(self) -> Path:
        kaggle = self.root / _KAGGLE
        return kaggle if kaggle.is_dir() else self.root

    def _wnids(self) -> list[str]:
        train = self._images() / "train"
        wnids = _folders(train) if train.is_dir() else []
        if not wnids:
            raise self._layout_error(f"{train} holds no class folder.")
        return wnids

    def _mapping(self) -> list[Path]:
        path = self.root / "LOC_synset_mapping.txt"
        return [path] if path.is_file() else []

    def _names(self) -> dict[str, str]:
        pairs = (
            line.split(maxsplit=1) for path in self._mapping() for line in path.read_text(encoding="utf-8").splitlines()
        )
        return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _class_folders(folder: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    names: list[str] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        path = folder / wnid
        files = sorted(f for f in os.listdir(path) if f.lower().endswith(_EXTENSIONS)) if path.is_dir() else []
        if not files:
            raise UserError(f"{path}: no picture of this class ({', '.join(_EXTENSIONS)}).")
        names.extend(f"{wnid}/{file}" for file in files)
        labels.extend([label] * len(files))
    return names, labels
