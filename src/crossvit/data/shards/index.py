"""What lies where in a tar of pictures with texts, kept in a file beside it.

A tar has no table of contents: to know it, every header must be read. That is done once, and the answer is a few flat arrays that every
process maps into memory, so a sample costs some bytes of a shared page and no Python object.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.shards.tars import (
    MAX_PICTURE_BYTES,
    MAX_TEXT_BYTES,
    PICTURES,
    Damage,
    Member,
    read_content,
    read_members,
    split_name,
)

SUFFIX = ".idx"

_MAGIC = b"crossvit shard index 1\n"


class ShardIndex:
    """The samples of one tar, in order of their pictures: n pictures with c captions. The arrays are read from the index file, on demand.

    Args:
        tar: the tar.
        file: its index, written by `index_of`.

    Raises:
        ValueError: not an index, or one of another state of the tar.
    """

    def __init__(self, tar: Path, file: Path) -> None:
        self.tar = tar
        self.file = file
        state = os.stat(tar)
        if (self.header["size"], self.header["mtime_ns"]) != (state.st_size, state.st_mtime_ns):
            raise ValueError("the tar has changed")
        if os.stat(file).st_size != self.header["start"] + self.header["length"]:
            raise ValueError("the index is cut off")
        ends = (self.offsets + self.sizes).max(initial=0)
        if len(self.offsets) and (ends > state.st_size or self.sizes.min() < 0 or self.offsets.min() < 0):
            raise ValueError("points outside of the tar")

    def __len__(self) -> int:
        return self.header["arrays"]["offsets"][1]

    @property
    def damages(self) -> list[Damage]:
        """What of the tar cannot be used."""
        return [Damage(*row) for row in self.header["damages"]]

    @property
    def sha256(self) -> str:
        """Hash of all that the arrays hold."""
        return self.header["sha256"]

    @cached_property
    def header(self) -> dict[str, Any]:
        """Sizes, places of the arrays, damages."""
        with open(self.file, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("not an index of shards")
            header = json.loads(file.read(int(file.read(12))))
            header["start"] = file.tell()
        return header

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 (n,): where each picture begins."""
        return self._array("offsets")

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 (n,): bytes of each picture."""
        return self._array("sizes")

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (n,): the class of each picture, -1 for none."""
        return self._array("labels")

    @cached_property
    def image_ids(self) -> np.ndarray:
        """int64 (n,): the `image_id` that a json gives, -1 for none."""
        return self._array("image_ids")

    @cached_property
    def caption_starts(self) -> np.ndarray:
        """int64 (n + 1,): picture i has the captions from `caption_starts[i]` to `caption_starts[i + 1]`."""
        return self._array("caption_starts")

    def name(self, position: int) -> str:
        """The picture's name inside the tar."""
        return self._text("names", position)

    def caption(self, position: int) -> str:
        """One of the c captions."""
        return self._text("captions", position)

    def relation(self, position: int) -> str:
        """The kind of relation that the json of a picture gives, "" for none."""
        return self._text("relations", position)

    def __getstate__(self) -> dict[str, Any]:
        return {"tar": self.tar, "file": self.file}  # the arrays are mapped anew in another process

    @cached_property
    def _mapped(self) -> np.ndarray:
        return np.memmap(self.file, np.uint8, "r").view(np.ndarray)  # one mapping a shard: a process may have 65,530

    def _array(self, name: str) -> np.ndarray:
        dtype, count, offset = self.header["arrays"][name]
        start = self.header["start"] + offset
        return self._mapped[start : start + count * np.dtype(dtype).itemsize].view(dtype)

    def _text(self, name: str, position: int) -> str:
        ends, text = self._texts(name)
        start = ends[position - 1] if position else 0
        return text[start : ends[position]].tobytes().decode("utf-8", "surrogateescape")

    def _texts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self.__dict__:
            self.__dict__[name] = (self._array(f"{name}_ends"), self._array(f"{name}_text"))
        return self.__dict__[name]


def index_of(tar: Path, folder: Path | None = None) -> ShardIndex:
    """The index of a tar, made where there is none or the tar has changed since.

    Args:
        tar: a file.
        folder: where the index lies; None: beside the tar, or where that cannot be written, in the user's cache.

    Raises:
        OSError: the tar cannot be read, or the index cannot be written anywhere.
    """
    found = existing_index(tar, folder)
    if found is not None:
        return found
    places = index_places(tar, folder)
    content = _scan(tar)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place, content)
        except OSError:
            if place == places[-1]:
                raise
        else:
            return ShardIndex(tar, place)
    raise AssertionError("there is a place")


def existing_index(tar: Path, folder: Path | None = None) -> ShardIndex | None:
    """The index of a tar where there is one that fits; see `index_of`."""
    for place in index_places(tar, folder):
        try:
            return ShardIndex(tar, place)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def index_places(tar: Path, folder: Path | None) -> list[Path]:
    """Where the index of a tar may lie, the first choice first."""
    other = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossvit" / "shards"
    marked = f"{hashlib.sha256(os.fsencode(tar.resolve())).hexdigest()[:16]}-{tar.name}{SUFFIX}"
    return [folder / marked] if folder is not None else [tar.with_name(tar.name + SUFFIX), other / marked]


# reading a tar -------------------------------------------------------------------------------------------------------


@dataclass
class _Sample:
    picture: Member | None = None
    texts: dict[str, Member] = field(default_factory=dict)


