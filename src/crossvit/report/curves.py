"""Logged metrics read back: Lightning's metrics.csv or a metrics.jsonl."""

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from crossvit.errors import UserError

Series = tuple[list[float], list[float]]  # steps, values


def read_curves(path: str | os.PathLike) -> dict[str, Series]:
    """Every numeric metric of a log as {name: (steps, values)}, in order of first appearance.

    Args:
        path: metrics.csv, or metrics.jsonl with one object a line, each with `step`. Lines need not hold every metric. A last
            line cut short by a killed run is ignored.

    Raises:
        UserError: no such file, or no line with a step and a number.
    """
    path = Path(path)
    curves: dict[str, Series] = {}
    try:
        for line in _lines(path):
            step = _number(line.get("step"))
            if step is None:
                continue
            for name, value in line.items():
                number = _number(value)
                if name not in ("step", "epoch") and number is not None:
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(number)
    except FileNotFoundError:
        raise UserError(f"{path}: no such log. A run with the csv logger leaves one.") from None
    if not curves:
        raise UserError(f"{path} holds no line with a `step` and a metric.")
    return curves


def _lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _number(value: object) -> float | None:
    """A finite float, or None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
