"""A folder of pictures, each with its captions in a text file of the same name."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossvit.data.captions import CaptionDataModule, CaptionIndex, caption_index
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.held_out import HeldOut
from crossvit.data.reading.pictures import Pictures

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class _TextFiles(Sequence):
    """The text files of pictures, named when they are asked for."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: int) -> Path:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return Path(self.pictures.path(position)).with_suffix(".txt")


class CaptionFolderDataModule(CaptionDataModule):
    """A split is a folder below the root, or, for `train` where there is no such folder, the root itself. Folders inside are read too.

    Every line of a text file is a caption; empty lines are passed over.

    Args:
        held_out: share of the pictures of `train` that form the split `held_out` instead.
        kwargs: see CaptionDataModule.
    """

    LAYOUT = """\
  <root>/{train,val,test}/**/<name>.jpg    (or .jpeg, .png, .webp, .bmp; or all under <root>, with data.held_out)
  beside it <name>.txt                     (a caption a line)"""

    def __init__(self, *, held_out: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held_out = HeldOut(held_out)

    def _read_split(self, split: str) -> CaptionIndex:
        source = self.held_out.source(split)
        folder = self.root / source
        others = [name for name in self._splits() if name != source and (self.root / name).is_dir()]
        if not folder.is_dir() and source == "train" and not others:
            folder = self.root
        if not folder.is_dir():
            raise self._layout_error(f"{folder} is not a folder.")
        defects: list[BadRecord] = []
        names: list[str] = []
        image_of: list[int] = []
        texts: list[str] = []
        for name in _pictures(folder):
            if not self.held_out.keeps(split, name):
                continue
            captions = _captions(folder / name)
            if isinstance(captions, str):
                defects.append(BadRecord(str(folder / name), captions))
                continue
            image_of += [len(names)] * len(captions)
            texts += captions
            names.append(name)
        pictures = Pictures(names, [folder])
        image_of = np.array(image_of, dtype=np.int64)
        return caption_index(
            pictures, np.arange(len(names)), image_of, texts, files=_TextFiles(pictures), defects=defects
        )


def _pictures(folder: Path) -> list[str]:
    """Names of the pictures of a folder and those inside, relative to it and sorted."""
    found = []
    for place, _, files in os.walk(folder):
        inside = os.path.relpath(place, folder)
        found += [os.path.normpath(os.path.join(inside, f)) for f in files if f.lower().endswith(_EXTENSIONS)]
    return sorted(found)


def _captions(picture: Path) -> list[str] | str:
    """The captions of a picture, or what is wrong with them."""
    try:
        with open(os.path.splitext(picture)[0] + ".txt", encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()] or "its text file holds no caption"
    except FileNotFoundError:
        return "no text file of this name"
    except (OSError, UnicodeDecodeError) as error:
        return f"its text file cannot be read ({error})"
