"""Two processes, data-parallel or sharded, train what one trains: losses, weights, teacher, queue, resumed or not."""

import os
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from crossvit.models.execution import Execution
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import DistillationLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.sharding import ShardedStrategy, is_sharded, whole
from crossvit.tasks.cross_modal import CrossModalTask
from crossvit.tasks.schedules import cosine
from tests.distributed import run_distributed
from tests.small import cross_vit, pairs
from tests.unit.tasks.test_distributed import share

pytestmark = pytest.mark.slow  # a minute of processes; test_distributed.py has the losses and gradients of every run

SHARED = [0, 1, 2, 2, 3, 3, 4, 5]
STEPS = 4
BASE = {"itc": ContrastiveLoss, "itm": MatchingLoss}
CASES = {
    "itc and itm": (BASE, {}),
    "teacher and queue": (
        {**BASE, "itc": partial(ContrastiveLoss, queue_size=20), "distill": DistillationLoss},
        {"teacher_momentum": 0.9},
    ),
    "pgd": ({**BASE, "adversarial": partial(AdversarialLoss, steps=2)}, {}),
    "freelb": ({**BASE, "adversarial": partial(AdversarialLoss, algorithm="freelb", steps=2)}, {}),
    "micro batch": (BASE, {"micro_batch": 2}),
    "activations computed again": (BASE, {"execution": Execution(checkpoint_activations=True, channels_last=True)}),
}
STRATEGIES = {"ddp": DDPStrategy, "sharded": ShardedStrategy}
SWITCHES = [("ddp", "sharded"), ("sharded", "ddp"), ("sharded", "sharded")]
RUNS = [("sharded", case) for case in CASES] + [("ddp", "teacher and queue"), ("ddp", "freelb"), ("ddp", "micro batch")]
PRECISE = {
    "clipped by value, two batches a step": {
        "gradient_clip_val": 0.01,
        "gradient_clip_algorithm": "value",
        "accumulate_grad_batches": 2,
    },
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
}


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append(metrics)


def build(case: str) -> CrossModalTask:
    """eps: gradients that are 0 but for rounding do not become steps of Adam."""
    terms, settings = CASES[case]
    adam = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.1, eps=1e-3, fused=True)
    built = {name: term() for name, term in terms.items()}
    return CrossModalTask(cross_vit(), built, optimizer=adam, schedule=cosine, seed=3, **settings)


class Watch(L.Callback):
    """Saves a checkpoint after the second step, where `path` says so, and notes how many weights this process holds between steps."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.held = 0

    def on_train_batch_end(self, trainer, task, *args) -> None:
        self.held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in task.model.parameters())
        if self.path and trainer.global_step == 2:
            trainer.save_checkpoint(self.path, weights_only=False)


class Data(L.LightningDataModule):
    """A rank's share of STEPS batches, from where training stands; the same pairs for validation."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.batches = [share(pairs(SHARED, negatives=1, seed=s), rank, world) for s in range(STEPS)]
        self.statements = [share(pairs(SHARED, label=[0, 1] * 4), rank, world)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches[self.trainer.global_step :], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.statements, batch_size=None)


def train(case: str, rank: int = 0, world: int = 1, strategy: str | None = None, **settings) -> dict:
    """What one process knows after training. settings: of the trainer, and `resume` or `save`, a file."""
    resume, save = settings.pop("resume", None), settings.pop("save", None)
    task, logger, watch = build(case), Rows(), Watch(save)
    if strategy:
        plugins = [TorchElasticEnvironment()]
        settings |= {"strategy": STRATEGIES[strategy](), "devices": world, "plugins": plugins}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[watch],
        logger=logger,
        log_every_n_steps=1,
        num_sanity_val_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"gradient_clip_val": 0.5, **settings},
    )
    trainer.fit(task, datamodule=Data(rank, world), ckpt_path=resume, weights_only=True)
    found = {
        "weights": task.export(),
        "sharded": is_sharded(task),
        "held": watch.held,
        "loss": [row["train/loss"] for row in logger.rows if "train/loss" in row],
        "gradient": [row["train/itm/gradient"] for row in logger.rows if "train/itm/gradient" in row],
        "accuracy": float(trainer.callback_metrics["val/accuracy"]),
    }
    if task.teacher is not None:
        found["teacher"] = {name: whole(value) for name, value in task.teacher.model.state_dict().items()}
        found["queue"] = task.terms["itc"].queue.state_dict()
    return found


