"""Winoground: two captions of the same words, and the two photographs that tell them apart."""

from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_jsonl
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.vlr import Statement, StatementDataModule, build_index

_KEYS = ("caption_0", "caption_1", "image_0", "image_1")


class WinogroundDataModule(StatementDataModule):
    """Winoground (Thrush et al. 2022), a test set alone. An example becomes four statements: each caption of each picture.

    `quads` gives the examples back; the relation is the example's tag. The arguments are those of PairDataModule.
    """

    LAYOUT = """\
  <root>/examples.jsonl    (or in <root>/data/; one object a line: caption_0, caption_1, image_0, image_1, collapsed_tag)
  <root>/images/<image_0>.png, <image_1>.png    (images.zip, unpacked there or beside examples.jsonl)"""
    DOWNLOAD = """\
  https://huggingface.co/datasets/facebook/winoground (an account, and consent to its terms): data/examples.jsonl, data/images.zip;
  400 examples, 367 MB. Licence: Meta's for this dataset, research alone, in its files."""

    def _read_split(self, split: str) -> PairIndex:
        files = [self.root / "examples.jsonl", self.root / "data" / "examples.jsonl"]
        file = next((path for path in files if path.is_file()), None)
        places = [self.root / "images", self.root / "data" / "images"]
        images = next((path for path in places if path.is_dir()), None)
        if file is None or images is None:
            raise self._layout_error(f"{files[0] if file is None else places[0]} is not there.")
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for number, record in read_jsonl(file):
            absent = [key for key in _KEYS if not isinstance(record.get(key), str)]
            if absent:
                defects.append(BadRecord(f"{file}, line {number}", f"no text {absent[0]!r}"))
                continue
            tag = str(record.get("collapsed_tag") or record.get("tag") or "")
            for i in range(2):
                picture = (_file_name(record[f"image_{i}"]),)
                statements += [Statement(picture, record[f"caption_{j}"], int(i == j), tag) for j in range(2)]
        return build_index(statements, [images], file, defects)


def _file_name(image: str) -> str:
    """The release names pictures without their ending."""
    return image if "." in image else f"{image}.png"
