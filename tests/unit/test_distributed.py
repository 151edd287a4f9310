"""Gathering in global order, fetching rows, their gradients, and the global mean, in 2 and 3 processes."""

import pytest
import torch

from crossvit import distributed
from tests.distributed import run_distributed


def _gather(rank: int, world: int):
    local = torch.tensor([[10.0 * rank], [10.0 * rank + 1]], requires_grad=True)
    everything = distributed.gather_with_grad(local)
    weight = torch.arange(1.0, 2 * world + 1)[:, None]
    (everything * weight * (rank + 1)).sum().backward()
    padded = distributed.pad_to_longest(torch.ones(1, rank + 1), 1)
    mean, count = distributed.global_mean(torch.tensor([1.0, 5.0]) + rank, torch.tensor([True, rank == 0]))
    return (
        everything.detach().flatten().tolist(),
        local.grad.flatten().tolist(),
        padded.shape[1],
        mean.item(),
        count.item(),
    )


@pytest.mark.parametrize("world", [2, 3])
def test_rows_come_in_global_order_and_gradients_find_their_way_back(world):
    results = run_distributed(_gather, world)
    expected = [10.0 * rank + k for k in range(2) for rank in range(world)]
    shares = sum(range(1, world + 1))  # every rank's loss sends its share
    means = []
    for rank, (rows, grad, width, mean, count) in enumerate(results):
        assert rows == expected
        assert grad == [shares * (1.0 + rank), shares * (1.0 + rank + world)]
        assert width == world
        assert count == world + 1
        means.append(mean)
    # values 1, 5 on rank 0; 1 + rank elsewhere; the average over ranks is their mean
    counted = [1.0, 5.0, *[1.0 + rank for rank in range(1, world)]]
    assert sum(means) / world == pytest.approx(sum(counted) / len(counted))


def _fetch(rank: int, world: int):
    local = torch.tensor([[10.0 * rank], [10.0 * rank + 1], [10.0 * rank + 2]], requires_grad=True)
    index = torch.tensor([0, 2 * world + 1, 1, 0]) if rank == 0 else torch.tensor([rank], dtype=torch.long)
    if rank == world - 1 > 1:
        index = index[:0]  # wants nothing
    fetch = distributed.Fetch(index)
    rows = fetch(local)
    (rows * (rank + 1) * torch.arange(1.0, len(index) + 1)[:, None]).sum().backward()
    flags = distributed.Fetch(index)(torch.tensor([False, rank == 0, rank == 1]))
    return rows.detach().flatten().tolist(), local.grad.flatten().tolist(), flags.tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_wanted_rows_alone_are_sent_and_gradients_find_their_way_back(world):
    results = run_distributed(_fetch, world)
    # rank 0 wants rows 0 of rank 0 (twice), 2 of rank 1, 0 of rank 1; rank 1 wants its own row 0; a third wants nothing
    assert [rows for rows, _, _ in results] == [[0.0, 12.0, 10.0, 0.0], [10.0], []][:world]
    assert [grad for _, grad, _ in results] == [[1.0 + 4.0, 0, 0], [3.0 + 2.0, 0, 2.0], [0, 0, 0]][:world]
    assert [flags for _, _, flags in results] == [[False, True, False, False], [False], []][:world]


def test_one_process_is_the_identity():
    x = torch.randn(3, 2)
    assert distributed.gather(x) is x
    assert distributed.gather_with_grad(x) is x
    assert torch.equal(distributed.Fetch(torch.tensor([2, 0]))(x), x[[2, 0]])
    assert distributed.global_mean(torch.tensor([1.0, 3.0]), torch.tensor([False, False]))[0] == 0
