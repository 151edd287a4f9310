"""Counting, naming and limiting what cannot be read."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from crossvit.errors import UserError

log = logging.getLogger(__name__)

_NAMED_IN_LOG = 5  # of each split; the file names them all


class BadRecord(NamedTuple):
    """One sample that was left out. `path` is a picture, or an annotation file with its line or record number."""

    path: str
    reason: str


class BadSamples:
    """The damaged samples this process has met, each counted once.

    Every new one is written as a line `{"split", "path", "reason"}` to `bad_samples.jsonl` in `directory` (kept back
    until a directory is known).

    Args:
        max_fraction: largest share of a split that may be left out.
        directory: where the file goes.
    """

    FILE_NAME = "bad_samples.jsonl"

    def __init__(self, max_fraction: float, directory: str | Path | None = None) -> None:
        if not 0 <= max_fraction <= 1:
            raise UserError(f"data.max_bad_fraction={max_fraction} must lie between 0 and 1.")
        self.max_fraction = max_fraction
        self.directory = None if directory is None else Path(directory)
        self.count: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set()
        self._unwritten: list[dict[str, str]] = []

    def record(self, split: str, size: int, records: Iterable[BadRecord], write: bool = True) -> None:
        """Count records of a split of `size` samples.

        Args:
            split: name of the split.
            size: samples it should have.
            records: what was left out.
            write: False on all ranks but one for what every rank finds.

        Raises:
            UserError: more than `max_fraction` of the split is damaged.
        """
        for record in records:
            if (split, record.path) in self._seen:
                continue
            self._seen.add((split, record.path))
            self.count[split] += 1
            if write:
                level = logging.WARNING if self.count[split] <= _NAMED_IN_LOG else logging.DEBUG
                log.log(level, "left out of %s: %s (%s)", split, record.path, record.reason)
                self._unwritten.append({"split": split, **record._asdict()})
            if self.count[split] > self.max_fraction * size:
                self.flush()
                raise UserError(
                    f"{self.count[split]} of {size} samples of split '{split}' are damaged, more than "
                    f"data.max_bad_fraction={self.max_fraction}; the last: {record.path}: {record.reason}.\n"
                    f"Repair the files{self._named_in()} or raise data.max_bad_fraction."
                )
        self.flush()

    def flush(self) -> None:
        """Write what has not been written yet, if the directory is known."""
        if self.directory is None or not self._unwritten:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self._unwritten)
        with open(self.directory / self.FILE_NAME, "a", encoding="utf-8") as file:
            file.write(lines)
        self._unwritten.clear()

    def _named_in(self) -> str:
        return "" if self.directory is None else f" named in {self.directory / self.FILE_NAME}"
