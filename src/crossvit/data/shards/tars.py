"""The files inside a tar, as far as it can be trusted."""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PICTURES = ("jpg", "jpeg", "png", "webp")
MAX_PICTURE_BYTES = 128 * 2**20
"""A larger picture file is refused; `decoding.MAX_PIXELS` caps what it may grow to."""
MAX_TEXT_BYTES = 4 * 2**20

_BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # cut at the first full stop of the file's name
_LONG_NAME, _PAX = (tarfile.GNUTYPE_LONGNAME,), (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
"""What has no content, whatever size its header gives."""


class Member(NamedTuple):
    """A file inside a tar: where its content begins, and its length in bytes."""

    name: str
    offset: int
    size: int


class Damage(NamedTuple):
    """What cannot be used: a name or place inside the tar, the reason, and how many bytes of the tar are lost by it."""

    where: str
    reason: str
    lost: int = 0


def read_members(file: BinaryIO, damages: list[Damage]) -> Iterator[Member]:
    """The files of a tar in order. What is damaged is noted, and reading goes on at the next header that is whole.

    Names that lead outside of a folder, links and devices are refused: nothing is ever unpacked, but such a tar was not made for this.
    """
    end = os.fstat(file.fileno()).st_size
    at, damaged_from, after_zeros = 0, None, False
    long_name, size = None, None  # of an extended header, for the next one
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if damaged_from is None and not any(block) and (block or after_zeros):
            if not block:
                return
            at, after_zeros = at + len(block), True  # the end, or that of one tar before another
            continue
        header = _header(block) if len(block) == _BLOCK else None
        if damaged_from is not None and (header is not None or len(block) < _BLOCK):
            lost = (end if header is None else at) - damaged_from
            damages.append(Damage(f"byte {damaged_from}", "damaged header", lost))
            damaged_from = None
        elif len(block) < _BLOCK:
            damages.append(Damage(f"byte {at}", "the tar ends without its last blocks: it is cut off", end - at))
        if len(block) < _BLOCK:
            return
        after_zeros = False
        start = at
        at += _BLOCK
        if header is None:
            damaged_from = start if damaged_from is None else damaged_from
            continue
        length = 0 if header.type in _EMPTY else header.size if size is None else size
        content = Member(long_name or header.name, at, length)
        if at + length > end:
            damages.append(Damage(content.name, f"the tar is cut off: {end - at} of {length} bytes", end - start))
            return
        at += -(-length // _BLOCK) * _BLOCK
        if header.type in _LONG_NAME and length <= MAX_TEXT_BYTES:
            long_name = _decode(read_content(file, content).rstrip(b"\0"))
            continue
        if header.type in _PAX and length <= MAX_TEXT_BYTES:
            long_name, size = _pax(read_content(file, content))
            continue
        long_name, size = None, None
        if header.type == tarfile.XGLTYPE or header.isdir():
            continue
        if header.type not in _FILES:
            damages.append(Damage(content.name, "not a file but a link or a device", at - start))
        elif not _stays_inside(content.name):
            damages.append(Damage(content.name, "its name leads outside", at - start))
        else:
            yield content._replace(name=content.name.removeprefix("./"))


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension (lower case) of a member, as webdataset cuts them: "train/007.seg.png" -> "train/007", "seg.png"."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2].lower()) if found else None


def read_content(file: BinaryIO, member: Member) -> bytes:
    """The bytes of a member; fewer where the tar is cut off."""
    return os.pread(file.fileno(), member.size, member.offset)


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return header if header.size >= 0 and header.name else None


def _pax(records: bytes) -> tuple[str | None, int | None]:
    """Name and size in an extended header, lines of b"<length> <key>=<value>\\n"."""
    found = {}
    while records:
        length, _, rest = records.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(records):
            break
        key, _, value = rest[: int(length) - len(length) - 1].rstrip(b"\n").partition(b"=")
        found[key] = value
        records = records[int(length) :]
    size = found.get(b"size", b"")
    return _decode(found[b"path"]) if b"path" in found else None, int(size) if size.isdigit() else None


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.replace("\\", "/").split("/") and "\0" not in name


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