def everything(rank: int, world: int, directory: str) -> dict:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "GROUP_RANK": "0"}
    files = {how: f"{directory}/{how}.ckpt" for how in STRATEGIES}
    found = {}
    for how, case in RUNS:
        saved = {"save": files[how]} if case == "teacher and queue" else {}
        found[how, case] = train(case, rank, world, how, **saved)
    for name, settings in PRECISE.items():
        found["sharded", name] = train("pgd", rank, world, "sharded", **settings)
    for first, then in SWITCHES:
        found["resumed", first, then] = train("teacher and queue", rank, world, then, resume=files[first])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    """What each rank found: one spawn for all the checks."""
    return run_distributed(everything, 2, str(folder))


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    found = {name: train("pgd", **settings) for name, settings in PRECISE.items()}
    for case in CASES:
        found[case] = train(case, **({"save": f"{folder}/alone.ckpt"} if case == "teacher and queue" else {}))
    return found | {"resumed": train("teacher and queue", resume=f"{folder}/alone.ckpt")}


def assert_same(found: list[dict], expected: dict) -> None:
    losses = torch.tensor([rank["loss"] for rank in found]).mean(dim=0)  # each logs its share
    assert losses.tolist() == pytest.approx(expected["loss"], rel=1e-4)
    for rank in found:
        assert rank["gradient"] == pytest.approx(expected["gradient"], rel=1e-3)
        assert rank["accuracy"] == pytest.approx(expected["accuracy"])
        for part in ("weights", "teacher", "queue"):
            for name, value in expected.get(part, {}).items():
                torch.testing.assert_close(rank[part][name], value, rtol=1e-3, atol=1e-5, msg=f"{part} {name}")


@pytest.mark.parametrize(("strategy", "case"), RUNS)
def test_trains_what_one_process_trains(strategy, case, ranks, alone):
    assert_same([rank[strategy, case] for rank in ranks], alone[case])


def test_each_process_holds_its_share_of_the_weights(ranks, alone):
    whole_model = alone["itc and itm"]["held"]
    for rank in ranks:
        assert not rank["ddp", "freelb"]["sharded"] and rank["ddp", "freelb"]["held"] == whole_model
        assert rank["sharded", "itc and itm"]["sharded"]
        assert rank["sharded", "itc and itm"]["held"] == pytest.approx(whole_model / 2, rel=0.02)


@pytest.mark.parametrize("name", PRECISE)
def test_settings_of_the_trainer_under_shards(name, ranks, alone):
    if name.startswith("bf16"):  # rounding goes its own way
        for rank in ranks:
            for key, value in alone[name]["weights"].items():
                assert rank["sharded", name]["weights"][key].dtype == value.dtype
                torch.testing.assert_close(rank["sharded", name]["weights"][key], value, rtol=0.1, atol=0.02, msg=key)
        return
    assert_same([rank["sharded", name] for rank in ranks], alone[name])


@pytest.mark.parametrize(("first", "then"), SWITCHES)
def test_goes_on_from_the_checkpoint_of_any_strategy(first, then, ranks, alone):
    assert_same([rank["resumed", first, then] for rank in ranks], alone["resumed"])


@pytest.mark.parametrize("first", STRATEGIES)
def test_one_process_goes_on_where_two_have_stopped(first, ranks, alone, folder):
    assert_same([train("teacher and queue", resume=f"{folder}/{first}.ckpt")], alone["resumed"])
