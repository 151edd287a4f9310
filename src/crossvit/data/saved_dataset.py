"""Datasets of the Hugging Face library, as its `save_to_disk` leaves them."""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from crossvit.data.captions import CaptionDataModule, CaptionIndex, caption_index
from crossvit.data.reading.annotations import read_json
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample, decode_bytes, read_picture
from crossvit.data.reading.held_out import HeldOut
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import Pictures
from crossvit.errors import UserError


class ArrowRows:
    """The rows of several Arrow files (streams), mapped into memory: processes share them, and pickling passes on the names alone.

    Args:
        files: the files, in order.

    Raises:
        UserError: pyarrow is not installed, or a file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._table = None

    @property
    def table(self):
        """The `pyarrow.Table` of all rows."""
        if self._table is None:
            arrow = _pyarrow()
            parts = []
            for file in self.files:
                try:
                    parts.append(arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all())
                except (OSError, arrow.ArrowInvalid) as error:
                    raise UserError(f"{file}: not an Arrow stream ({error}). Save the dataset anew.") from None
            self._table = arrow.concat_tables(parts)
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_table": None}


class ArrowPictures(Pictures):
    """Pictures in a column of bytes (with the path where there are none) of a saved dataset.

    Args:
        rows: the files.
        column: name of the column, of {"bytes", "path"}.
        chosen: int64 (n,): the rows that are meant.
    """

    def __init__(self, rows: ArrowRows, column: str, chosen: np.ndarray) -> None:
        super().__init__((), (Path(),))
        self.arrow = rows
        self.column = column
        self.chosen = chosen
        self.names = PackedStrings(f"row {row}" for row in chosen.tolist())
        self._starts: list[int] | None = None

    def path(self, position: int) -> str:
        """A name for a picture in messages: file and row."""
        return f"{self.arrow.files[0].parent}, row {self.chosen[position]}"

    def missing(self) -> list[BadRecord]:
        """Rows without a picture."""
        empty = [i for i, size in enumerate(self.sizes().tolist()) if size < 0]
        return [BadRecord(self.path(position), "no picture in this row") for position in empty]

    def sizes(self) -> np.ndarray:
        """Sizes in bytes, -1 where a row has no picture, int64."""
        compute = _pyarrow().compute
        column = self.arrow.table[self.column]
        bytes_, paths = (compute.struct_field(column, name) for name in ("bytes", "path"))
        sizes = compute.fill_null(compute.binary_length(bytes_), -1).to_numpy().astype(np.int64)[self.chosen]
        for position in np.flatnonzero(sizes < 0).tolist():
            path = paths[int(self.chosen[position])].as_py()
            if path and Path(path).is_file():
                sizes[position] = Path(path).stat().st_size
        return sizes

    def encoded(self, position: int) -> bytes:
        """The content of a picture's file."""
        row = int(self.chosen[position])
        chunks = self.arrow.table[self.column].chunks
        if self._starts is None:
            self._starts = [0, *accumulate(len(chunk) for chunk in chunks)]
        place = bisect.bisect_right(self._starts, row) - 1
        picture = chunks[place][row - self._starts[place]].as_py()
        if not picture or not (picture["bytes"] or picture["path"]):
            raise BadSample(self.path(position), "no picture in this row")
        if picture["bytes"]:
            return picture["bytes"]
        return read_picture(picture["path"])

    def _decode(self, position: int, min_side: int | None = None) -> Tensor:
        return decode_bytes(self.encoded(position), self.path(position), min_side)


