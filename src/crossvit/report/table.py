"""The result table: for every task a line of dataset x backbone along the chain, Acc@1 and Acc@5 in columns of their own."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from crossvit.errors import UserError
from crossvit.report.atomic import write_atomically
from crossvit.report.cells import ABSENT, CHAIN, HEADINGS, KEYS, NOT_MEASURED, SOURCE_TASKS, Cell
from crossvit.report.summary import Measurement, measurements

LEGEND = "In percent; [95 % interval], or ± standard deviation over seeds."
COLUMNS = ("Acc@1", "Acc@5")  # metrics with a column of their own
STACKED_TASK = 22
WRAPPED = {"Task": 30, "Candidates": 36}  # columns of a wide terminal whose text may be broken, and where


class Row(NamedTuple):
    """One line of the table."""

    row: str
    dataset: str
    backbone: str


class Line(NamedTuple):
    """A measurement of one row, or no measurement and the reason."""

    title: str
    row: Row | None
    found: Measurement | str


class Table:
    """Cells as a table that prints, and that is kept as markdown, csv and json.

    Args:
        cells: in any order; rows follow the chain imagenet, coco, vlr and then their first appearance.
        missing: why an entry is empty, by task or by (row, task); default "not measured yet".
    """

    def __init__(self, cells: Iterable[Cell], missing: Mapping[str | tuple[str, str], str] | None = None) -> None:
        self.cells = [_without_nan(cell) for cell in cells]
        self.missing = ABSENT | dict(missing or {})
        entries: dict[tuple[Row, str], list[Cell]] = {}
        for cell in self.cells:
            entries.setdefault((Row(cell.row, cell.dataset, cell.backbone), cell.task), []).append(cell)
        self._entries = {key: measurements(found) for key, found in entries.items()}

    @cached_property
    def rows(self) -> list[Row]:
        """In order of the chain."""
        place: dict[Row, int] = {}
        for cell in self.cells:
            stage = CHAIN.index(cell.stage) if cell.stage in CHAIN else len(CHAIN)
            place.setdefault(Row(cell.row, cell.dataset, cell.backbone), stage)
        return sorted(place, key=place.__getitem__)

    @cached_property
    def tasks(self) -> list[str]:
        """The source's two tasks, then the known tasks that were measured, then others as they came."""
        measured = dict.fromkeys(cell.task for cell in self.cells)
        return list(dict.fromkeys([*SOURCE_TASKS, *(task for task in HEADINGS if task in measured), *measured]))

    @cached_property
    def row_headings(self) -> list[str]:
        """Headings of the columns that name a row; "Row" is among them where dataset and backbone do not tell the rows apart."""
        named = len({row[1:] for row in self.rows}) < len(self.rows)
        return ["Row", "Dataset", "Backbone"] if named else ["Dataset", "Backbone"]

    def row_cells(self, row: Row) -> list[str]:
        """What stands under `row_headings`."""
        return list(row[-len(self.row_headings) :])

    def entry(self, row: Row, task: str) -> list[Measurement]:
        """What was measured of a task on a row; [] if nothing."""
        return self._entries.get((row, task), [])

    def reason(self, row: Row, task: str) -> str:
        """Why an entry is empty."""
        return self.missing.get((row.row, task), self.missing.get(task, NOT_MEASURED))

    @property
    def headings(self) -> list[str]:
        """Those of a table with one line a measurement."""
        return ["Task", *self.row_headings, *COLUMNS, "Other figures", "Candidates"]

    def lines(self) -> list[Line]:
        """Task by task, and of one task direction by direction, the rows under each other. A task of the source without any figure has a
        line that says why."""
        lines = []
        for task in self.tasks:
            entries = [(row, found) for row in self.rows for found in self.entry(row, task)]
            for direction in dict.fromkeys(found.direction for _, found in entries):
                title = f"{heading(task)}, {direction}" if direction else heading(task)
                lines += [Line(title, row, found) for row, found in entries if found.direction == direction]
            if not entries and self.rows:
                reasons = dict.fromkeys(self.reason(row, task) for row in self.rows)
                lines.append(Line(heading(task), None, "; ".join(reasons)))
        return lines

    def fields(self, line: Line) -> list[list[str]]:
        """What stands under `headings`, each field as the lines it may be broken into."""
        if line.row is None:
            return [[line.title], *[[]] * (len(self.headings) - 2), [line.found]]
        figures = {figure.metric: figure for figure in line.found.figures}
        own = [[figures[metric].text] if metric in figures else [] for metric in COLUMNS]
        others = [str(figure) for metric, figure in figures.items() if metric not in COLUMNS]
        return [[line.title], *([text] for text in self.row_cells(line.row)), *own, others, [line.found.context]]

    def grid(self) -> Iterator[list[list[str]]]:
        """The fields of all lines; a title is not repeated."""
        title = None
        for line in self.lines():
            first, *rest = self.fields(line)
            yield [[] if line.title == title else first, *rest]
            title = line.title

    def gaps(self) -> list[str]:
        """Rows without a figure where another row has one, and why: one sentence for all tasks that the same is to be said of."""
        tasks: dict[tuple[str, str], list[str]] = {}
        for task in self.tasks:
            reasons: dict[str, list[str]] = {}
            for row in self.rows:
                if not self.entry(row, task):
                    reasons.setdefault(self.reason(row, task), []).append(", ".join(self.row_cells(row)))
            for reason, rows in reasons.items() if any(self.entry(row, task) for row in self.rows) else ():
                tasks.setdefault(("; ".join(rows), reason), []).append(heading(task))
        return [f"{rows}: {reason} ({'; '.join(names)})" for (rows, reason), names in tasks.items()]

    def to_rich(self) -> "TerminalTable":
        """A Rich renderable: one line a measurement where the terminal is wide enough, else one block a row."""
        return TerminalTable(self)

    def to_markdown(self) -> str:
        """A GitHub pipe table, the legend below, and what has no figure and why."""
        lines = [[[name] for name in self.headings], [["---"]] * len(self.headings), *self.grid()]
        grid = "".join(f"| {' | '.join('<br>'.join(map(_escape, field)) for field in line)} |\n" for line in lines)
        gaps = "".join(f"- {_escape(gap)}\n" for gap in self.gaps())
        return f"{grid}\n{LEGEND}\n" + (f"\nWithout a figure:\n\n{gaps}" if gaps else "")

    def to_csv(self) -> str:
        """One line a cell, fractions, with the keys of `Cell` as header; nothing stands for None."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, KEYS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in self.cells)
        return text.getvalue()

    def to_json(self, path: str | os.PathLike) -> None:
        """Write the list of cells, fractions, all keys in every cell. The file appears whole or not at all."""
        text = json.dumps([asdict(cell) for cell in self.cells], indent=1, allow_nan=False)
        write_atomically(path, f"{text}\n".encode())

    def write(self, directory: str | os.PathLike) -> None:
        """Write table.md, table.csv and table.json into a directory, made if need be."""
        directory = Path(directory)
        write_atomically(directory / "table.md", self.to_markdown().encode())
        write_atomically(directory / "table.csv", self.to_csv().encode())
        self.to_json(directory / "table.json")

    @classmethod
    def read(cls, path: str | os.PathLike) -> Self:
        """A table from table.json or the directory that holds it.

        Raises:
            UserError: the file is missing, is not json, or is not a list of cells.
        """
        path = Path(path)
        path = path / "table.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such table. A finished `crossvit evaluate` or `pipeline` leaves one."
            ) from None
        except ValueError as error:
            raise UserError(f"{path} is not json ({error}). Evaluate again to write it anew.") from None
        if not isinstance(content, list):
            raise UserError(f"{path} must hold a list of cells, it holds a {type(content).__name__}.")
        for number, entry in enumerate(content):
            if not isinstance(entry, dict) or set(entry) != set(KEYS):
                raise UserError(f"{path}: cell {number} must have exactly the keys {', '.join(KEYS)}.")
        return cls(Cell(**entry) for entry in content)


class TerminalTable:
    """A table that takes the form its terminal has room for."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._wide()
        fits = console.measure(wide, options=options.update(width=10_000)).maximum <= options.max_width
        yield wide if fits else self._stacked(options.max_width)

    def _wide(self) -> RichTable:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, caption=LEGEND)
        for name in self.table.headings:
            grid.add_column(Text(name), no_wrap=name not in WRAPPED, max_width=WRAPPED.get(name))
        for number, line in enumerate(self.table.grid()):
            if number and line[0]:
                grid.add_section()
            grid.add_row(*(Text("\n".join(field)) for field in line))
        return grid

    def _stacked(self, width: int) -> RichTable:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, caption=LEGEND)
        grid.add_column("Task", width=min(STACKED_TASK, width // 3))
        grid.add_column("Result")
        room = width - min(STACKED_TASK, width // 3) - 4
        for row in self.table.rows:
            *names, backbone = self.table.row_cells(row)
            grid.add_row(Text(" | ".join(names), style="bold"), Text(backbone, style="bold"))
            for task in self.table.tasks:
                if task in SOURCE_TASKS or self.table.entry(row, task):
                    grid.add_row(Text(heading(task)), self._entry(row, task, room))
            grid.add_section()
        return grid

    def _entry(self, row: Row, task: str, width: int) -> Text:
        found = self.table.entry(row, task)
        if not found:
            return Text(self.table.reason(row, task), style="dim")
        return Text("\n".join(line for one in found for line in one.lines(width)))


def heading(task: str) -> str:
    """How a task is printed."""
    return HEADINGS.get(task, task)


def _without_nan(cell: Cell) -> Cell:
    """NaN and infinity are not json; they stand as None."""
    values = asdict(cell)
    return Cell(**{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()})


def _escape(text: str) -> str:
    """Text inside a pipe table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
