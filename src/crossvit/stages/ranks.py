"""Several processes, started from outside, that walk through one chain: what the first decides holds for all.

torchrun and srun run the whole command once for each device. Rank 0 looks into the store, claims what is to be trained and commits it; the
others wait, train along, and are done when the training is.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from crossvit.errors import UserError
from crossvit.launch import place
from crossvit.stages.store import StageClaim, StoredStage
from crossvit.stages.training import build_trainer

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long ranks wait for the first, which may be waiting for another job that trains the same stage."""


class Ranks:
    """The processes that train together. `ALONE` is one process, which waits for nobody."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.world = world
        self._group = group

    def decide(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, the only one that carries it out, on every rank. Its error is raised on every rank."""
        if self.world == 1:
            return action()
        import torch.distributed as dist

        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = action()
            except BaseException as error:
                self._tell([None, error if isinstance(error, UserError) else RuntimeError(f"rank 0: {error!r}")])
                raise
            self._tell(answer)
            return answer[0]
        dist.broadcast_object_list(answer, src=0, group=self._group)
        value, error = answer
        if error is not None:
            raise error
        return value

    def in_turn(self, action: Callable[[], T]) -> T:
        """Every rank carries out `action`, the first before the others: what it writes they find."""
        if self.world == 1:
            return action()
        mine: list[T] = []
        self.decide(lambda: mine.append(action()))
        return mine[0] if self.rank == 0 else action()

    def _tell(self, answer: list[Any]) -> None:
        import torch.distributed as dist

        dist.broadcast_object_list(answer, src=0, group=self._group)


class SharedClaim:
    """A `StageClaim` of rank 0 as every rank sees it: all train in its directory, and it is committed once."""

    def __init__(self, claim: StageClaim, ranks: Ranks) -> None:
        self._claim = claim
        self.ranks = ranks

    @property
    def stored(self) -> StoredStage | None:
        return self._claim.stored

    @property
    def directory(self) -> Path:
        return self._claim.directory

    def commit(self, **content: Any) -> StoredStage:
        """As `StageClaim.commit`, to be called on every rank."""
        return self.ranks.decide(lambda: self._claim.commit(**content))


ALONE = Ranks()
_joined: Ranks | None = None


def join(cfg: DictConfig) -> Ranks:
    """This process and those started beside it, connected by the trainer of `cfg`. Asked again, the same.

    Raises UserError where their number is not that of trainer.devices and trainer.num_nodes.
    """
    global _joined
    rank, world, launcher = place()
    if world == 1:
        return ALONE
    if _joined is None:
        import torch.distributed as dist

        bare = cfg.copy()
        OmegaConf.set_readonly(bare, False)
        bare.callbacks, bare.logger, bare.trainer.strategy = {}, {}, "ddp"  # a sharded one asks for a model first
        trainer = build_trainer(bare, Path(cfg.paths.run_dir))
        if trainer.num_devices * trainer.num_nodes != world:
            raise UserError(
                f"trainer.devices={cfg.trainer.devices} on trainer.num_nodes={cfg.trainer.num_nodes}: {launcher} has started {world} "
                "processes, which are one a device"
            )
        trainer.strategy.setup_environment()
        _joined = Ranks(rank, world, dist.new_group(backend="gloo", timeout=PATIENCE))
    return _joined


def go_on() -> bool:
    """Ends the work of several processes. Whether this one goes on, by itself from here on: the first does, the others are done."""
    if _joined is None:
        return True
    import torch.distributed as dist

    dist.barrier(group=_joined._group)
    dist.destroy_process_group()
    return _joined.rank == 0
