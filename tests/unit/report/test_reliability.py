import pytest

from crossvit.metrics import Bin
from crossvit.report.reliability import plot_reliability

BINS = [Bin(0.1, 0.2, 50), Bin(0.8, 0.7, 50)]


def test_a_panel_for_each_task_and_a_line_for_each_row(tmp_path, monkeypatch):
    drawn = []

    def keep(figure, path):
        for panel in figure.axes:
            lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines}
            drawn.append((panel.get_title(), lines))

    monkeypatch.setattr("crossvit.report.reliability.save_png", keep)
    plot_reliability({"calibration": {"COCO": BINS, "VLR": BINS[1:]}, "calibration_fused": {"VLR": BINS}}, "unused")
    (dual, two), (fused, one) = drawn
    assert dual == "True/false at a fitted threshold" and fused.endswith("fused score")
    assert two["COCO"] == ([10, 80], [20, 70]) and two["VLR"] == ([80], [70]) and one["VLR"] == ([10, 80], [20, 70])
    assert len(two) == 3 and len(one) == 2  # the diagonal too


def test_a_picture(tmp_path):
    path = plot_reliability({"calibration": {"VLR": BINS}}, tmp_path / "reliability.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="calibrated"):
        plot_reliability({}, "unused.png")
