"""A process that has trained leaves its process group before its interpreter ends."""

import atexit

import lightning as L
import torch.distributed as dist


class LeaveGroup(L.Callback):
    """Destroys the process group when a process that has trained among several exits.

    The threads of gloo may still hold tensors of the last collective. Where the interpreter is taken down before they let go, the process
    is aborted (SIGABRT) after all its work is done, and a stage that was trained counts as failed. While exit handlers run they can still
    be joined. Nothing is registered where training failed, for a collective may then be left that nobody answers.
    """

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
