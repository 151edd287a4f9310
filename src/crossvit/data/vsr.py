"""Visual Spatial Reasoning, and any other set of (picture, caption, label) lines in its form."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_jsonl
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.vlr import Statement, StatementDataModule, build_index, read_statement
from crossvit.errors import UserError

log = logging.getLogger(__name__)

_VARIANTS = ("random", "zeroshot")
# lines of train, dev and test
_RELEASES = {
    "the official files of VSR random": (7_680, 1_097, 2_195),
    "the official files of VSR zeroshot": (3_489, 340, 1_222),
    "what the README of VSR says of zeroshot": (4_713, 231, 616),  # its files hold fewer
}


class VSRDataModule(StatementDataModule):
    """VSR (Liu et al. 2023): lines of {"image", "caption", "label", "relation"}; `label` is 0 or 1 (below
    `num_relations`).

    A split is the file `<split>.jsonl`, in the root or in `splits/<variant>/`.

    Args:
        image_roots: folders that hold the pictures, searched in order; None: `<root>/images`.
        variant: `random` or `zeroshot`, where both are there.
        num_relations: number of label values.
        kwargs: see PairDataModule.
    """

    LAYOUT = """\
  <root>/{train,dev,test}.jsonl    (or <root>/splits/<variant>/{train,dev,test}.jsonl)
  <root>/images/*.jpg              (or the folders of data.image_roots)
  a line: {"image": "000000000009.jpg", "caption": "...", "label": 0 or 1, "relation": "..."}"""
    DOWNLOAD = """\
  https://github.com/cambridgeltl/visual-spatial-reasoning, folder data/splits (random: 7,680 + 1,097 + 2,195 lines,
  zeroshot: 3,489 + 340 + 1,222). Pictures: COCO's train2017.zip (18 GB) and val2017.zip (1 GB), https://cocodataset.org/#download.
  Licence: Apache-2.0; each picture its own."""

    def __init__(
        self,
        *,
        image_roots: Sequence[str | Path] | None = None,
        variant: str = "random",
        num_relations: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if variant not in _VARIANTS:
            raise UserError(f"data.variant={variant} is not one of {', '.join(_VARIANTS)}.")
        self.image_roots = [self.root / "images"] if image_roots is None else [Path(root) for root in image_roots]
        self.variant = variant
        self.num_relations = num_relations

    def _read_split(self, split: str) -> PairIndex:
        for root in self.image_roots:
            if not root.is_dir():
                raise self._layout_error(f"data.image_roots: {root} is not a folder.")
        file = self._file(split)
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for number, record in read_jsonl(file):
            found = read_statement(record, "caption", self.num_relations)
            if not isinstance(record.get("image"), str):
                found = "no text 'image'"
            if isinstance(found, str):
                defects.append(BadRecord(f"{file}, line {number}", found))
            else:
                statements.append(Statement((record["image"],), *found, relation=str(record.get("relation") or "")))
        lines = len(statements) + len(defects)
        if found := release(split, lines):
            log.info("%s: %s lines, as in %s", file, f"{lines:,}", found)
        return build_index(statements, self.image_roots, file, defects)

    def _file(self, split: str) -> Path:
        name = f"{split}.jsonl"
        candidates = [self.root / name]
        candidates += [self.root / folder / self.variant / name for folder in ("splits", "data/splits")]
        for path in candidates:
            if path.is_file():
                return path
        raise self._layout_error(f"{candidates[0]} is not there.")


def release(split: str, count: int) -> str | None:
    """Which release of VSR has so many lines in a split; None: no official one."""
    counts = ((name, dict(zip(("train", "dev", "test"), sizes, strict=True))) for name, sizes in _RELEASES.items())
    return next((name for name, sizes in counts if sizes.get(split) == count), None)
