"""The torchmetrics way to collect rows over steps and ranks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from crossvit.metrics.gather import gather_rows


class IndexedCatMetric(Metric):
    """torchmetrics' CatMetric keyed by dataset index: `compute` gives the rows of all steps and ranks, sorted, each index once.

    So whatever is computed from them equals the single-process figure under any world size, uneven ranks and padding samplers included.

        store = IndexedCatMetric("embedding", "image_id")
        store.update(index, embedding=e, image_id=i)     # every step
        rows = store.compute()                           # on every rank: {"index": (R,), "embedding": (R, E), "image_id": (R,)}

    Args:
        fields: names of the values kept beside the index. Each is (B, ...), its trailing shape and dtype the same in every step.
    """

    full_state_update = False

    def __init__(self, *fields: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.fields = fields
        for name in ("index", *fields):
            self.add_state(f"row_{name}", default=[], dist_reduce_fx=None)

    def update(self, index: Tensor, **values: Tensor) -> None:
        """Take one batch. Raises ValueError when names differ from `fields` or a length from that of `index` (B,)."""
        if set(values) != set(self.fields):
            raise ValueError(f"expected the fields {sorted(self.fields)}, got {sorted(values)}")
        for name, value in values.items():
            if len(value) != len(index):
                raise ValueError(f"{name} has {len(value)} rows, index {len(index)}")
            getattr(self, f"row_{name}").append(value.detach())
        self.row_index.append(index.detach())

    def compute(self) -> dict[str, Tensor]:
        """{"index": (R,), field: (R, ...)}; {} when no rank has seen a row. Every rank must call it."""
        names = ("index", *self.fields)
        rows = {name: torch.cat(getattr(self, f"row_{name}")) for name in names} if self.row_index else {}
        return gather_rows(rows)

    def _wrap_compute(self, compute: Callable) -> Callable:
        """As it is: the wrapping of torchmetrics would turn the tensors of a single row into scalars, and its sync would concatenate
        with repeats and fail on empty ranks. Gathering happens in `compute`, by index.
        """
        return compute
