"""`manifest.json` of a corpus: what it was made with, what it holds, and whether the folder still holds it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_NAME = "manifest.json"
FORMAT = 3  # raised whenever the same arguments begin to give other bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `generate` made.

    arguments: preset, seed, image_size, sizes and the generator's format number.
    counts: images, captions or statements of every split, e.g. {"coco/train2017": {"images": 4000, "captions": 9988},
    ...}.
    annotations: sha256 and bytes of every file that is not a picture, by path relative to the corpus.
    folders: number of files and their bytes of every folder that holds pictures.
    images_sha256: sha256 of the lines "<sha256>  <path>" of all pictures in the order of their paths.
    """

    path: Path
    arguments: Mapping
    counts: Mapping
    annotations: Mapping
    folders: Mapping
    images_sha256: str

    def save(self) -> None:
        """Write `manifest.json` into the corpus folder."""
        data = asdict(self)
        del data["path"]
        (self.path / FILE_NAME).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")

    def is_intact(self) -> bool:
        """Whether every annotation file has its hash, and every picture folder its number of files and bytes."""
        for name, expected in self.annotations.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != expected["bytes"]:
                return False
            if hashlib.sha256(file.read_bytes()).hexdigest() != expected["sha256"]:
                return False
        return all(_folder_size(self.path / name) == expected for name, expected in self.folders.items())


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a corpus folder; None where there is none that can be read."""
    try:
        data = json.loads((path / FILE_NAME).read_text())
        return Manifest(path=path, **data)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def _folder_size(folder: Path) -> dict[str, int] | None:
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        sizes = [entry.stat().st_size for entry in entries if entry.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}
