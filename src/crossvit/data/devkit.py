"""The classes of ImageNet's flat validation folder, from the devkit of ILSVRC2012 or from what others made of it."""

import io
import pickle
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crossvit.errors import UserError

_FOLDER = "ILSVRC2012_devkit_t12"
_TRUTH = f"{_FOLDER}/data/ILSVRC2012_validation_ground_truth.txt"
_META = f"{_FOLDER}/data/meta.mat"


@dataclass(frozen=True)
class Devkit:
    """Classes of the validation pictures.

    Attributes:
        file: where they come from.
        wnids: the class of the pictures 1, 2, ...
        names: readable name of each class, empty where the source has none.
    """

    file: Path
    wnids: list[str]
    names: dict[str, str] = field(default_factory=dict)

    def class_of(self, number: int | None) -> str | None:
        """The class of a picture by its number from 1; None where there is no such picture."""
        return self.wnids[number - 1] if number is not None and number <= len(self.wnids) else None


def find_devkit(root: Path) -> Devkit | None:
    """The first of: the devkit unpacked, the devkit packed, TensorFlow's list of one class a line, torchvision's `meta.bin`.

    Raises:
        UserError: the file is damaged, or the devkit needs scipy and it is not installed.
    """
    folder, archive = root / _FOLDER, root / f"{_FOLDER}.tar.gz"
    if folder.is_dir():
        return _parse(root / _TRUTH, *(_bytes(root / name) for name in (_TRUTH, _META)))
    if archive.is_file():
        return _parse(archive, *_members(archive, (_TRUTH, _META)))
    labels = root / "imagenet_2012_validation_synset_labels.txt"
    if labels.is_file():
        return Devkit(labels, labels.read_text(encoding="utf-8").split())
    meta = root / "meta.bin"
    return _torchvision(meta) if meta.is_file() else None


def _parse(source: Path, truth: bytes, meta: bytes) -> Devkit:
    """The ground truth counts the classes in an order of its own, which only the MATLAB file tells."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{source}: its meta.mat needs scipy: pip install 'crossvit[imagenet]'. Without it, put LOC_val_solution.csv or "
            "imagenet_2012_validation_synset_labels.txt beside it, or sort val/ into class folders."
        ) from None
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = [row for row in synsets if int(row["num_children"]) == 0]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        names = {str(row["WNID"]): str(row["words"]) for row in leaves}
        return Devkit(source, [wnid_of[int(line)] for line in truth.split()], names)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{source}: not the devkit of ILSVRC2012 ({error}). Restore it.") from None


def _members(archive: Path, names: tuple[str, ...]) -> list[bytes]:
    """Files of a tar, read without unpacking it."""
    try:
        with tarfile.open(archive) as tar:
            return [tar.extractfile(name).read() for name in names]
    except (tarfile.TarError, KeyError, AttributeError, EOFError, OSError) as error:
        raise UserError(f"{archive}: not the devkit of ILSVRC2012 ({error}). Restore it.") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Unpack {_FOLDER}.tar.gz anew.") from None


def _torchvision(meta: Path) -> Devkit:
    try:
        names, wnids = torch.load(meta, weights_only=True)
        return Devkit(meta, list(wnids), {wnid: ", ".join(words) for wnid, words in names.items()})
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise UserError(f"{meta}: not torchvision's meta.bin ({str(error).splitlines()[0]}). Remove it.") from None
