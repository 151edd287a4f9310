"""NLVR2: sentences about two photographs."""

from pathlib import Path

from crossvit.data.annotations import read_jsonl
from crossvit.data.bad_samples import BadRecord
from crossvit.data.pairs import PairIndex
from crossvit.data.vlr import Statement, StatementDataModule, build_index, read_statement


class NLVR2DataModule(StatementDataModule):
    """NLVR2 (Suhr et al. 2019). `image` of a batch is (B, 2, 3, H, W). Training pictures lie in numbered folders.

    The arguments are those of PairDataModule.
    """

    LAYOUT = """\
  <root>/data/{train,dev,test1}.json    (or nlvr2/data/; one object a line: sentence, label, identifier, and in train
                                         directory)
  <root>/images/train/<directory>/<identifier less its last part>-img{0,1}.png
  <root>/images/{dev,test1}/<identifier less its last part>-img{0,1}.png"""

    def _read_split(self, split: str) -> PairIndex:
        candidates = [self.root / folder / f"{split}.json" for folder in ("data", "nlvr2/data")]
        file = next((path for path in candidates if path.is_file()), None)
        images = self.root / "images" / split
        if file is None or not images.is_dir():
            raise self._layout_error(f"{candidates[0] if file is None else images} is not there.")
        statements: list[Statement] = []
        defects: list[BadRecord] = []
        for number, record in read_jsonl(file):
            found = read_statement(record, "sentence")
            identifier = record.get("identifier")
            if not isinstance(identifier, str) or "-" not in identifier:
                found = f"identifier {identifier!r} is not 'split-set-pair-sentence'"
            if isinstance(found, str):
                defects.append(BadRecord(f"{file}, line {number}", found))
            else:
                statements.append(Statement(_pictures(record), *found))
        return build_index(statements, [images], file, defects)


def _pictures(record: dict) -> tuple[str, ...]:
    pair = record["identifier"].rsplit("-", 1)[0]
    folder = Path(str(record["directory"])) if "directory" in record else Path()
    return tuple(str(folder / f"{pair}-img{k}.png") for k in (0, 1))
