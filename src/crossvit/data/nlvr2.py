"""NLVR2: sentences about two photographs."""

from pathlib import Path
from typing import Any

from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import read_jsonl
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.held_out import HeldOut
from crossvit.data.vlr import Statement, StatementDataModule, build_index, read_statement

PARTS = ("balanced", "unbalanced")


class NLVR2DataModule(StatementDataModule):
    """NLVR2 (Suhr et al. 2019). `image` of a batch is (B, 2, 3, H, W). Training pictures lie in numbered folders.

    Splits: train, dev, test1, test2, and of dev and test1 the balanced and unbalanced parts (`balanced_dev`, ...). The statements of a
    sentence are those that agree in the identifier but for the pair, as the official script counts consistency.

    Args:
        held_out: share of the directories of `train` that form the split `held_out` instead. Whole directories: the pairs of a directory
            share photographs.
        kwargs: see PairDataModule.
    """

    LAYOUT = """\
  <root>/data/{train,dev,test1}.json    (or nlvr2/data/; one object a line: sentence, label, identifier, and in train
                                         directory)
  <root>/data/balanced/balanced_{dev,test1}.json    <root>/data/unbalanced/unbalanced_{dev,test1}.json    (if asked for)
  <root>/images/train/<directory>/<identifier less its last part>-img{0,1}.png
  <root>/images/{dev,test1}/<identifier less its last part>-img{0,1}.png    (or <root>/{dev,test1}/)"""
    DOWNLOAD = """\
  https://github.com/lil-lab/nlvr, folder nlvr2/data (json) and, for the pictures, the form linked in nlvr2/README.md;
  86,373 + 6,982 + 6,967 statements. Licence: annotations CC BY 4.0; pictures for research alone."""

    def __init__(self, *, held_out: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held_out = HeldOut(held_out)

    def _read_split(self, split: str) -> PairIndex:
        source = self.held_out.source(split)
        kind, _, part = source.rpartition("_")
        inside = f"{kind}/{source}.json" if kind in PARTS else f"{source}.json"
        candidates = [self.root / folder / inside for folder in ("data", "nlvr2/data")]
        file = next((path for path in candidates if path.is_file()), None)
        folder = part if kind in PARTS else source
        places = [self.root / "images" / folder, self.root / folder]
        images = next((path for path in places if path.is_dir()), None)
        if file is None or images is None:
            raise self._layout_error(f"{candidates[0] if file is None else places[0]} is not there.")
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        records = list(read_jsonl(file))
        kept = self.held_out.groups(split, {str(record.get("directory")) for _, record in records})
        for number, record in records:
            found = read_statement(record, "sentence")
            identifier = record.get("identifier")
            if not isinstance(identifier, str) or identifier.count("-") != 3:
                found = f"identifier {identifier!r} is not 'split-set-pair-sentence'"
            if isinstance(found, str):
                defects.append(BadRecord(f"{file}, line {number}", found))
            elif str(record.get("directory")) in kept:
                of_split, of_set, _, of_sentence = identifier.split("-")
                sentence = f"{of_split}-{of_set}-{of_sentence}"
                statements.append(Statement(_pictures(record), *found, sentence=sentence))
        return build_index(statements, [images], file, defects)


def _pictures(record: dict) -> tuple[str, ...]:
    pair = record["identifier"].rsplit("-", 1)[0]
    folder = Path(str(record["directory"])) if "directory" in record else Path()
    return tuple(str(folder / f"{pair}-img{k}.png") for k in (0, 1))
