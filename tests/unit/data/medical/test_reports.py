import pytest

from crossvit.data.medical.reports import Sections, find_table, parse_report, read_table, whole_number
from crossvit.errors import UserError

REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)

 COMPARISON:  None.

 FINDINGS:

 The heart is large.  PC: not a heading.

 No effusion.

 IMPRESSION:

 1. Cardiomegaly.
 2. No pneumonia at 10:30.
"""


def test_sections_by_their_headings():
    found = parse_report(REPORT)
    assert found.findings.split() == ["The", "heart", "is", "large.", "PC:", "not", "a", "heading.", "No", "effusion."]
    assert found.impression == "1. Cardiomegaly.\n 2. No pneumonia at 10:30."
    assert found.last_paragraph == found.impression


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FINDINGS AND IMPRESSION: Clear.", Sections("Clear.", "Clear.", "Clear.")),
        ("FINDINGS: A.\nNOTIFICATION: By phone.", Sections("A.", "", "By phone.")),
        ("FINDINGS: A.\nFINDINGS: B.", Sections("A. B.", "", "B.")),
        ("CONCLUSION: Clear.", Sections("", "Clear.", "Clear.")),
        ("FINAL REPORT\n\nFirst.\n\nThe lungs are\nclear.\n", Sections("", "", "The lungs are\nclear.")),
        ("HISTORY: Cough.\n\nThe lungs are clear.", Sections("", "", "The lungs are clear.")),
        ("The findings: are clear.", Sections("", "", "The findings: are clear.")),
        ("", Sections()),
    ],
)
def test_other_forms(text, expected):
    assert parse_report(text) == expected


def test_ids():
    assert [whole_number(text) for text in ("10000032", "p10000032", "s50414267", " 7 ", "CXR12")] == [
        10000032,
        10000032,
        50414267,
        7,
        12,
    ]
    assert [whole_number(text) for text in ("", None, "a", "1.5", "7b")] == [None] * 5


def test_tables(tmp_path):
    assert find_table(tmp_path, "a") is None
    (tmp_path / "a-2.0.0-b.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a-2.1.0-b.csv").write_text("x,y\n3,4\n")
    path = find_table(tmp_path, "a-2.*-b")
    assert path.name == "a-2.1.0-b.csv"
    assert list(read_table(path, ("x",))) == [(2, {"x": "3", "y": "4"})]
    with pytest.raises(UserError, match=r"a-2\.1\.0-b\.csv: no column z \(found x, y\)"):
        list(read_table(path, ("x", "z")))
    (tmp_path / "c.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"c\.csv\.gz"):
        list(read_table(tmp_path / "c.csv.gz", ()))
