"""What a reader sees of the cells, and that nothing is lost on the way to the files and back."""

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from crossvit.errors import UserError
from crossvit.report.cells import KEYS, Cell, percent
from crossvit.report.plots import _bars
from crossvit.report.table import Table


def matching(dataset, backbone, stage, first, fifth, seed=0, row=None):
    low = {"Acc@1": (first, 1 / 128), "Acc@5": (fifth, 5 / 128)}
    return [
        Cell(
            row or dataset, dataset, backbone, stage, "vqcmi", direction, metric,
            value, value - 0.031, value + 0.028, 128, chance, 500, seed,
        )
        for direction in ("image->text", "text->image")
        for metric, (value, chance) in low.items()
    ]  # fmt: skip


CHAIN = [
    *matching("COCO", "ConvStem", "coco", 0.363, 0.573),
    *matching("VLR", "CrossViT", "vlr", 0.752, 0.922),
    Cell(
        "ImageNet",
        "ImageNet",
        "ConvStem",
        "imagenet",
        "classification",
        None,
        "Acc@1",
        0.768,
        0.74,
        0.8,
        24,
        1 / 24,
        600,
        0,
    ),
    Cell("VLR", "VLR", "CrossViT", "vlr", "vlr", None, "Acc@1", 0.94, 0.92, 0.96, 2, 0.5, 800, 0),
    Cell("VLR", "VLR", "CrossViT", "vlr", "twins", None, "swap_att", 0.9, 0.8, 0.95, 2, 0.5, 80, 0),
    Cell("VLR", "VLR", "CrossViT", "vlr", "twins", None, "replace_rel", 0.9, 0.8, 0.95, 2, 0.5, 80, 0),
]


def printed(table, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table.to_rich())
    return console.file.getvalue()


def markdown_rows(table):
    lines = table.to_markdown().split("\n\n")[0].splitlines()
    return [[field.strip() for field in line[2:-2].split(" | ")] for line in lines]


def test_keys_are_those_of_the_contract():
    assert KEYS == (
        "row", "dataset", "backbone", "stage", "task", "direction", "metric", "value", "low", "high", "candidates", "chance",
        "queries", "seed",
    )  # fmt: skip


def test_markdown_has_a_line_for_each_task_direction_and_row():
    header, rule, *rows = markdown_rows(Table(CHAIN))
    assert header == ["Task", "Dataset", "Backbone", "Acc@1", "Acc@5", "Other figures", "Candidates"]
    assert set(rule) == {"---"} and {len(row) for row in rows} == {len(rule)} == {len(header)}
    assert rows == [
        ["VQCMI: natural-image matching, image->text", "COCO", "ConvStem", "36.3 [33.2, 39.1]", "57.3 [54.2, 60.1]", "",
         "N=128, chance 0.8/3.9"],
        ["", "VLR", "CrossViT", "75.2 [72.1, 78.0]", "92.2 [89.1, 95.0]", "", "N=128, chance 0.8/3.9"],
        ["VQCMI: natural-image matching, text->image", "COCO", "ConvStem", "36.3 [33.2, 39.1]", "57.3 [54.2, 60.1]", "",
         "N=128, chance 0.8/3.9"],
        ["", "VLR", "CrossViT", "75.2 [72.1, 78.0]", "92.2 [89.1, 95.0]", "", "N=128, chance 0.8/3.9"],
        ["MIMIC-III: medical (MIMIC-CXR layout)", "", "", "", "", "",
         "not measured yet (medical data is not part of this run)"],
        ["Classification", "ImageNet", "ConvStem", "76.8 [74.0, 80.0]", "", "", "N=24, chance 4.2"],
        ["VLR true/false", "VLR", "CrossViT", "94.0 [92.0, 96.0]", "", "", "N=2, chance 50.0"],
        ["Caption or twin", "VLR", "CrossViT", "", "", "swap_att: 90.0 [80.0, 95.0]<br>replace_rel: 90.0 [80.0, 95.0]",
         "N=2, chance 50.0"],
    ]  # fmt: skip


def test_text_cannot_break_the_markdown():
    cell = replace(CHAIN[0], dataset="a|b\n<c>", task="x[bold]")
    assert "x[bold]" in printed(Table([cell]), 80) and "x[bold]" in printed(Table([cell]), 400)
    header, row = (Table([cell]).to_markdown().splitlines()[line] for line in (0, 4))
    assert row.startswith("| x[bold], image->text | a\\|b &lt;c> | ConvStem |")
    assert row.replace("\\|", "").count("|") == header.count("|")


def test_missing_entries_say_why():
    why = {("ImageNet", "vqcmi"): "no text at this stage", "vlr": "comes last", "twins": "comes last"}
    table = Table(CHAIN, missing=why)
    *_, gaps = table.to_markdown().split("Without a figure:\n\n")
    assert gaps.splitlines() == [
        "- ImageNet, ConvStem: no text at this stage (VQCMI: natural-image matching)",
        "- COCO, ConvStem; VLR, CrossViT: not measured yet (Classification)",
        "- ImageNet, ConvStem; COCO, ConvStem: comes last (VLR true/false; Caption or twin)",
    ]
    whole = Table(CHAIN[:4])  # a task that no row has a figure of is no gap of some rows
    assert "Without a figure" not in whole.to_markdown() and "not measured yet (medical" in whole.to_markdown()


def test_seeds_of_a_row_are_merged():
    cells = [
        cell
        for seed, shift in enumerate((0.0, 0.01, 0.02))
        for cell in matching("COCO", "R", "coco", 0.3 + shift, 0.5, seed)
    ]
    row = markdown_rows(Table(cells))[2]
    assert row[3:] == ["31.0 ± 1.0", "50.0 ± 0.0", "", "3 seeds, N=128, chance 0.8/3.9"]


