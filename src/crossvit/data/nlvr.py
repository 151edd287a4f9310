"""NLVR, the first one: sentences about drawings of boxes."""

import os
from pathlib import Path
from typing import Any

from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_jsonl
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.held_out import HeldOut
from crossvit.data.vlr import Statement, StatementDataModule, build_index, read_statement
from crossvit.errors import UserError


class NLVRDataModule(StatementDataModule):
    """NLVR v1 (Suhr et al. 2017). Each sentence comes with up to six pictures, the same boxes in another order.

    Args:
        permutations: how many of a sentence's pictures are samples, the first so many.
        held_out: share of the directories of `train` that form the split `held_out` instead. Whole directories: they keep all orders of a
            sentence's boxes, and all that was shown together, on one side.
        kwargs: see PairDataModule.

    Raises:
        UserError: see CrossViTDataModule; also a number of permutations that is not one of 1 to 6.
    """

    LAYOUT = """\
  <root>/<split>/<split>.json                              (one object a line: sentence, label, identifier, directory)
  <root>/<split>/images/<directory>/<split>-<identifier>-<0..5>.png"""
    DOWNLOAD = """\
  https://github.com/lil-lab/nlvr, folder nlvr: train/, dev/, test/ with the pictures (92 k PNG, 288 MB).
  Licence: CC BY 4.0."""

    def __init__(self, *, permutations: int = 6, held_out: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 1 <= permutations <= 6:
            raise UserError(f"data.permutations={permutations} must be 1 to 6: a sentence has six orders of its boxes.")
        self.permutations = permutations
        self.held_out = HeldOut(held_out)

    def _read_split(self, split: str) -> PairIndex:
        source = self.held_out.source(split)
        file = self.root / source / f"{source}.json"
        images = self.root / source / "images"
        if not file.is_file() or not images.is_dir():
            raise self._layout_error(f"{file if not file.is_file() else images} is not there.")
        listing = {entry.name: set(os.listdir(entry)) for entry in os.scandir(images) if entry.is_dir()}
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        records = list(read_jsonl(file))
        kept = self.held_out.groups(split, {str(record.get("directory")) for _, record in records})
        for number, record in records:
            if str(record.get("directory")) not in kept:
                continue
            found = read_statement(record, "sentence")
            pictures = _pictures(source, record, listing)[: self.permutations]
            if isinstance(found, str) or not pictures:
                reason = found if isinstance(found, str) else f"no picture of sentence {record.get('identifier')!r}"
                defects.append(BadRecord(f"{file}, line {number}", reason))
            else:
                statements.extend(Statement((name,), *found) for name in pictures)
        return build_index(statements, [images], file, defects)


def _pictures(split: str, record: dict, listing: dict[str, set[str]]) -> list[str]:
    """The pictures of a sentence that are there, in the order of their number."""
    directory = str(record.get("directory"))
    names = (f"{split}-{record.get('identifier')}-{k}.png" for k in range(6))
    return [str(Path(directory) / name) for name in names if name in listing.get(directory, ())]
