import json

import lightning as L
import torch
from torch.utils.data import DataLoader

from crossvit.callbacks.checkpoint import StageCheckpoint
from crossvit.callbacks.validation_curve import ValidationCurve
from tests.unit.callbacks.test_checkpoint import Line


def fit(directory, epochs: int, ckpt_path=None, **settings) -> list[dict]:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=str(directory),
        logger=False,
        callbacks=[StageCheckpoint(), ValidationCurve()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    loader = DataLoader(torch.ones(4, 1), batch_size=2)
    torch.manual_seed(0)
    trainer.fit(Line(), loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return json.loads((directory / "validation.json").read_text())


def test_one_entry_a_validation(tmp_path):
    points = fit(tmp_path, 3)
    assert [set(point) for point in points] == [{"step", "val/loss"}] * 3
    assert [point["step"] for point in points] == [2, 4, 6]
    losses = [point["val/loss"] for point in points]
    assert losses == sorted(losses, reverse=True)


def test_a_sanity_check_is_none(tmp_path):
    assert len(fit(tmp_path, 1, num_sanity_val_steps=2)) == 1


def test_a_resumed_stage_has_the_whole_curve(tmp_path):
    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    assert fit(tmp_path / "parts", 4, ckpt_path=str(tmp_path / "parts/checkpoints/last.ckpt")) == whole
