"""NLVR, the first one: sentences about drawings of boxes."""

import os
from pathlib import Path

from crossvit.data.annotations import read_jsonl
from crossvit.data.bad_samples import BadRecord
from crossvit.data.pairs import PairIndex
from crossvit.data.vlr import Statement, StatementDataModule, build_index, read_statement


class NLVRDataModule(StatementDataModule):
    """NLVR v1 (Suhr et al. 2017). Each sentence comes with up to six pictures, the same boxes in another order; each is
    a sample.

    Split only along the official splits or by `directory`: the pictures of a sentence would leak otherwise.
    The arguments are those of PairDataModule.
    """

    LAYOUT = """\
  <root>/<split>/<split>.json                              (one object a line: sentence, label, identifier, directory)
  <root>/<split>/images/<directory>/<split>-<identifier>-<0..5>.png"""

    def _read_split(self, split: str) -> PairIndex:
        file = self.root / split / f"{split}.json"
        images = self.root / split / "images"
        if not file.is_file() or not images.is_dir():
            raise self._layout_error(f"{file if not file.is_file() else images} is not there.")
        listing = {entry.name: set(os.listdir(entry)) for entry in os.scandir(images) if entry.is_dir()}
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for number, record in read_jsonl(file):
            found = read_statement(record, "sentence")
            pictures = _pictures(split, record, listing)
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
