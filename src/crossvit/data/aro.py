"""ARO: do attributes, relations and the order of words matter to the model?"""

from typing import Any

from crossvit.data.negated import NegatedDataModule
from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_json
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.vlr import Statement, build_index
from crossvit.errors import UserError

PARTS = ("relation", "attribution")
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


class ARODataModule(NegatedDataModule):
    """Visual Genome Relation and Attribution of ARO (Yuksekgonul et al. 2023), a test set alone.

    The picture of an item is the part of a photograph that its box cuts out. Every split is the one file; the relation is `part`.

    Args:
        part: `relation` or `attribution`.
        kwargs: see NegatedDataModule.

    Raises:
        UserError: see NegatedDataModule; also another part.
    """

    LAYOUT = """\
  <root>/visual_genome_{relation,attribution}.json    (data.part)
  <root>/images/*.jpg                                 (of Visual Genome)
  a file: [{"image_path": "...", "bbox_x": 0, "bbox_y": 0, "bbox_w": 9, "bbox_h": 9, "true_caption": "...", "false_caption": "..."}, ...]"""
    DOWNLOAD = """\
  https://github.com/mertyg/vision-language-models-are-bows: dataset_zoo/aro_datasets.py names the files (visual_genome_relation.json,
  visual_genome_attribution.json, vgr_vga_images.zip); 23,937 + 28,748 items.
  Licence: MIT; pictures of Visual Genome CC BY 4.0."""

    def __init__(self, *, part: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if part not in PARTS:
            raise UserError(f"data.part={part} is not one of {', '.join(PARTS)}.")
        self.part = part

    def _read_split(self, split: str) -> PairIndex:
        file, images = self.root / f"visual_genome_{self.part}.json", self.root / "images"
        if not file.is_file() or not images.is_dir():
            raise self._layout_error(f"{file if not file.is_file() else images} is not there.")
        items = read_json(file)
        if not isinstance(items, list):
            raise UserError(f"{file}: expected a list of items as in ARO.")
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for number, item in enumerate(items):
            texts = [item.get(key) if isinstance(item, dict) else None for key in ("true_caption", "false_caption")]
            box = tuple(item.get(key) for key in _BOX) if isinstance(item, dict) else ()
            if not all(isinstance(text, str) for text in (*texts, item.get("image_path") if box else None)):
                defects.append(BadRecord(f"{file}: [{number}]", "no texts image_path, true_caption, false_caption"))
            elif not all(isinstance(side, int | float) for side in box):
                defects.append(BadRecord(f"{file}: [{number}]", f"no numbers {', '.join(_BOX)}"))
            else:
                box = tuple(round(side) for side in box)
                statements += [
                    Statement((item["image_path"],), text, label, self.part, box=box)
                    for text, label in zip(texts, (1, 0), strict=True)
                ]
        index = build_index(statements, [images], file, defects)
        index.files = self._files(file)
        return index