def _scan(tar: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Header and arrays of the index of a tar."""
    damages: list[Damage] = []
    samples: dict[str, _Sample] = {}
    with open(tar, "rb") as file:
        state = os.fstat(file.fileno())
        for member in read_members(file, damages):
            _sort_in(member, samples, damages)
        if not any(sample.picture for sample in samples.values()) and not damages:
            damages.append(Damage("the whole tar", "holds no picture", state.st_size))
        columns = _Columns()
        for key, sample in samples.items():
            _read_sample(file, key, sample, columns, damages)
    arrays = columns.arrays()
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.tobytes())
    places, offset = {}, 0
    for name, array in arrays.items():
        places[name] = (array.dtype.str, len(array), offset)
        offset += -(-array.nbytes // 8) * 8
    header = {
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "sha256": digest.hexdigest(),
        "damages": damages,
        "arrays": places,
        "length": offset,
    }
    return header, list(arrays.values())


def _sort_in(member: Member, samples: dict[str, _Sample], damages: list[Damage]) -> None:
    found = split_name(member.name)
    if found is None or found[1] not in (*PICTURES, "txt", "json", "cls"):
        return
    key, extension = found
    limit = MAX_PICTURE_BYTES if extension in PICTURES else MAX_TEXT_BYTES
    if member.size > limit:
        damages.append(Damage(member.name, f"{member.size:,} bytes: more than {limit:,}", member.size))
        return
    sample = samples.setdefault(key, _Sample())
    if extension in PICTURES:
        if sample.picture is not None:
            damages.append(Damage(member.name, f"a second picture of key {key}", member.size))
            return
        sample.picture = member
    elif extension in sample.texts:
        damages.append(Damage(member.name, "its name stands twice", member.size))
    else:
        sample.texts[extension] = member


class _Columns:
    """The arrays of an index while they grow."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []  # offset, size, label, image id, end of the captions
        self.names = _Texts()
        self.relations = _Texts()
        self.captions = _Texts()

    def arrays(self) -> dict[str, np.ndarray]:
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 5).T
        numbers = dict(zip(("offsets", "sizes", "labels", "image_ids"), (row.copy() for row in rows[:4]), strict=True))
        texts = {"names": self.names, "captions": self.captions, "relations": self.relations}
        ends = {f"{name}_ends": np.array(column.ends, dtype=np.int64) for name, column in texts.items()}
        flat = {f"{name}_text": np.frombuffer(bytes(column.text), np.uint8) for name, column in texts.items()}
        return {**numbers, "caption_starts": np.concatenate([[0], rows[4]]).astype(np.int64), **ends, **flat}


class _Texts:
    def __init__(self) -> None:
        self.text = bytearray()
        self.ends: list[int] = []

    def add(self, text: str) -> None:
        self.text += text.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.text))


def _read_sample(file: BinaryIO, key: str, sample: _Sample, columns: _Columns, damages: list[Damage]) -> None:
    """Captions from the json, or where it holds none, from the txt; a class from the cls or the json."""
    if sample.picture is None:
        damages.append(Damage(key, "texts without a picture"))
        return
    record: dict[str, Any] = {}
    if "json" in sample.texts:
        try:
            record = json.loads(read_content(file, sample.texts["json"]))
            if not isinstance(record, dict):
                raise ValueError
        except (ValueError, RecursionError):  # not UTF-8 is a ValueError as well
            record = {}
            damages.append(Damage(sample.texts["json"].name, "not a json object"))
    captions = record.get("caption")
    captions = [captions] if isinstance(captions, str) else captions if isinstance(captions, list) else []
    captions = [text for text in captions if isinstance(text, str) and text.strip()]
    if not captions and "txt" in sample.texts:
        text = read_content(file, sample.texts["txt"]).decode("utf-8", "replace").strip()
        captions = [text] if text else []
    label = _number(read_content(file, sample.texts["cls"]).strip() if "cls" in sample.texts else record.get("label"))
    for caption in captions:
        columns.captions.add(caption.encode("utf-8", "replace").decode())  # json may spell halves of characters
    columns.names.add(sample.picture.name)
    relation = record.get("relation")
    columns.relations.add(relation.encode("utf-8", "replace").decode() if isinstance(relation, str) else "")
    image_id = _number(record.get("image_id"))
    columns.rows.append((sample.picture.offset, sample.picture.size, label, image_id, len(columns.captions.ends)))


def _number(value: Any) -> int:
    """A number from 0 below 2^63, or -1."""
    try:
        return int(value) if not isinstance(value, bool | float) and 0 <= int(value) < 2**63 else -1
    except (ValueError, TypeError):
        return -1


# writing the index ---------------------------------------------------------------------------------------------------


def _write(place: Path, content: tuple[dict[str, Any], list[np.ndarray]]) -> None:
    """The index appears whole or not at all."""
    header, arrays = content
    text = json.dumps(header).encode()
    text += b" " * (-(len(_MAGIC) + 12 + len(text)) % 8)  # the arrays begin at a multiple of 8
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + f"{len(text):<12}".encode() + text)
            for array in arrays:
                file.write(array.tobytes() + b"\0" * (-array.nbytes % 8))
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def damaged_records(index: ShardIndex) -> list[BadRecord]:
    """The damages of a tar as records of `bad_samples.jsonl`."""
    return [BadRecord(f"{index.tar}: {damage.where}", damage.reason) for damage in index.damages]
