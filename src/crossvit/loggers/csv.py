"""metrics.csv of a stage, which a resumed run continues.

Lightning's CSVLogger deletes the file it finds: the first half of a resumed run is lost, and under spawned processes the whole of it, for
the parent process opens the log again once they are done.
"""

import csv
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class CSVLogger(Logger):
    """Appends to `<save_dir>/metrics.csv`: one row a call, a column `step`, an empty cell where a row does not hold a figure.

    Rows of the file at or behind the first step that is logged belong to a run that was cut off there, and are replaced. A row of that very
    step stays where it holds other figures and nothing behind it is repeated: a run that was cut off in a validation goes on with that.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._opened = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.path.parent.name

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._rows.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml in the run directory holds them."""

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        earlier: list[dict[str, Any]] = []
        columns = list(dict.fromkeys([*self._columns, *(name for row in self._rows for name in row)]))
        if not self._opened:
            earlier = list(takewhile(lambda row: _before(row, self._rows[0]), _read(self.path)))
            columns = list(dict.fromkeys([*(earlier[0] if earlier else ()), *columns]))
        elif columns != self._columns:
            earlier = _read(self.path)
        afresh = not self._opened or columns != self._columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w" if afresh else "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            if afresh:
                writer.writeheader()
                writer.writerows(earlier)
            writer.writerows(self._rows)
        self._columns, self._rows, self._opened = columns, [], True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: value for name, value in row.items() if name is not None} for row in csv.DictReader(stream)]


def _before(row: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    if first["step"] is None or not str(row.get("step", "")).isdigit():
        return False
    again = {name for name, value in row.items() if value != ""} & first.keys() - {"step", "epoch"}
    return int(row["step"]) < first["step"] or (int(row["step"]) == first["step"] and not again)
