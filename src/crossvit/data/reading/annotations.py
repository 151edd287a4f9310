"""Reading annotation files, with errors that name the file and the line."""

import ctypes
import gc
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossvit.errors import UserError


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is missing, not UTF-8 or not JSON; names the file and line.
    """
    text = _read_text(path)
    try:
        with _no_garbage_collection():
            return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Restore the file.") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parse a file with one JSON object a line; yields (line number from 1, object). Empty lines are passed over.

    Raises:
        UserError: the file is missing, not UTF-8, or a line is not a JSON object; names the file and line.
    """
    # split only at line feeds: JSON strings may hold the other characters that str.splitlines takes for line ends
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}). Restore the file.") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: expected an object, found {type(record).__name__}.")
        yield number, record


def text_id(caption: str) -> int:
    """A 63-bit id that equal captions share: equal up to case, spaces, Unicode form and a full stop at the end."""
    normal = " ".join(unicodedata.normalize("NFKC", caption).casefold().split()).rstrip(" .")
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def release_free_memory() -> None:
    """Give back what parsing has left free in the heap: forked workers would carry it along. glibc alone can; elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text. Restore the file.") from None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A large JSON file makes a million containers and no cycle: collecting in between doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
