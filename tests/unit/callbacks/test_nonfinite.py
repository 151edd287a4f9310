"""NaN and infinity: what is said of them, and that the weights and the checkpoint stay clean."""

import json
import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from crossvit.callbacks.checkpoint import StageCheckpoint
from crossvit.callbacks.nonfinite import NonFinite, all_finite
from crossvit.errors import UserError
from tests.watched import Watched, fit


def at(*bad: int, value: float = math.nan):
    return lambda batch: value if batch in bad else 1.0


def events(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "health.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_term_and_samples(tmp_path, value):
    task = Watched(at(5, value=value))
    with pytest.raises(UserError) as caught:
        fit(task, tmp_path, NonFinite())
    text = str(caught.value)
    assert "step 5 (epoch 0, batch 5)" in text and f"square is {value}" in text
    assert "the samples 20, 21, 22, 23" in text
    assert "optimizer.lr" in text and "debug=anomaly" in text and text.count("\n") == 1
    (event,) = events(tmp_path)
    assert event["event"] == "loss not finite" and event["samples"] == [20, 21, 22, 23] and event["step"] == 5
    assert all_finite(task.parameters())  # before the step was taken


def test_an_overflow_of_the_gradients_shows_in_the_step_after_it(tmp_path):
    task = Watched()

    def overflow(grad):
        return torch.full_like(grad, math.inf) if task.taken == 4 else grad

    task.layer.weight.register_hook(overflow)
    with pytest.raises(UserError, match=r"in step 4 .*since the step before, whose gradients overflowed"):
        fit(task, tmp_path, NonFinite())


def test_no_checkpoint_is_written_of_such_weights(tmp_path):
    task = Watched()
    task.layer.weight.register_hook(lambda grad: grad * math.nan if task.taken == 7 else grad)
    checkpoint = StageCheckpoint(every_n_train_steps=1)
    with pytest.raises(UserError, match=r"not finite after step 7: no checkpoint .* the one before stays"):
        fit(task, tmp_path, NonFinite(), checkpoint, enable_checkpointing=True)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6 and all_finite(last["state_dict"].values())


def test_skip_leaves_the_step_out_and_goes_on(tmp_path, caplog):
    """Ten good steps and two bad ones end at the weights of the ten."""
    watch, task = NonFinite(action="skip"), Watched(at(3, 8))
    plain = Watched()
    plain.load_state_dict(task.state_dict())
    trainer = fit(task, tmp_path, watch, gradient_clip_val=1.0)
    fit(plain, tmp_path / "plain", steps=10, gradient_clip_val=1.0)
    assert watch.skipped == 2 and trainer.global_step == 12
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), plain.parameters(), strict=True))
    assert [(e["event"], e["step"]) for e in events(tmp_path)] == [("step skipped", 3), ("step skipped", 8)]
    assert caplog.text.count("is left out") == 1


def test_too_many_skipped_in_a_row_stop(tmp_path):
    task = Watched(at(1, *range(4, 12)))
    with pytest.raises(UserError, match=r"of 3 steps in a row are not finite, the last is step 6 "):
        fit(task, tmp_path, NonFinite(action="skip", max_skipped=3))
    assert all_finite(task.parameters())


def test_skipping_does_not_hide_broken_running_statistics(tmp_path):
    task = Watched(at(2))
    task.register_buffer("running_mean", torch.zeros(1))

    def spoil(*_) -> None:
        if task.taken == 2:
            task.running_mean.fill_(math.nan)

    task.layer.register_forward_hook(spoil)
    with pytest.raises(UserError, match="step 2 has left NaN in running statistics"):
        fit(task, tmp_path, NonFinite(action="skip"))


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_the_loss_scaler_looks_for_its_scale_in_peace(tmp_path, action):
    """Under 16-mixed gradients overflow until the scale fits, and the scaler leaves these steps out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    task, watch = Watched(lambda batch: 100.0), NonFinite(action=action)
    before = [p.clone() for p in task.parameters()]
    fit(task, tmp_path, watch, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert scaler.get_scale() < 2.0**16 and watch.skipped == 0
    assert not (tmp_path / "health.jsonl").exists()
    assert all_finite(task.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))


def test_the_loss_scaler_does_not_hide_a_loss_that_is_not_finite(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="in step 5 "):
        fit(Watched(at(5)), tmp_path, NonFinite(), plugins=[plugin])


def test_nothing_is_written_where_all_is_well(tmp_path):
    fit(Watched(), tmp_path, NonFinite())
    assert not (tmp_path / "health.jsonl").exists()
