import pytest

from crossvit.report.cells import Cell
from crossvit.report.robustness import curve, plot_robustness


def cell(metric: str, value: float, row: str = "VLR", task: str = "robustness_patch") -> Cell:
    return Cell(row, row, "ResNet-18", "vlr", task, None, metric, value, value - 0.1, value + 0.1, 2, 0.5, 256, 0)


CELLS = [
    cell("eps 0.2", 0.5),
    cell("eps 0", 0.9),
    cell("random 0.2", 0.8),
    cell("eps 0.2 3 steps", 0.6),
    cell("unbounded", 0.0),
]


def test_points_by_hand():
    assert sum(curve(CELLS, "eps"), ()) == pytest.approx((0, 90, 80, 100, 0.2, 50, 40, 60))
    assert sum(curve(CELLS, "random"), ()) == pytest.approx((0, 90, 80, 100, 0.2, 80, 70, 90))


def test_a_picture_with_a_panel_for_each_space(tmp_path):
    path = plot_robustness([*CELLS, cell("eps 1", 0.7, task="robustness_pixel")], tmp_path / "robustness.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="robustness"):
        plot_robustness([cell("Acc@1", 0.5, task="vlr")], "unused.png")
