"""What the repository says about the studies in it follows from their cells."""

import re
from pathlib import Path

import pytest

from crossvit.commands.report import grid_of
from crossvit.config import compose
from crossvit.report.study_tables import to_markdown

ROOT = Path(__file__).parents[2]
REPORTS = sorted(ROOT.glob("results/study/*/report.md"))
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_a_report_is_that_of_its_cells(report):
    cfg = compose([f"study={report.parent.name}", f"paths.study={report.parent}"], "report")
    same = report.read_text(encoding="utf-8").startswith(to_markdown(grid_of(cfg)))
    assert same, f"the cells have changed: crossvit report study={report.parent.name}"


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_an_overview_in_the_documents_is_that_of_the_report(report):
    text = report.read_text(encoding="utf-8")
    if "differences.png" not in text:
        pytest.skip("the base alone: nothing to compare")
    overview = text.partition("## All metrics")[2].partition("##")[0]
    table = "".join(re.findall(r"^\|.*\n", overview, re.MULTILINE))
    assert table and table in RESULTS, f"docs/results.md has another table than {report}"
