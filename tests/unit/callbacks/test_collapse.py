"""A warning where embeddings become one."""

import json

from lightning.pytorch.loggers import CSVLogger

from crossvit.callbacks.collapse import Collapse
from tests.watched import Watched, fit


def run(directory, low, **settings) -> None:
    def figures(batch: int) -> dict:
        std, rank = low(batch)
        return {"image/std": 0.9, "image/rank": 9.0, "text/std": std, "text/rank": rank}

    given = {"logger": CSVLogger(directory), "log_every_n_steps": 1}
    fit(Watched(figures=figures), directory, Collapse(patience=4, **settings), steps=24, **given)


def warned(directory) -> list[int]:
    path = directory / "health.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_after_so_many_logged_steps_and_once(tmp_path, caplog):
    run(tmp_path, lambda batch: (0.01, 3.0) if batch >= 10 else (0.8, 9.0))
    assert warned(tmp_path) == [13]
    assert "the text embeddings have collapsed: std 0.01, effective rank 3.00" in caplog.text


def test_again_after_it_has_gone(tmp_path):
    run(tmp_path, lambda batch: (0.8, 1.1) if batch < 6 or batch >= 12 else (0.8, 9.0))
    assert warned(tmp_path) == [3, 15]


def test_a_short_dip_and_a_narrow_beginning_are_none(tmp_path):
    run(tmp_path, lambda batch: (0.01, 1.0) if batch < 3 or batch == 9 else (0.8, 9.0))
    assert warned(tmp_path) == []


def test_limits_are_settings(tmp_path):
    run(tmp_path, lambda batch: (0.8, 3.0), min_rank=4.0)
    assert warned(tmp_path) == [3]


def test_a_task_without_texts_is_left_alone(tmp_path):
    given = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    fit(Watched(figures=lambda batch: {"acc@1": 0.5}), tmp_path, Collapse(patience=1), **given)
    assert warned(tmp_path) == []
