"""SugarCrepe: captions of COCO photographs and fluent false ones that add, replace or swap one thing."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossvit.data.negated import NegatedDataModule
from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_json
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.vlr import Statement, build_index
from crossvit.errors import UserError

SIZES = {
    "add_att": 692,
    "add_obj": 2_062,
    "replace_att": 788,
    "replace_obj": 1_652,
    "replace_rel": 1_406,
    "swap_att": 666,
    "swap_obj": 245,  # a mirror has 246
}
"""Items of each published file."""
KINDS = tuple(SIZES)

log = logging.getLogger(__name__)


class SugarCrepeDataModule(NegatedDataModule):
    """SugarCrepe (Hsieh et al. 2023), a test set alone. The relation is the file that an item comes from; a file may be empty.

    Args:
        image_roots: folders that hold the pictures (COCO val2017), searched in order; None: `<root>/images`.
        kwargs: see NegatedDataModule.
    """

    LAYOUT = """\
  <root>/{add_att,add_obj,replace_att,replace_obj,replace_rel,swap_att,swap_obj}.json    (or in <root>/data/)
  <root>/images/*.jpg              (or the folders of data.image_roots: COCO's val2017)
  a file: {"0": {"filename": "000000580294.jpg", "caption": "...", "negative_caption": "..."}, ...}"""
    DOWNLOAD = """\
  https://github.com/RAIVNLab/sugar-crepe, folder data (7,511 items). Pictures: COCO's val2017.zip (1 GB),
  https://cocodataset.org/#download. Licence: MIT; each picture its own."""

    def __init__(self, *, image_roots: Sequence[str | Path] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_roots = [self.root / "images"] if image_roots is None else [Path(root) for root in image_roots]

    def _read_split(self, split: str) -> PairIndex:
        for root in self.image_roots:
            if not root.is_dir():
                raise self._layout_error(f"data.image_roots: {root} is not a folder.")
        folder = self.root / "data" if (self.root / "data").is_dir() else self.root
        files = [folder / f"{kind}.json" for kind in KINDS]
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for kind, file in zip(KINDS, files, strict=True):
            if not file.is_file():
                raise self._layout_error(f"{file} is not there.")
            content = read_json(file)
            if not isinstance(content, dict):
                raise UserError(f"{file}: expected an object of items as in SugarCrepe.")
            for key, item in content.items():
                fields = ("filename", "caption", "negative_caption")
                values = [item.get(field) if isinstance(item, dict) else None for field in fields]
                if not all(isinstance(value, str) for value in values):
                    defects.append(BadRecord(f"{file}: {key}", f"no texts {', '.join(fields)}"))
                    continue
                picture, caption, negative = values
                statements += [Statement((picture,), caption, 1, kind), Statement((picture,), negative, 0, kind)]
        index = build_index(statements, self.image_roots, files[0], defects)
        index.files = self._files(*files)
        items = Counter(statement.relation for statement in statements[::2])
        differing = [f"{kind} {items[kind]} (published {size})" for kind, size in SIZES.items() if items[kind] != size]
        log.info("SugarCrepe: %s", ", ".join(differing) or "every file as published")
        return index
