"""Outputs of a frozen network, kept: a picture that is not augmented has the same features in every epoch, and in every stage.

The memory is that of the process: networks of equal weights share it, so that a chain or a sweep runs a frozen encoder once on what its
stages have in common.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

_KEPT: dict[tuple[bytes, torch.dtype | None], dict[bytes, Tensor]] = {}
"""Rows by the weights of the network that made them and the precision of autocast they were made in, then by the contents of the row."""


class RowMemory:
    """What a frozen network has answered to single rows, by the contents of the row.

    limit: most rows to keep in a precision (of autocast, or without); others are computed each time. network: whose answers they are; its
    weights at the first answer count.
    """

    def __init__(self, limit: int, network: nn.Module) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit = limit
        self.network = network
        self._weights: bytes | None = None

    def __len__(self) -> int:
        return len(_KEPT.get(self._place(), ())) if self._weights is not None else 0

    def __reduce__(self) -> tuple:
        return RowMemory, (self.limit, self.network)

    def answer(self, keys: Sequence[bytes], compute: Callable[[list[int]], Iterable[Tensor]]) -> list[Tensor]:
        """The rows' outputs, in order; `compute` is called once, with the places of the keys that are not known."""
        if self._weights is None:
            self._weights = _weights_digest(self.network)
        rows = _KEPT.setdefault(self._place(), {})
        unknown = [place for place, key in enumerate(keys) if key not in rows]
        fresh = {}
        if unknown:
            with torch.no_grad():
                fresh = dict(zip(unknown, compute(unknown), strict=True))
        for place, row in fresh.items():
            if len(rows) < self.limit:
                rows[keys[place]] = row.detach().clone()
        return [fresh[place] if place in fresh else rows[key] for place, key in enumerate(keys)]

    def _place(self) -> tuple[bytes, torch.dtype | None]:
        device = next((parameter.device.type for parameter in self.network.parameters()), "cpu")
        return self._weights, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def row_keys(rows: Iterable[Tensor]) -> list[bytes]:
    """A digest of each row's bytes."""
    plain = (row.detach().cpu().contiguous().view(torch.uint8).numpy() for row in rows)
    return [hashlib.blake2b(row, digest_size=16).digest() for row in plain]


def _weights_digest(network: nn.Module) -> bytes:
    """A digest of a network's structure and of all its weights and statistics."""
    digest = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(row_keys([value.reshape(-1)])[0])
    return digest.digest()
