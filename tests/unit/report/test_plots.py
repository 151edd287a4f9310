"""Figures are written, hold what they should, and load matplotlib only when asked for."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crossvit.errors import UserError
from crossvit.report import plots
from crossvit.report.cells import Cell
from crossvit.report.curves import read_curves
from crossvit.report.table import Table


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into."""
    figures = []
    save = plots.save_png
    monkeypatch.setattr(plots, "save_png", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    return figures


def is_png(path):
    with Image.open(path) as image:
        return image.format == "PNG" and np.asarray(image).std() > 0


def test_table_has_a_panel_for_each_measured_task(tmp_path, drawn):
    cells = [
        Cell("a", "COCO", "R18", "coco", "vqcmi", "image->text", "Acc@1", 0.3, 0.25, 0.36, 128, 1 / 128, 100, seed)
        for seed in (0, 1)
    ]
    cells.append(Cell("b", "VLR", "CrossViT", "vlr", "vlr", None, "Acc@1", 0.9, 0.8, 0.95, 2, 0.5, 100, 0))
    cells.append(Cell("b", "VLR", "CrossViT", "vlr", "vlr", None, "AUROC", None))
    assert is_png(plots.plot_table(Table(cells), tmp_path / "plots" / "table.png"))
    first, second = drawn[0].axes
    assert (first.get_title("left"), second.get_title("left")) == ("VQCMI: natural-image matching", "VLR true/false")
    assert [bar.get_width() for bar in first.patches] == [30.0]  # seeds merged
    assert [text.get_text() for text in second.texts] == ["90.0  Acc@1", "AUROC: not a number"]
    with pytest.raises(ValueError, match="no cells"):
        plots.plot_table(Table([]), tmp_path / "empty.png")


def test_curves_share_a_panel_over_splits(tmp_path, drawn):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,train/loss,val/loss,lr\n0,0,3.0,,0.1\n0,10,2.0,,0.1\n0,10,,2.5,\n1,20,nan,,0.05\n")
    assert is_png(plots.plot_curves(log, tmp_path / "curves.png"))
    loss, rate = (panel for panel in drawn[0].axes if panel.lines)
    assert loss.get_title() == "loss" and rate.get_title() == "lr"
    assert [list(line.get_ydata()) for line in loss.lines] == [[3.0, 2.0], [2.5]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "val"]


def test_jsonl_of_a_killed_run_is_read(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "epoch": 0, "loss": 2.0}, {"loss": 9.0}, {"step": 2, "loss": 1.5, "note": "x"}]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert read_curves(log) == {"loss": ([1.0, 2.0], [2.0, 1.5])}


@pytest.mark.parametrize("content", [None, "", "epoch,step\n0,1\n"])
def test_logs_without_metrics_are_named(tmp_path, content):
    log = tmp_path / "metrics.csv"
    if content is not None:
        log.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        plots.plot_curves(log, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("shape", ["chw", "hwc"])
def test_pairing_shows_each_word_over_the_grid(tmp_path, drawn, shape):
    image = np.random.default_rng(0).integers(0, 255, (3, 32, 48), dtype=np.uint8)
    matrix = np.arange(3 * 7).reshape(3, 7) / 100  # CLS and 2 x 3 cells; the third row is padding
    image = image if shape == "chw" else image.transpose(1, 2, 0)
    assert is_png(plots.plot_pairing(matrix, ["red", "circle"], (2, 3), image, tmp_path / "pairing.png"))
    panels = [panel for panel in drawn[0].axes if panel.images]
    assert [panel.get_title() for panel in panels] == ["image", "red", "circle"]
    heat = panels[1].images[-1]
    assert np.allclose(heat.get_array(), matrix[0, 1:].reshape(2, 3))
    assert heat.get_clim() == panels[2].images[-1].get_clim() == (0, matrix[1].max())


@pytest.mark.parametrize(("shape", "words"), [((2, 9), 2), ((1, 6), 2), ((2, 6), 0), ((6,), 1)])
def test_pairing_that_does_not_fit_is_refused(tmp_path, shape, words):
    with pytest.raises(ValueError, match="fits neither"):
        plots.plot_pairing(np.ones(shape), ["w"] * words, (2, 3), np.zeros((3, 8, 8)), tmp_path / "x.png")


def test_importing_loads_no_matplotlib_and_no_torch():
    code = "import sys, crossvit.report.plots, crossvit.report.table; assert not {'matplotlib', 'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
