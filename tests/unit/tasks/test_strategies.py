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
from torch.utils.data import DataLoader

from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import DistillationLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.sharding import ShardedStrategy, is_sharded, whole
from crossvit.tasks.cross_modal import CrossModalTask
from tests.distributed import run_distributed
from tests.small import SETTINGS, cross_vit, pairs
from tests.unit.tasks.test_distributed import share

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
}
STRATEGIES = {"ddp": DDPStrategy, "sharded": ShardedStrategy}


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append(metrics)


def build(case: str) -> CrossModalTask:
    terms, settings = CASES[case]
    return CrossModalTask(cross_vit(), {name: term() for name, term in terms.items()}, **SETTINGS, **settings)


def train(case: str, rank: int = 0, world: int = 1, strategy=None, resume: str | None = None, save: str | None = None, **trainer) -> dict:
    task, logger = build(case), Rows()
    batches = [share(pairs(SHARED, negatives=1, seed=s), rank, world) for s in range(STEPS)]
    settings = {"strategy": strategy(), "devices": world, "plugins": [TorchElasticEnvironment()]} if strategy else {}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2 if save else STEPS,
        logger=logger,
        log_every_n_steps=1,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **(settings | trainer),
    )
    loader = DataLoader(batches[2:] if resume else batches, batch_size=None)
    trainer.fit(task, loader, ckpt_path=resume, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    found = {
        "weights": task.export(),
        "sharded": is_sharded(task),
        "rows": [{k: v for k, v in row.items() if k.startswith("train/")} for row in logger.rows],
        "held": sum(p.untyped_storage().nbytes() if not hasattr(p, "to_local") else p.to_local().numel() * 4 for p in task.model.parameters()),
    }
    if task.teacher is not None:
        found["teacher"] = {name: whole(p) for name, p in task.teacher.model.state_dict().items()}
        found["queue"] = task.terms["itc"].queue.state_dict()
    return found


def both(rank: int, world: int, directory: str) -> dict:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    found = {(name, case): train(case, rank, world, strategy) for name, strategy in STRATEGIES.items() for case in CASES}
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return run_distributed(both, 2, str(tmp_path_factory.mktemp("checkpoints")))


@pytest.fixture(scope="module")
def alone() -> dict:
    return {case: train(case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trains_what_one_process_trains(strategy, case, ranks, alone):
    expected = alone[case]
    for found in (rank[strategy, case] for rank in ranks):
        assert found["sharded"] == (strategy == "sharded")
        for name, value in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=2e-5, msg=name)
        for name, value in expected.get("teacher", {}).items():
            torch.testing.assert_close(found["teacher"][name], value, rtol=1e-3, atol=2e-5, msg=name)