class SavedDatasetDataModule(CaptionDataModule):
    """A `Dataset` or `DatasetDict` of the library `datasets` on disk, read with pyarrow; a row is a picture with its captions.

    Args:
        image_column: a column of type Image.
        caption_column: a column of texts, or of lists of texts.
        held_out: share of the rows of `train` that form the split `held_out` instead.
        kwargs: see CaptionDataModule.

    Raises:
        UserError: see CaptionDataModule; also a column that is not there, and pyarrow not installed.
    """

    LAYOUT = """\
  <root>/dataset_dict.json, <root>/{train,val,test}/{state.json,data-*.arrow}    (DatasetDict.save_to_disk; names of splits as saved)
  or <root>/{state.json,data-*.arrow}    (Dataset.save_to_disk: split train, with data.held_out)
  Parquet files of the hub become this by datasets.load_dataset(...).save_to_disk(<root>)."""

    def __init__(
        self, *, image_column: str = "image", caption_column: str = "caption", held_out: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.image_column = image_column
        self.caption_column = caption_column
        self.held_out = HeldOut(held_out)

    def _read_split(self, split: str) -> CaptionIndex:
        folder = self._folder(self.held_out.source(split))
        state = read_json(folder / "state.json")
        try:
            files = [folder / entry["filename"] for entry in state["_data_files"]]
            chosen_rows = state.get("_indices_data_files")
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / 'state.json'}: not the state of a saved dataset.") from None
        if chosen_rows:
            raise UserError(f"{folder}: a dataset with an index of rows; save it anew after flatten_indices().")
        rows = ArrowRows(files)
        self._check_columns(folder, rows)
        kept = np.array([i for i in range(len(rows.table)) if self.held_out.keeps(split, str(i))], dtype=np.int64)
        captions = rows.table[self.caption_column].take(kept) if len(kept) < len(rows.table) else None
        captions = (rows.table[self.caption_column] if captions is None else captions).to_pylist()
        chosen: list[int] = []
        image_of: list[int] = []
        texts: list[str] = []
        defects: list[BadRecord] = []
        for row, found in zip(kept.tolist(), captions, strict=True):
            found = [found] if isinstance(found, str) else found
            if not isinstance(found, list) or not found or not all(isinstance(c, str) and c.strip() for c in found):
                defects.append(BadRecord(f"{folder}, row {row}", f"no text '{self.caption_column}'"))
                continue
            image_of += [len(chosen)] * len(found)
            texts += found
            chosen.append(row)
        pictures = ArrowPictures(rows, self.image_column, np.array(chosen, dtype=np.int64))
        files = [folder / "state.json"]  # it holds the dataset's own fingerprint
        image_of = np.array(image_of, dtype=np.int64)
        return caption_index(pictures, np.arange(len(chosen)), image_of, texts, files=files, defects=defects)

    def _folder(self, split: str) -> Path:
        if (self.root / "dataset_dict.json").is_file():
            content = read_json(self.root / "dataset_dict.json")
            splits = content.get("splits", []) if isinstance(content, dict) else []
            if split not in splits:
                raise UserError(f"{self.root}: no split '{split}' was saved (its splits: {', '.join(splits)}).")
            return self.root / split
        if not (self.root / "state.json").is_file():
            raise self._layout_error(f"{self.root / 'dataset_dict.json'} is not there, nor is state.json.")
        if split != "train":
            raise UserError(
                f"{self.root} is one dataset without splits: set data.held_out=0.1 and take the split 'held_out'."
            )
        return self.root

    def _check_columns(self, folder: Path, rows: ArrowRows) -> None:
        arrow, schema = _pyarrow(), rows.table.schema
        for key, column in (("image_column", self.image_column), ("caption_column", self.caption_column)):
            if column not in schema.names:
                raise UserError(f"{folder}: no column '{column}' (it has {', '.join(schema.names)}): set data.{key}.")
        kind = schema.field(self.image_column).type
        if not arrow.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
            raise UserError(
                f"{folder}: column '{self.image_column}' is {kind}, not of type Image: cast_column it before saving."
            )


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.compute  # not loaded by the line above
        import pyarrow.ipc
    except ImportError:
        raise UserError("data: saved datasets are read with pyarrow: pip install 'crossvit[arrow]'") from None
    return pyarrow
