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


class Fetch:
    """Rows of the global batch that this rank wants, sent by those who hold them: what it receives does not grow with the number of ranks.
    What it sends is as much on average; the owner of a row that many want sends it to each.

    index (n,) int64: places in the global batch; n may differ between ranks. Every rank must make as many of these, and call them as often.
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index
        world = world_size()
        if world == 1:
            return
        owner = index % world
        self.order = owner.argsort(stable=True)  # by owner
        wanted = torch.bincount(owner, minlength=world)
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted)
        self.wanted, self.asked = wanted.tolist(), asked.tolist()
        self.rows = self._send((index // world)[self.order], to_owner=True)  # of this rank, for the others

    def __call__(self, tensor: Tensor) -> Tensor:
        """(b, ...) on each rank -> (n, ...), the rows at `index`; the backward pass brings each row's gradient back, summed over ranks."""
        return tensor[self.index] if world_size() == 1 else _Fetched.apply(tensor, self)

    def bring(self, tensor: Tensor) -> Tensor:
        """`__call__` between ranks, without a gradient."""
        received = self._send(tensor[self.rows], to_owner=False)
        return torch.empty_like(received).index_copy_(0, self.order, received)

    def bring_back(self, grad: Tensor, size: int) -> Tensor:
        """(n, ...) -> (size, ...): for each local row the sum of what the ranks that have asked for it send."""
        received = self._send(grad[self.order], to_owner=True)
        return received.new_zeros(size, *received.shape[1:]).index_add_(0, self.rows, received)

    def _send(self, tensor: Tensor, to_owner: bool) -> Tensor:
        sent, arriving = (self.wanted, self.asked) if to_owner else (self.asked, self.wanted)
        received = tensor.new_empty(sum(arriving), *tensor.shape[1:])
        if tensor.dtype == torch.bool:  # which not every backend sends
            dist.all_to_all_single(received.view(torch.uint8), tensor.contiguous().view(torch.uint8), arriving, sent)
        else:
            dist.all_to_all_single(received, tensor.contiguous(), arriving, sent)
        return received


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


class _Fetched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, fetch: Fetch) -> Tensor:
        ctx.fetch, ctx.size = fetch, tensor.shape[0]
        return fetch.bring(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.fetch.bring_back(grad, ctx.size), None
