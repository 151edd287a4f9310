"""A split of one's own, taken out of the training split."""

import hashlib
from collections.abc import Collection

from crossvit.errors import UserError

HELD_OUT = "held_out"


class HeldOut:
    """The split `held_out`: a share of `train`, which then lacks it. Whether a thing belongs to it depends on its name alone, so it stays
    where it is when others come or go.

    Args:
        share: share of the names, from 0 up to 1.

    Raises:
        UserError: not a share.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share < 1:
            raise UserError(f"data.held_out={share} must be at least 0 and below 1.")
        self.share = share

    def source(self, split: str) -> str:
        """The split that holds the records of `split`.

        Raises:
            UserError: nothing is held out.
        """
        if split == HELD_OUT and not self.share:
            raise UserError(f"Split '{HELD_OUT}' is empty with data.held_out=0: set e.g. data.held_out=0.1.")
        return "train" if split == HELD_OUT else split

    def keeps(self, split: str, name: str) -> bool:
        """Whether what bears this name belongs to the split."""
        if split not in ("train", HELD_OUT) or not self.share:
            return True
        return (_place(name) < self.share * 2**64) == (split == HELD_OUT)

    def groups(self, split: str, names: Collection[str]) -> set[str]:
        """Those of a few groups that belong to the split: of `train` the share is counted, and at least one is held out."""
        if split not in ("train", HELD_OUT) or not self.share:
            return set(names)
        held = sorted(names, key=_place)[: max(1, round(self.share * len(names)))]
        return set(held) if split == HELD_OUT else set(names) - set(held)


def _place(name: str) -> int:
    """A number below 2 ** 64 that looks drawn."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())
