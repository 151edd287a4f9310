"""Test sets of captions with a fluent false one each: what SugarCrepe and ARO share."""

from pathlib import Path
from typing import Any

from crossvit.data.coco import Twin, read_captions, training_captions
from crossvit.data.vlr import StatementDataModule
from crossvit.errors import UserError


class NegatedDataModule(StatementDataModule):
    """An item becomes two statements in a row: its caption, true, and its negative, false. `twins` gives the items back.

    Args:
        captions_root: a COCO folder, whose training captions a text-only baseline learns from; None: there is no such baseline.
        kwargs: see PairDataModule.

    Raises:
        UserError: see CrossViTDataModule; also `captions_root` without training captions.
    """

    def __init__(self, *, captions_root: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
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

    def _files(self, *files: Path) -> list[Path]:
        """The annotation files, and that of the baseline."""
        return [*files] if self.captions_root is None else [*files, training_captions(self.captions_root)]
