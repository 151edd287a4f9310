"""Losses that leap are noted, warned of, or end the stage."""

import json
import math
import random

import pytest

from crossvit.callbacks.health import Losses
from crossvit.callbacks.nonfinite import NonFinite
from crossvit.callbacks.spikes import LossSpikes
from crossvit.errors import UserError
from tests.watched import Watched, fit


class Trainer:
    """As much of one as the callback reads."""

    is_global_zero, global_rank = True, 0

    def __init__(self, directory) -> None:
        self.default_root_dir = str(directory)


def watch(directory, losses: list[float], **settings) -> LossSpikes:
    spikes = LossSpikes(**settings)
    for step, loss in enumerate(losses):
        spikes.look(Trainer(directory), None, Losses(step, 0, step, {"loss": loss}, None))
    return spikes


def noisy(count: int, seed: int = 0) -> list[float]:
    """A falling loss with a tenth of noise."""
    rng = random.Random(seed)
    return [(2.0 + 3.0 * math.exp(-step / 200)) * (1 + 0.1 * rng.gauss(0, 1)) for step in range(count)]


def test_a_leap_is_found_and_named(tmp_path, caplog):
    losses = noisy(400)
    losses[250] = 12.0
    assert watch(tmp_path, losses).spikes == 1
    (event,) = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert (event["event"], event["step"], event["losses"]) == ("loss spike", 250, {"loss": 12.0})
    assert event["median"] < event["bound"] < 12.0
    assert "leaps to 12 in step 250" in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_an_ordinary_training_has_none(tmp_path, seed):
    assert watch(tmp_path, noisy(2000, seed)).spikes == 0
    assert not (tmp_path / "health.jsonl").exists()


def test_a_loss_without_any_noise_has_none(tmp_path):
    assert watch(tmp_path, [1.0] * 200 + [1.2] * 200).spikes == 0


def test_a_loss_that_stays_high_is_the_new_level(tmp_path):
    found = watch(tmp_path, noisy(200) + [value + 20 for value in noisy(400, 1)])
    assert 1 <= found.spikes <= 70  # until half of the window lies there
    steps = [json.loads(line)["step"] for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert max(steps) < 300


def test_warnings_end_and_the_file_goes_on(tmp_path, caplog):
    losses = noisy(400)
    losses[200:320:15] = [20.0] * 8
    assert watch(tmp_path, losses).spikes == 8
    assert caplog.text.count("leaps to") == 5


def test_not_before_the_window_is_full(tmp_path):
    assert watch(tmp_path, [1.0] * 20 + [50.0] + [1.0] * 20).spikes == 0
    assert watch(tmp_path, [1.0] * 20 + [50.0] + [1.0] * 20, window=10).spikes == 1


def test_stop_ends_the_training_with_the_samples(tmp_path):
    task = Watched(lambda batch: 50.0 if batch == 15 else 1.0)
    with pytest.raises(UserError, match=r"(?s)in step 15 .*samples 60, 61, 62, 63;.*callbacks.spikes.action=warn"):
        fit(task, tmp_path, LossSpikes(action="stop", window=10), steps=20)


def test_a_resumed_stage_compares_with_what_was_before(tmp_path):
    spikes = watch(tmp_path, noisy(150))
    state = json.loads(json.dumps(spikes.state_dict()))
    resumed = LossSpikes()
    resumed.load_state_dict(state)
    resumed.look(Trainer(tmp_path), None, Losses(151, 0, 0, {"loss": 30.0}, None))
    assert resumed.spikes == 1


def test_a_loss_that_is_not_finite_is_left_to_the_other_watch(tmp_path):
    spikes = LossSpikes(window=10)
    fit(Watched(lambda batch: math.inf if batch == 13 else 1.0), tmp_path, NonFinite("skip"), spikes, steps=20)
    assert spikes.spikes == 0 and all(map(math.isfinite, spikes.state_dict()["recent"]))
