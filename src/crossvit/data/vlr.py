"""Visual-linguistic reasoning: statements that are true or false of a picture, or of two."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.datasets import Captions, ImageDataset
from crossvit.data.loader import EpochLoader
from crossvit.data.pairs import PairDataModule, PairIndex
from crossvit.data.reading.annotations import text_id
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.packed import PackedStrings
from crossvit.data.reading.pictures import CroppedPictures, Pictures

_TRUTH = {"true": 1, "false": 0}


class Statement(NamedTuple):
    """One statement: names of its picture or pictures (relative to a root), its text, its relation class and the kind
    of relation.

    sentence: a name that the statements of one sentence share; None: those of equal text do. box: the part of the picture that is meant,
    left, top, width, height in pixels; None: all of it.
    """

    pictures: tuple[str, ...]
    text: str
    label: int
    relation: str = ""
    sentence: str | None = None
    box: tuple[int, int, int, int] | None = None


class Quad(NamedTuple):
    """Two pictures and two captions; `captions[i]` is true of `pictures[j]` (positions in `image_loader`) exactly where i = j."""

    pictures: tuple[int, int]
    captions: tuple[str, str]
    kind: str


class StatementDataModule(PairDataModule):
    """Base of the datasets of statements. Training and evaluation yield `PairBatch` with `label`; each statement is one
    sample.

    Consistency (all pictures of a sentence right) is counted by `sentences`.
    """

    def image_loader(self, split: str) -> EpochLoader:
        """Every picture once, in order of its first statement: `ImageBatch(image, label = its position, index)`."""
        pictures = self._pictures(split, self._eval_transform)
        return self._eval_loader(
            split, ImageDataset(pictures, np.arange(len(pictures)), self._eval_transform), self.num_workers
        )

    def quads(self, split: str) -> list[Quad]:
        """Two captions by two pictures, as in Winoground: four statements in a row, where the first picture makes one of two captions true
        and the second the other. Statements that are not laid out so belong to none.
        """
        index, found, start = self.index(split), [], 0
        texts, labels, rows = index.captions.texts, index.labels, index.rows
        while rows.ndim == 1 and start + 4 <= len(labels):
            (a, a2, b, b2), four = rows[start : start + 4].tolist(), range(start, start + 4)
            first, second, first2, second2 = (texts[i] for i in four)
            alike = (a, b, first, second) == (a2, b2, first2, second2)
            if alike and a != b and labels[start : start + 4].tolist() == [1, 0, 0, 1]:
                found.append(Quad((a, b), (first, second), index.relations[start]))
                start += 3
            start += 1
        return found

    def relations(self, split: str) -> list[str]:
        """The kind of relation of each sample, in order ("" where the data name none)."""
        return self.index(split).relations

    def sentences(self, split: str) -> np.ndarray:
        """int64 (n,), equal for the samples of one sentence, in order."""
        return self.index(split).sentence_ids

    def eval_loaders(self, split: str) -> EpochLoader:
        return self.pair_loader(split)


def read_statement(record: dict[str, Any], text_key: str, num_relations: int = 2) -> tuple[str, int] | str:
    """Text and label of a record, or what is wrong with it. Labels are integers below `num_relations`, or true / false
    as strings.
    """
    text, label = record.get(text_key), record.get("label")
    if not isinstance(text, str):
        return f"no text '{text_key}'"
    if isinstance(label, str):
        label = _TRUTH.get(label.lower())
    if not isinstance(label, int) or not 0 <= label < num_relations:
        return f"label {record.get('label')!r} is not one of {num_relations} relations"
    return text, int(label)


def build_index(
    statements: Sequence[Statement], roots: Sequence[Path], file: Path, defects: list[BadRecord]
) -> PairIndex:
    """Index statements. Samples with the same pictures share an image id, the position of those pictures' first use."""
    keys = [[(name, statement.box) for name in statement.pictures] for statement in statements]
    position = {key: i for i, key in enumerate(dict.fromkeys(key for group in keys for key in group))}
    rows = np.array([[position[key] for key in group] for group in keys], dtype=np.int64)
    image_id: dict[tuple, int] = {}
    for group in keys:
        image_id.setdefault(tuple(group), len(image_id))
    labels = np.array([statement.label for statement in statements], dtype=np.int64)
    names = [name for name, _ in position]
    boxes = [box for _, box in position]
    if any(boxes):
        pictures = CroppedPictures(names, roots, np.array(boxes, dtype=np.int64))
    else:
        pictures = Pictures(names, roots)
    sentences = [text_id(s.text) if s.sentence is None else text_id(s.sentence) for s in statements]
    return PairIndex(
        pictures=pictures,
        rows=rows[:, 0] if rows.ndim == 2 and rows.shape[1] == 1 else rows,
        captions=Captions(PackedStrings(s.text for s in statements), np.arange(len(statements) + 1)),
        image_ids=np.array([image_id[tuple(group)] for group in keys], dtype=np.int64),
        counts={"samples": len(statements), "pictures": len(names)}
        | {f"label {value}": int(count) for value, count in _counted(labels)},
        labels=labels,
        relations=[statement.relation for statement in statements],
        sentence_ids=np.array(sentences, dtype=np.int64),
        files=[file],
        defects=defects,
    )


def _counted(labels: np.ndarray) -> Iterable[tuple[int, int]]:
    values, counts = np.unique(labels, return_counts=True)
    return zip(values.tolist(), counts.tolist(), strict=True)
