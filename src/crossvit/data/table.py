"""Pictures and captions of one's own, in a csv, tsv or jsonl file."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.captions import CaptionDataModule, CaptionIndex, caption_index
from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_jsonl
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.held_out import HELD_OUT, HeldOut
from crossvit.data.reading.pictures import Pictures
from crossvit.data.vlr import Statement, StatementDataModule, build_index, read_statement
from crossvit.errors import UserError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LAYOUT = """\
  <root>/{train,val,test}.csv    (data.annotations; or .tsv, .jsonl; or one file with data.split_column or data.held_out)
  its first line, or the keys of a json line: image, caption%s    (data.image_column, data.caption_column%s)
  the pictures lie under <root>, or data.images_root"""


class Row(NamedTuple):
    """One picture (a path relative to the folder of the pictures) and its captions."""

    image: str
    captions: list[str]


class Table:
    """Where the records of a split are, and how they name pictures.

    Args:
        root: folder of the dataset.
        annotations: file below it; `{split}` stands for the split's name.
        images_root: folder that the paths of pictures start from; None: `root`.
        held_out: the split taken out of `train`.
        split_column: the column that names each row's split, in one file for all; None: `annotations` tells them apart.
    """

    def __init__(
        self,
        root: Path,
        annotations: str,
        images_root: str | Path | None,
        held_out: HeldOut,
        split_column: str | None = None,
    ) -> None:
        self.root = root
        self.annotations = annotations
        self.images_root = root if images_root is None else Path(images_root)
        self.held_out = held_out
        self.split_column = split_column

    def file(self, split: str) -> Path:
        """The file that holds a split. Raises UserError for a split that cannot be told apart."""
        source = self.held_out.source(split)
        if "{split}" not in self.annotations and self.split_column is None and source != "train":
            raise UserError(
                f"data.annotations={self.annotations} names no {{split}}, so there is no split '{split}': "
                f"set data.split_column, or data.held_out=0.1 and take the split '{HELD_OUT}'."
            )
        return self.root / self.annotations.replace("{split}", source)

    def rows(self, file: Path, split: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, record) of every row of a split.

        Raises:
            UserError: an ending that is not known, a column is missing, or the split has no row.
        """
        wanted = [*columns, *([self.split_column] if self.split_column is not None else [])]
        source, found = self.held_out.source(split), set()
        for number, record in _read(file, wanted):
            if self.split_column is not None:
                found.add(record.get(self.split_column))
                if record.get(self.split_column) != source:
                    continue
            yield number, record
        if self.split_column is not None and source not in found:
            names = ", ".join(sorted(map(str, found)))
            raise UserError(
                f"{file}: no row of split '{source}' in column '{self.split_column}' (its splits: {names})."
            )

    def row(self, record: Mapping[str, Any], image_column: str, caption_column: str) -> Row | str:
        """A record, or what is wrong with it. A caption may be a list of them."""
        image, captions = record.get(image_column), record.get(caption_column)
        if not isinstance(image, str) or not image:
            return f"no text '{image_column}'"
        captions = [captions] if isinstance(captions, str) else captions
        if (
            not isinstance(captions, list)
            or not captions
            or not all(isinstance(c, str) and c.strip() for c in captions)
        ):
            return f"no text '{caption_column}'"
        if os.path.isabs(image):
            start = os.path.join(os.path.abspath(self.images_root), "")
            if not image.startswith(start):
                return f"{image} does not lie under data.images_root={self.images_root}"
            image = image.removeprefix(start)
        return Row(os.path.normpath(image), captions)  # one name for one file

    def index(
        self, names: list[str], image_of: np.ndarray, texts: list[str], file: Path, defects: list[BadRecord]
    ) -> CaptionIndex:
        """Index captions (c,) by the position of their picture in `names`."""
        if not self.images_root.is_dir():
            raise UserError(f"data.images_root: {self.images_root} is not a folder.")
        pictures = Pictures(names, [self.images_root])
        return caption_index(pictures, np.arange(len(names)), image_of, texts, files=[file], defects=defects)


