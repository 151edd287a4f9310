"""A DataLoader for batches that come with a report."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from crossvit.data.datasets import Loaded
from crossvit.data.sampler import EpochSampler
from crossvit.errors import UserError


class EpochLoader(DataLoader):
    """Hands on the batch of each `Loaded` and passes its report to the main process.

    It draws no global random number: those of dropout are the same whatever the workers, and after a resume. A signal to the whole group
    of processes is the training's to answer, a worker overhears the first.

    Being stateful tells Lightning that the order can be taken up in mid-epoch. Where to take it up is known from the
    trainer's progress (see `CrossViTDataModule`); the state only guards against another order.

    Args:
        dataset: one whose `__getitems__` returns a `Loaded`.
        sampler: gives the keys.
        report: called with each `Loaded` in the process that iterates.
        kwargs: the DataLoader's.
    """

    def __init__(
        self, dataset: Dataset, sampler: EpochSampler, report: Callable[[Loaded], None], **kwargs: Any
    ) -> None:
        own = {"collate_fn": _as_is, "worker_init_fn": _outlive_one_signal, "generator": torch.Generator()}
        super().__init__(dataset, sampler=sampler, **{**own, **kwargs})
        self.report = report

    def __iter__(self) -> Iterator[Any]:
        return self._batches(super().__iter__())  # workers start here, not at the first batch

    def _batches(self, loaded_batches: Iterator[Loaded]) -> Iterator[Any]:
        for loaded in loaded_batches:
            self.report(loaded)
            if loaded.batch is not None:
                yield loaded.batch

    def state_dict(self) -> dict[str, int]:
        """What fixes the order of samples."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Compare with the order of the run that wrote the state.

        Raises:
            UserError: training would go on in the middle of an epoch in another order.
        """
        now = self.sampler.state_dict()
        changed = [f"{key} was {state.get(key)}, is {value}" for key, value in now.items() if state.get(key) != value]
        if changed and self.sampler.start > 0:
            raise UserError(
                f"The checkpoint was written in mid-epoch and the order of samples has changed ({'; '.join(changed)}): "
                "samples would be repeated or lost.\n"
                "Go back to the old value, or resume from a checkpoint at the end of an epoch."
            )


def _as_is(loaded: Loaded) -> Loaded:
    return loaded


def _outlive_one_signal(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))
