"""ImageNet: pictures in class folders, as ILSVRC2012 is released and as Kaggle ships it."""

import csv
import logging
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from crossvit.data.datasets import ImageDataset
from crossvit.data.devkit import Devkit, find_devkit
from crossvit.data.loader import EpochLoader
from crossvit.data.module import CrossViTDataModule
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError

CLASSES = "LOC_synset_mapping.txt"
"""The classes' names in order of their numbers: "n01440764 tench, Tinca tinca" a line."""

_EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_KAGGLE = Path("ILSVRC/Data/CLS-LOC")
_NUMBER = re.compile(r"_val_0*([1-9]\d*)$")  # ILSVRC2012_val_00000001

log = logging.getLogger(__name__)


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

    Three layouts are told apart by what lies under the root: class folders; a flat `val/` whose classes are in the devkit (or in one of the
    files that others made from it); Kaggle's CLS-LOC tree with `LOC_val_solution.csv`. Names come from `LOC_synset_mapping.txt`
    ("n01440764 tench, Tinca tinca") or the devkit, or are the folder names where there is neither.

    The arguments are those of CrossViTDataModule. Training and evaluation yield `ImageBatch(image, label = class,
    index)`.
    """

    LAYOUT = """\
  <root>/train/<class>/*.JPEG
  <root>/val/<class>/*.JPEG        (or flat val/*.JPEG with one of ILSVRC2012_devkit_t12/, ILSVRC2012_devkit_t12.tar.gz,
                                    LOC_val_solution.csv, imagenet_2012_validation_synset_labels.txt, torchvision's meta.bin)
  <root>/LOC_synset_mapping.txt    (class names, optional)
  or as Kaggle ships it: <root>/ILSVRC/Data/CLS-LOC/{train/<class>,val}/*.JPEG, <root>/LOC_val_solution.csv"""
    DOWNLOAD = """\
  https://image-net.org/challenges/LSVRC/2012/2012-downloads.php (an account): ILSVRC2012_img_train.tar (138 GB, one tar a class
  inside), ILSVRC2012_img_val.tar (6.3 GB), ILSVRC2012_devkit_t12.tar.gz (2.5 MB); 1,281,167 + 50,000 pictures.
  Or https://www.kaggle.com/c/imagenet-object-localization-challenge/data (the same pictures).
  Licence: for non-commercial research and education (https://image-net.org/download)."""

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
        dataset = ImageDataset(
            self._pictures(split, self._eval_transform), self.index(split).labels, self._eval_transform
        )
        return self._eval_loader(split, dataset, self.num_workers)

    def eval_loaders(self, split: str) -> EpochLoader:
        return self.image_loader(split)

    def _train_dataset(self, split: str) -> ImageDataset:
        return ImageDataset(
            self._pictures(split, self._train_transform), self.index(split).labels, self._train_transform, self.seed
        )

    def _read_split(self, split: str) -> ImageIndex:
        folder = self._images() / split
        if not folder.is_dir():
            raise self._layout_error(f"{folder} is not a folder.")
        wnids = self._wnids()
        found = _folders(folder)
        if unknown := sorted(set(found) - set(wnids)):
            raise UserError(f"{folder / unknown[0]}: this class has no folder in {self._images() / 'train'}.")
        if found:
            (names, labels), files, form = _class_folders(folder, wnids), [], "class folders"
        else:
            names, labels, files = self._flat_folder(folder, wnids)
            form = f"a flat folder, classes from {files[0].name}"
        where = "Kaggle's CLS-LOC tree, " if folder.is_relative_to(self.root / _KAGGLE) else ""
        log.info("ImageNet %s: %s%s", split, where, form)
        counts = {"samples": len(names), "classes": len(set(labels))}
        return ImageIndex(Pictures(names, [folder]), np.array(labels, dtype=np.int64), counts, files + self._mapping())

    def _flat_folder(self, folder: Path, wnids: list[str]) -> tuple[list[str], list[int], list[Path]]:
        """A flat folder; its labels are in a table of `ImageId,PredictionString`, where the class is the string's first word, or in a list
        by the number of the picture.
        """
        names = sorted(entry for entry in os.listdir(folder) if entry.lower().endswith(_EXTENSIONS))
        table = self.root / f"LOC_{folder.name}_solution.csv"
        if table.is_file():
            with open(table, encoding="utf-8", newline="") as file:
                rows = {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) == 2 and row[1].strip()}
            source = table
        elif folder.name == "val" and (devkit := self._devkit) is not None:
            rows = {Path(name).stem: devkit.class_of(_number(name)) for name in names}
            source = devkit.file
        else:
            raise self._layout_error(f"{folder} holds no class folder, and there is no {table.name} and no devkit.")
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        labels = []
        for name in names:
            wnid = rows.get(Path(name).stem)
            if wnid not in label_of:
                raise UserError(f"{source}: no known class for {name} (found {wnid!r}).")
            labels.append(label_of[wnid])
        return names, labels, [source]

    @cached_property
    def _devkit(self) -> Devkit | None:
        return find_devkit(self.root)

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
        path = self.root / CLASSES
        return [path] if path.is_file() else []

    def _names(self) -> dict[str, str]:
        pairs = (
            line.split(maxsplit=1) for path in self._mapping() for line in path.read_text(encoding="utf-8").splitlines()
        )
        names = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
        return names or self._devkit_names()

    def _devkit_names(self) -> dict[str, str]:
        try:
            return self._devkit.names if self._devkit is not None else {}
        except UserError as error:  # the names are all that is wanted of it: class folders have labels without
            log.warning("classes have no names: %s", error)
            return {}


def _number(name: str) -> int | None:
    """The number in the name of a validation picture, from 1."""
    found = _NUMBER.search(Path(name).stem)
    return int(found[1]) if found else None


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
