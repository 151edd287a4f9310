"""SugarCrepe: captions of COCO photographs and fluent false ones that add, replace or swap one thing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossvit.data.annotations import read_json
from crossvit.data.bad_samples import BadRecord
from crossvit.data.coco import Twin, read_captions, training_captions
from crossvit.data.pairs import PairIndex
from crossvit.data.vlr import Statement, StatementDataModule, build_index
from crossvit.errors import UserError

KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class SugarCrepeDataModule(StatementDataModule):
    """SugarCrepe (Hsieh et al. 2023), a test set alone. An item becomes two statements: its caption, true, and its negative, false.

    `twins` gives the items back; the relation is the file they come from. A file may be empty.

    Args:
        image_roots: folders that hold the pictures (COCO val2017), searched in order; None: `<root>/images`.
        captions_root: a COCO folder, whose training captions a text-only baseline learns from; None: there is no such baseline.
        kwargs: see PairDataModule.

    Raises:
        UserError: see CrossViTDataModule; also `captions_root` without training captions.
    """

    LAYOUT = """\
  <root>/{add_att,add_obj,replace_att,replace_obj,replace_rel,swap_att,swap_obj}.json    (or in <root>/data/)
  <root>/images/*.jpg              (or the folders of data.image_roots: COCO's val2017)
  a file: {"0": {"filename": "000000580294.jpg", "caption": "...", "negative_caption": "..."}, ...}"""

    def __init__(
        self,
        *,
        image_roots: Sequence[str | Path] | None = None,
        captions_root: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_roots = [self.root / "images"] if image_roots is None else [Path(root) for root in image_roots]
        self.captions_root = None if captions_root is None else Path(captions_root)

    def twins(self, split: str) -> list[Twin]:
        """Every item; `image_id` is the picture's position in `image_loader`."""
        index = self.index(split)
        texts, rows, kinds = index.captions.texts, index.rows.tolist(), index.relations
        return [Twin(rows[i], texts[i], texts[i + 1], kinds[i]) for i in range(0, len(rows), 2)]

    def training_texts(self) -> list[str]:
        """Captions that people have written of other pictures.

        Raises:
            UserError: `captions_root` is None, or its file is not of COCO's form.
        """
        if self.captions_root is None:
            raise UserError("data.captions_root is null: the text-only baseline learns from a COCO folder's captions.")
        return list(read_captions(training_captions(self.captions_root), self.captions_root).captions.texts)

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
        index.files = files if self.captions_root is None else [*files, training_captions(self.captions_root)]
        return index
