"""Training on a GPU: every precision and way to run is close to fp32, strategies train, stages go on, and too little memory is said.

    pytest -m gpu tests/gpu

What a CPU can do of it runs there in every test run, with the same code.
"""

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from crossvit.errors import UserError
from crossvit.models.execution import Execution
from crossvit.models.weights import read_state_dict
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import DistillationLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.stages.chain import run_chain
from crossvit.tasks.cross_modal import CrossModalTask
from crossvit.tasks.schedules import cosine
from tests.small import cross_vit, pairs

GPUS = torch.cuda.device_count()


def on_gpus(count: int) -> list:
    return [pytest.mark.gpu, pytest.mark.skipif(count > GPUS, reason=f"needs {count} GPU(s), {GPUS} here")]


GPU = pytest.param("gpu", marks=on_gpus(1))
EVERYWHERE = pytest.mark.parametrize("device", ["cpu", GPU])
STEPS = 3
SMOKE = ["experiment=smoke", "stage=coco", "stage.parent=null", "logger=none", "callbacks=quiet"]


def train(device: str, precision: str = "32", execution: Execution | None = None) -> tuple[dict, list[float]]:
    """Exported weights and losses after STEPS steps of every kind of term."""
    terms = {"itc": ContrastiveLoss(queue_size=16), "itm": MatchingLoss(), "distill": DistillationLoss()}
    adam = partial(torch.optim.AdamW, lr=1e-3, eps=1e-3, fused=True)
    task = CrossModalTask(
        cross_vit(),
        terms | {"adversarial": AdversarialLoss(steps=2)},
        optimizer=adam,
        schedule=cosine,
        execution=execution,
    )
    losses = []
    step = task.training_step
    task.training_step = lambda *inputs: losses.append(step(*inputs)) or losses[-1]
    trainer = L.Trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader([pairs(range(8), negatives=1, seed=s) for s in range(STEPS)], batch_size=None))
    return task.export(), [loss.item() for loss in losses]


@pytest.fixture(scope="module")
def full() -> tuple[dict, list[float]]:
    """fp32 on the CPU."""
    return train("cpu")


def assert_close(found: tuple[dict, list[float]], full: tuple[dict, list[float]], loss: float, weights: float) -> None:
    assert found[1] == pytest.approx(full[1], rel=loss)
    for name, value in full[0].items():
        assert found[0][name].dtype == value.dtype and torch.isfinite(found[0][name]).all(), name
        torch.testing.assert_close(found[0][name], value, rtol=0.1, atol=weights, msg=name)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16-mixed"),
        pytest.param("gpu", "32", marks=on_gpus(1)),
        pytest.param("gpu", "bf16-mixed", marks=on_gpus(1)),
        pytest.param("gpu", "16-mixed", marks=on_gpus(1)),
    ],
)
def test_precision(device, precision, full):
    assert_close(train(device, precision), full, loss=1e-3 if precision == "32" else 0.03, weights=5e-3)


@EVERYWHERE
@pytest.mark.parametrize(
    "execution",
    [Execution(channels_last=True), Execution(checkpoint_activations=True)],
    ids=["channels last", "activations computed again"],
)
def test_execution(device, execution, full):
    assert_close(train(device, execution=execution), full, loss=1e-3, weights=1e-3)


@pytest.mark.parametrize(
    "device", [GPU]
)  # a CPU compiles for minutes; tests/unit/models/test_execution.py does that once
def test_compile(device, full):
    torch._dynamo.reset()
    execution = Execution(compile="default", channels_last=True)
    assert_close(train(device, execution=execution), full, loss=1e-3, weights=2e-3)


def stage(root, *overrides: str) -> dict:
    """The weights of a stage that is trained, and its record."""
    (link,) = run_chain([*SMOKE, f"paths.root={root}", *overrides])
    return read_state_dict(link.stored.weights) | {"steps": torch.tensor(link.stored.provenance["steps"])}


@pytest.mark.parametrize(
    ("trainer", "devices"),
    [
        pytest.param("ddp_sim", 2, marks=pytest.mark.slow),
        pytest.param("fsdp_sim", 2, marks=pytest.mark.slow),
        pytest.param("ddp", 2, marks=on_gpus(2)),
        pytest.param("fsdp", 1, marks=on_gpus(1)),
        pytest.param("fsdp", 2, marks=on_gpus(2)),
    ],
)
def test_strategies_train_what_one_cpu_trains(trainer, devices, tmp_path):
    """From the command's overrides to the stored weights; processes are spawned."""
    found = stage(tmp_path / "several", f"trainer={trainer}", f"trainer.devices={devices}")
    expected = stage(tmp_path / "one", "trainer=cpu")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
def test_a_stage_goes_on_where_it_stood(device, tmp_path, monkeypatch):
    """Stopped after its second step; on a CPU the weights are those of an undisturbed run to the bit."""
    every_step = ["callbacks.checkpoint.every_n_epochs=null", "callbacks.checkpoint.every_n_train_steps=1"]
    overrides = [f"trainer={device}", "trainer.max_epochs=3", *every_step, "objective=ema"]
    whole = stage(tmp_path / "whole", *overrides)
    step, taken = CrossModalTask.training_step, []

    def stopping(self, *inputs):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(self.global_step)
        return step(self, *inputs)

    monkeypatch.setattr(CrossModalTask, "training_step", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        stage(tmp_path / "cut", *overrides)
    monkeypatch.setattr(CrossModalTask, "training_step", step)
    (last,) = (tmp_path / "cut").glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 2
    found = stage(tmp_path / "cut", *overrides)
    for name, value in whole.items():
        tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(found[name], value, **tolerance, msg=name)


@EVERYWHERE
def test_too_little_memory_is_said(device, tmp_path, monkeypatch):
    if device == "gpu":
        torch.cuda.set_per_process_memory_fraction(1e-5)
    else:

        def exhausted(self, *inputs):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(CrossModalTask, "training_step", exhausted)
    try:
        with pytest.raises(UserError, match=r"stage coco: out of .*memory; .*data.batch_size"):
            stage(tmp_path, f"trainer={device}")
    finally:
        if device == "gpu":
            torch.cuda.set_per_process_memory_fraction(1.0)