def test_a_seed_measured_again_counts_once():
    again = [*matching("COCO", "R", "coco", 0.3, 0.5), *matching("COCO", "R", "coco", 0.4, 0.5)]
    assert markdown_rows(Table(again))[2][3] == "40.0 [36.9, 42.8]"


def test_other_candidates_are_another_measurement():
    cells = [*CHAIN[:1], replace(CHAIN[0], candidates=1000, chance=0.0001, value=0.1, low=None, high=None)]
    first, second = markdown_rows(Table(cells))[2:4]
    assert (first[3], first[6]) == ("36.3 [33.2, 39.1]", "N=128, chance 0.8")
    assert second == ["", "COCO", "ConvStem", "10.0", "", "", "N=1000, chance 0.01"]


def test_rows_that_look_alike_are_named():
    cells = [
        *matching("VLR", "CrossViT", "vlr", 0.7, 0.9, row="base"),
        *matching("VLR", "CrossViT", "vlr", 0.8, 0.9, row="full"),
    ]
    header, _, first, second, *_ = markdown_rows(Table(cells))
    assert header[1:4] == ["Row", "Dataset", "Backbone"] and (first[1], second[1]) == ("base", "full")


def test_narrow_terminals_are_legible():
    text = printed(Table(CHAIN), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert any(line.split() == ["VLR", "CrossViT"] for line in text.splitlines())
    for piece in (
        "text->image (N=128, chance 0.8/3.9)",
        "Acc@1: 75.2 [72.1, 78.0] Acc@5: 92.2 [89.1, 95.0]",
        "replace_rel: 90.0 [80.0, 95.0]",
        "not measured yet",
    ):
        assert any(piece in line for line in text.splitlines()), piece
    assert "…" not in text
    assert max(map(len, printed(Table(CHAIN), 40).splitlines())) <= 40


def test_wide_terminals_show_the_rows_of_a_task_under_each_other():
    text = printed(Table(CHAIN), 200)
    _, headings, *lines = (" ".join(line.split()) for line in text.splitlines())
    first, second, *_ = (line for line in lines if "N=128" in line)
    assert headings == "Task Dataset Backbone Acc@1 Acc@5 Other figures Candidates" and "…" not in text
    assert first.endswith("COCO ConvStem 36.3 [33.2, 39.1] 57.3 [54.2, 60.1] N=128, chance 0.8/3.9")
    assert second.endswith("VLR CrossViT 75.2 [72.1, 78.0] 92.2 [89.1, 95.0] N=128, chance 0.8/3.9")


def test_files_hold_every_cell(tmp_path):
    table = Table([*CHAIN, replace(CHAIN[0], metric="AUROC", value=float("nan"), low=float("inf"))])
    table.write(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["table.csv", "table.json", "table.md"]
    content = json.loads((tmp_path / "new/table.json").read_text(), parse_constant=pytest.fail)
    assert [list(entry) for entry in content] == [list(KEYS)] * len(table.cells)
    assert content[-1]["value"] is None and content[-1]["low"] is None
    assert Table.read(tmp_path / "new").cells == table.cells == Table.read(tmp_path / "new/table.json").cells
    lines = list(csv.DictReader(io.StringIO((tmp_path / "new/table.csv").read_text())))
    assert lines[0]["value"] == "0.363" and lines[-1]["value"] == "" and list(lines[0]) == list(KEYS)
    assert "AUROC: n/a" in (tmp_path / "new/table.md").read_text()


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    Table(CHAIN).write(tmp_path)
    before = (tmp_path / "table.json").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk")))
    with pytest.raises(OSError, match="disk"):
        Table(CHAIN[:1]).to_json(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such table"),
        ("[{", "is not json"),
        ("{}", "must hold a list"),
        ('[{"row": "x"}]', "cell 0 must have exactly the keys row, dataset"),
    ],
)
def test_a_bad_table_file_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "table.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        Table.read(tmp_path / "table.json")
    assert "table.json" in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_percent():
    assert [percent(value) for value in (0.752, 1.0, 0.0, 0.0002, 0.0078125, None)] == [
        "75.2",
        "100.0",
        "0.0",
        "0.02",
        "0.8",
        "n/a",
    ]


def test_an_empty_table_prints():
    assert "Task" in printed(Table([]), 80) and len(markdown_rows(Table([]))) == 2


def test_figures_without_chance_do_not_borrow_that_of_others():
    attacked = [
        Cell("VLR", "VLR", "CrossViT", "vlr", "robustness_text", None, f"eps {eps:g}", 0.5, None, None, 2, chance)
        for eps, chance in ((0, 0.5), (0.1, None))
    ]
    assert markdown_rows(Table(attacked))[-1][-1] == "N=2, chance 50.0/-"


def test_a_mean_rank_is_no_percentage(tmp_path):
    cell = replace(
        CHAIN[0], task="mimic", metric="mean rank", value=8.24, low=5.7, high=10.31, candidates=15, chance=8.0
    )
    share = replace(cell, metric="Acc@1", value=0.0625, low=0.01, high=0.3, chance=1 / 15)
    (line,) = Table([share, cell]).entry(Table([cell]).rows[0], "mimic")
    assert str(line) == "image->text Acc@1: 6.2 [1.0, 30.0] mean rank: 8.2 [5.7, 10.3] (N=15, chance 6.7/8.0)"
    other = replace(cell, value=9.24, seed=1)
    assert "mean rank: 8.7 ± 0.7 | 2 seeds" in Table([cell, other]).to_markdown()
    bars = _bars(Table([share, cell]), "mimic")
    assert [figure.metric for _, figures in bars for figure in figures] == ["Acc@1"]
