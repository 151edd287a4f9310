"""From cells to what a reader sees: seeds merged, metrics of one measurement on one line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from crossvit.report.cells import Cell, shown


@dataclass(frozen=True)
class Figure:
    """One metric over all seeds that measured it."""

    metric: str
    values: tuple[float | None, ...]
    low: float | None
    high: float | None
    chance: float | None

    @property
    def mean(self) -> float | None:
        """Over the seeds; None as soon as one of them is not a number."""
        return None if None in self.values else fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return None if len(self.values) < 2 or None in self.values else stdev(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """What a plot draws around the mean: one standard deviation over seeds, or the 95 % interval of a single seed."""
        if self.spread is not None:
            return self.mean - self.spread, self.mean + self.spread
        return (self.low, self.high) if len(self.values) == 1 and None not in (self.low, self.high) else None

    @property
    def text(self) -> str:
        """`75.2 [72.1, 78.0]`, or `75.2 ± 1.0` over seeds."""
        value, spread, low, high = (shown(self.metric, x) for x in (self.mean, self.spread, self.low, self.high))
        if self.spread is not None:
            return f"{value} ± {spread}"
        return value if self.interval is None else f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return f"{self.metric}: {self.text}"


@dataclass(frozen=True)
class Measurement:
    """The figures of one task in one direction over one set of candidates."""

    direction: str | None
    candidates: int | None
    figures: tuple[Figure, ...]

    def lines(self, width: int) -> list[str]:
        """For a narrow column: direction and context, then the figures, as many a line as `width` holds and none broken."""
        lines = [f"{self.direction or ''} {self._aside}".strip()]
        room = 0
        for figure in map(str, self.figures):
            if len(figure) < room:
                lines[-1] += f" {figure}"
            else:
                lines.append(figure)
            room = width - len(lines[-1])
        return [line for line in lines if line]

    @property
    def context(self) -> str:
        """`N=128, chance 0.8/3.9`, led by the number of seeds where there are several; "" if nothing is known."""
        parts = []
        seeds = {len(figure.values) for figure in self.figures}
        if max(seeds) > 1:
            parts.append(f"{'/'.join(map(str, sorted(seeds)))} seeds")
        if self.candidates is not None:
            parts.append(f"N={self.candidates}")
        chances = ["-" if figure.chance is None else shown(figure.metric, figure.chance) for figure in self.figures]
        if set(chances) - {"-"}:
            parts.append("chance " + (chances[0] if len(set(chances)) == 1 else "/".join(chances)))
        return ", ".join(parts)

    @property
    def _aside(self) -> str:
        return f"({self.context})" if self.context else ""

    def __str__(self) -> str:
        """`image->text Acc@1: 75.2 [72.1, 78.0] Acc@5: 92.2 [90.1, 94.0] (N=128, chance 0.8/3.9)`."""
        return " ".join(part for part in (self.direction, *map(str, self.figures), self._aside) if part)


def measurements(cells: Iterable[Cell]) -> list[Measurement]:
    """Measurements of one table entry (cells of one row and task), in order of appearance.

    Cells that differ in seed alone are merged; of two with the same seed the later counts (a run evaluated again).
    """
    groups: dict[tuple, dict[str, dict[int | None, Cell]]] = {}
    for cell in cells:
        metrics = groups.setdefault((cell.direction, cell.candidates), {})
        metrics.setdefault(cell.metric, {})[cell.seed] = cell
    return [
        Measurement(
            direction,
            candidates,
            tuple(_figure(metric, list(seeds.values())) for metric, seeds in metrics.items()),
        )
        for (direction, candidates), metrics in groups.items()
    ]


def _figure(metric: str, cells: Sequence[Cell]) -> Figure:
    last = cells[-1]
    return Figure(metric, tuple(cell.value for cell in cells), last.low, last.high, last.chance)
