"""Sharded training (FSDP2, `torch.distributed.fsdp.fully_shard`): each process keeps a part of every weight, its gradient and the
optimiser's state of it, and gathers a block's weights while the block runs.

Lightning's ModelParallelStrategy does the rest. Three things are other here: processes are spawned, for the chain runs in the one that
starts them; a checkpoint is the same single file as that of one device, so a run goes on under another strategy or number of processes; and
what comes back from the processes is whole.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from crossvit.models.execution import blocks
from crossvit.spawning import Spawned


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights lie in parts on several processes."""
    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, put together; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(module: nn.Module, mesh: Any, steps: Iterable[str], as_one: bool = False) -> None:
    """Shards `module` over the processes of `mesh`: its Transformer blocks one by one, and what is left as one more unit.

    steps: names of the methods that read weights; they gather the last unit, which stays whole until `put_back`. as_one: no units for
    blocks, so that all weights are whole during a step and may be differentiated by. Scalars cannot be cut: they stay whole everywhere, see
    `replica`.
    """
    scalars = {p for p in module.parameters() if p.dim() == 0}
    for parameter in module.parameters():  # FSDP takes no channels-last weights
        parameter.data = parameter.data.contiguous()
    for block in () if as_one else list(blocks(module)):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=scalars)
    module.set_reshard_after_backward(False, recurse=False)  # an adversary goes backward in mid-step
    for name in steps:
        register_fsdp_forward_method(module, name)


def for_optimizer(groups: list[dict], mesh: Any) -> list[dict]:
    """Groups of parameters in which the whole ones among the sharded are replaced by their replicas."""
    return [
        {**group, "params": [p if isinstance(p, DTensor) else replica(p, mesh) for p in group["params"]]}
        for group in groups
    ]


def replica(parameter: nn.Parameter, mesh: Any) -> nn.Parameter:
    """What an optimiser sees of a whole parameter beside sharded ones: the same numbers in the same memory, as a DTensor.

    An optimiser that works on many tensors at a time takes them of one kind. The gradient arrives there, averaged over the processes.
    """
    same = nn.Parameter(DTensor.from_local(parameter.data, mesh, [Replicate()]), parameter.requires_grad)

    def pass_on(whole_one: Tensor) -> None:
        torch.distributed.all_reduce(whole_one.grad.div_(mesh.size()), group=mesh.get_group())
        found = DTensor.from_local(whole_one.grad, mesh, [Replicate()])
        same.grad, whole_one.grad = found if same.grad is None else same.grad + found, None

    parameter.register_post_accumulate_grad_hook(pass_on)
    return same


def put_back(module: nn.Module) -> None:
    """Ends what a step has gathered: the optimiser changes the parts, and the next step gathers them anew."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather_blocks(module: nn.Module) -> None:
    """Makes the weights of all units whole, in mid-step."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()


class ShardedStrategy(ModelParallelStrategy):
    """`trainer.strategy=fsdp_spawn`. The task shards itself in `configure_model`, over all processes."""

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def _configure_launcher(self) -> None:
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = _WholeLauncher(self, start_method="spawn")

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def teardown(self) -> None:
        """Processes that were started from outside keep the module: it gets its weights back whole."""
        module = self.lightning_module
        if self._launcher is None and module is not None and module.trainer.state.status != TrainerStatus.INTERRUPTED:
            put_back(module)
            for part in module.modules():
                for name, value in part._parameters.items():
                    if isinstance(value, DTensor):
                        part._parameters[name] = nn.Parameter(whole(value).detach().cpu(), value.requires_grad)
        super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, on the CPU, on every process."""
        put_back(self.lightning_module)
        return {name: whole(value).cpu() for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """As one device has it."""
        put_back(self.lightning_module)
        found = optimizer.state_dict()
        state = {
            place: {key: whole(value).cpu() if isinstance(value, Tensor) else value for key, value in entry.items()}
            for place, entry in found["state"].items()
        }
        return {**found, "state": state}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint of any strategy; each process takes its part of it. No code from it is run, whatever `weights_only` says."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        module = self.lightning_module
        own = module.state_dict()
        weights = {name: _like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(weights, strict=module.strict_loading)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for place, entry in saved["state"].items():
                entry.update({key: _like(value, ordered[place]) for key, value in entry.items() if key != "step"})
            optimizer.load_state_dict(saved)
        return checkpoint


def _like(value: Any, own: Any) -> Any:
    """This process's part of a whole `value`, where `own` of the same shape lies in parts."""
    if not (isinstance(value, Tensor) and isinstance(own, DTensor) and value.shape == own.shape):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


class _WholeLauncher(Spawned):
    def _collect_rank_zero_results(self, trainer: Any, results: Any) -> Any:
        weights = self._strategy.lightning_module_state_dict()
        trainer.lightning_module.state_dict = lambda *args, **kwargs: weights
        return super()._collect_rank_zero_results(trainer, results)
