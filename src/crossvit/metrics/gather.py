"""Rows spread over ranks, brought together by index: every rank ends with what one process would hold."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """All ranks' rows, sorted by `rows["index"]`, each index once.

    Ranks may hold different numbers of rows, none included. Where an index occurs twice (a sampler that pads repeats samples) the row of
    the lowest rank is kept. In a single process this sorts and drops repeats only. A collective call: every rank must make it.

    Args:
        rows: "index" (R,) int64 and any other (R, ...) tensors; an empty dict means this rank has seen nothing.

    Returns:
        the same keys, on the devices the rows came from (CPU on a rank that had none); {} if no rank has rows.

    Raises:
        ValueError: lengths differ within a rank, or names, dtypes or trailing shapes differ between ranks.
    """
    if rows and any(len(value) != len(rows["index"]) for value in rows.values()):
        raise ValueError(f"rows differ in length: { {name: len(value) for name, value in rows.items()} }")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        rows = _all_gather(rows)
    if not rows:
        return {}
    order = rows["index"].argsort(stable=True)
    index = rows["index"][order]
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    order = order[first]
    return {name: value[order.to(value.device)] for name, value in rows.items()}


def _all_gather(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenation over ranks, in rank order. Shapes travel first, so that ranks without rows can take part."""
    world = dist.get_world_size()
    spec = {name: (value.dtype, tuple(value.shape[1:])) for name, value in rows.items()}
    seen: list = [None] * world
    dist.all_gather_object(seen, (spec, len(rows["index"]) if rows else 0))
    specs = [other for other, _ in seen if other]
    counts = [count for _, count in seen]
    if not specs:
        return {}
    if any(other != specs[0] for other in specs):
        raise ValueError(f"ranks hold different rows: {specs}")
    backend_device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    gathered = {}
    for name, (dtype, shape) in sorted(specs[0].items()):
        home = rows[name].device if rows else torch.device("cpu")
        padded = torch.zeros((max(counts), *shape), dtype=dtype, device=backend_device)
        if rows:
            padded[: len(rows[name])] = rows[name]
        parts = [torch.empty_like(padded) for _ in range(world)]
        # As bytes, because not every backend carries every dtype.
        dist.all_gather([part.view(-1).view(torch.uint8) for part in parts], padded.view(-1).view(torch.uint8))
        gathered[name] = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(home)
    return gathered
