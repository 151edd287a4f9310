"""Random numbers and figures travel with a checkpoint."""

import random
from types import SimpleNamespace

import numpy as np
import torch

from crossvit.callbacks.resume import Resume, read_random_state, write_random_state
from tests.distributed import run_distributed


def drawn() -> list:
    return [random.random(), float(np.random.rand()), torch.rand(2).tolist(), np.random.randn(), random.gauss(0, 1)]  # noqa: NPY002


def test_every_generator_goes_on_where_it_stood(tmp_path):
    drawn()  # gauss keeps a second number in hand
    torch.save(read_random_state(), tmp_path / "state")
    expected = [drawn(), drawn()]
    write_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert [drawn(), drawn()] == expected


def test_the_state_is_taken_up_before_the_first_batch_and_then_left_alone():
    callback, resumed = Resume(), Resume()
    saved = callback.state_dict()
    expected = drawn()
    resumed.load_state_dict(saved)
    torch.rand(7)  # what setting up draws
    resumed.on_train_batch_start(None)
    assert drawn() == expected
    resumed.on_train_batch_start(None)
    assert drawn() != expected


def test_figures_of_the_last_validation_are_there_again():
    callback, resumed = Resume(), Resume()
    callback.setup(SimpleNamespace(callback_metrics={"val/loss": torch.tensor(0.25)}), None, "fit")
    resumed.load_state_dict(callback.state_dict())
    trainer = SimpleNamespace(callback_metrics={})
    resumed.on_fit_start(trainer, None)
    assert trainer.callback_metrics == {"val/loss": torch.tensor(0.25)}


def _own(rank: int, size: int) -> tuple[list, list, int]:
    torch.manual_seed(rank)
    saved = Resume().state_dict()
    expected = torch.rand(3).tolist()
    resumed = Resume()
    resumed.load_state_dict(saved)
    resumed.on_train_batch_start(None)
    return expected, torch.rand(3).tolist(), len(saved["random"])


def test_every_process_gets_its_own_state_back():
    (first, first_again, count), (second, second_again, _) = run_distributed(_own, 2)
    assert (first, second) == (first_again, second_again)
    assert first != second and count == 2
