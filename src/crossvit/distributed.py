"""What ranks must share so that a loss or a metric over the global batch equals the one of a single process.

The global batch is dealt out in turn: rank r of W holds its rows r, r + W, r + 2W, ... (`data/sampler.py`). Every function here gives
rows back in that global order, and is the identity where torch.distributed is not initialised.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def world_size() -> int:
    """Number of processes that train together, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them, 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def global_rows(local_size: int, device: torch.device | None = None) -> Tensor:
    """(b,) places of this rank's rows in the global batch."""
    return torch.arange(local_size, device=device) * world_size() + rank()


def gather(tensor: Tensor) -> Tensor:
    """(b, ...) on each rank -> (W b, ...) in global order, with no gradient. Every rank must hold the same b."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return _interleave(parts)


def gather_with_grad(tensor: Tensor) -> Tensor:
    """As `gather`; the backward pass brings back each rank's share of the gradient, summed over the ranks.

    With losses that are means over local rows and a data-parallel average of parameter gradients, the result is the gradient of the mean
    over the global batch.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def pad_to_longest(tensor: Tensor, dim: int, value: float = 0) -> Tensor:
    """Pads `dim` to its greatest length over all ranks (captions are cut to the longest of a rank's own rows)."""
    if world_size() == 1:
        return tensor
    longest = torch.tensor(tensor.shape[dim], device=tensor.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - tensor.shape[dim]
    return F.pad(tensor, [0, 0] * (tensor.dim() - dim - 1) + [0, missing], value=value) if missing else tensor


def global_mean(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of `values` (n,) where `counted` (n,) is true, over all ranks, and the global count.

    The mean is scaled so that averaging it (and its gradients) over the ranks gives the global mean: a rank with fewer counted rows
    weighs less. Zero counted rows give zero.
    """
    count = counted.sum().to(values.dtype)
    total = (values * counted.to(values.dtype)).sum()
    if world_size() > 1:
        count = count.detach().clone()
        dist.all_reduce(count)
        total = total * world_size()
    return total / count.clamp(min=1), count


def _interleave(parts: list[Tensor]) -> Tensor:
    stacked = torch.stack(parts, dim=1)
    return stacked.reshape(-1, *stacked.shape[2:])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() :: world_size()]