class CaptionTableDataModule(CaptionDataModule):
    """A table of pictures and captions. Rows of one picture are its captions.

    Args:
        annotations: file of a split below the root, `.csv`, `.tsv` or `.jsonl`; `{split}` stands for its name.
        image_column, caption_column: names of the columns; a caption in jsonl may be a list of them.
        split_column: the column that names a row's split, in one file for all; None: `annotations` tells them apart.
        images_root: folder that the paths start from; None: `root`.
        held_out: share of the pictures of `train` that form the split `held_out` instead.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also a column or a split that is not there.
    """

    LAYOUT = _LAYOUT % ("", "")

    def __init__(
        self,
        *,
        annotations: str = "{split}.csv",
        image_column: str = "image",
        caption_column: str = "caption",
        split_column: str | None = None,
        images_root: str | Path | None = None,
        held_out: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = Table(self.root, annotations, images_root, HeldOut(held_out), split_column)
        self.columns = (image_column, caption_column)

    def _read_split(self, split: str) -> CaptionIndex:
        file = self.table.file(split)
        if not file.is_file():
            raise self._layout_error(f"{file} is not there.")
        defects: list[BadRecord] = []
        position: dict[str, int] = {}
        image_of: list[int] = []
        texts: list[str] = []
        for number, record in self.table.rows(file, split, self.columns):
            found = self.table.row(record, *self.columns)
            if isinstance(found, str):
                defects.append(BadRecord(f"{file}, line {number}", found))
            elif self.table.held_out.keeps(split, found.image):
                place = position.setdefault(found.image, len(position))
                image_of += [place] * len(found.captions)
                texts += found.captions
        return self.table.index(list(position), np.array(image_of, dtype=np.int64), texts, file, defects)


class LabelledTableDataModule(StatementDataModule):
    """A table of pictures, captions and whether each is true: statements, as in VSR.

    Args:
        label_column: name of the column with 0 or 1, true or false, or an integer below `num_relations`.
        num_relations: number of label values.
        kwargs: see PairDataModule. The others: see CaptionTableDataModule.

    Raises:
        UserError: see CaptionTableDataModule.
    """

    LAYOUT = _LAYOUT % (", label", ", data.label_column")

    def __init__(
        self,
        *,
        annotations: str = "{split}.csv",
        image_column: str = "image",
        caption_column: str = "caption",
        label_column: str = "label",
        split_column: str | None = None,
        images_root: str | Path | None = None,
        held_out: float = 0.0,
        num_relations: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = Table(self.root, annotations, images_root, HeldOut(held_out), split_column)
        self.columns = (image_column, caption_column, label_column)
        self.num_relations = num_relations

    def _read_split(self, split: str) -> PairIndex:
        file = self.table.file(split)
        if not file.is_file():
            raise self._layout_error(f"{file} is not there.")
        image_column, caption_column, label_column = self.columns
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for number, record in self.table.rows(file, split, self.columns):
            found = self.table.row(record, image_column, caption_column)
            labelled = {"caption": record.get(caption_column), "label": _integer(record.get(label_column))}
            statement = found if isinstance(found, str) else read_statement(labelled, "caption", self.num_relations)
            if isinstance(statement, str):
                defects.append(BadRecord(f"{file}, line {number}", statement))
            elif self.table.held_out.keeps(split, found.image):
                statements.append(Statement((found.image,), *statement))
        if not self.table.images_root.is_dir():
            raise UserError(f"data.images_root: {self.table.images_root} is not a folder.")
        return build_index(statements, [self.table.images_root], file, defects)


def _integer(value: Any) -> Any:
    """Cells of a csv are texts."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.0*)?\s*", value):
        return int(float(value))  # a column with gaps is written as 1.0
    return value


def _read(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".jsonl":
        yield from read_jsonl(file)
        return
    if file.suffix not in _SEPARATORS:
        raise UserError(f"data.annotations: {file.name} must end in {', '.join([*_SEPARATORS, '.jsonl'])}.")
    with open(file, encoding="utf-8-sig", newline="") as lines:  # some programs begin a table with a byte order mark
        reader = csv.reader(lines, delimiter=_SEPARATORS[file.suffix], strict=True)
        try:
            header = next(reader, [])
            absent = [column for column in columns if column not in header]
            if absent:
                raise UserError(
                    f"{file}: no column '{absent[0]}' (it has {', '.join(header)}): set the key of data.*_column that names it."
                )
            places = [(column, header.index(column)) for column in columns]
            for cells in reader:
                if cells:
                    yield reader.line_num, {c: cells[place] if place < len(cells) else None for c, place in places}
        except UnicodeDecodeError:
            raise UserError(f"{file}: not UTF-8 text. Save it as UTF-8.") from None
        except csv.Error as error:
            raise UserError(
                f"{file}, line {reader.line_num}: {error}. A cell that begins with a quote ends with one, and quotes within are doubled; "
                "jsonl needs no such care."
            ) from None
