"""A queue of the pairs of earlier batches, so that a small batch meets many negatives (MoCo, He et al. 2020; ALBEF, Li et al. 2021)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossvit.distributed import gather
from crossvit.objectives.term import PairState


class Queued(NamedTuple):
    """The pairs in the queue, oldest places first: embeddings (n, E) of the teacher, and ids (n,)."""

    image: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor


COLUMNS = Queued._fields


class PairQueue(nn.Module):
    """The last `size` true pairs of all processes; the same on each of them, and part of a checkpoint.

    Nothing has to divide: a batch that does not fit in goes on at the front, one greater than the queue leaves its last rows.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"queue_size must be at least 1, got {size}")
        self.size = size
        self.register_buffer("image", torch.empty(0))
        self.register_buffer("text", torch.empty(0))
        self.register_buffer("image_id", torch.empty(0, dtype=torch.long))
        self.register_buffer("text_id", torch.empty(0, dtype=torch.long))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def read(self, width: int, device: torch.device) -> Queued:
        """What is in it; embeddings are (n, width)."""
        if not len(self.image_id):
            empty, none = torch.empty(0, width, device=device), torch.empty(0, dtype=torch.long, device=device)
            return Queued(empty, empty, none, none)
        return Queued(self.image, self.text, self.image_id, self.text_id)

    @torch.no_grad()
    def add(self, state: PairState) -> None:
        """Puts the true pairs of the global batch in, as the teacher embeds them."""
        image, text, true = (
            gather(x) for x in (state.teacher.image_embedding, state.teacher.text_embedding, state.true)
        )
        image_id, text_id, _ = state.all_ids
        columns = {"image": image, "text": text, "image_id": image_id, "text_id": text_id}
        new = {name: column[true][-self.size :] for name, column in columns.items()}
        count = len(new["image_id"])
        room = min(count, self.size - len(self.image_id))
        place = int(self.place)
        for name, rows in new.items():
            kept = torch.cat([getattr(self, name).view(-1, *rows.shape[1:]), rows[:room]])
            rest = rows[room:]
            kept[(place + torch.arange(len(rest), device=rest.device)) % self.size] = rest
            setattr(self, name, kept)
        self.place.fill_((place + count - room) % self.size)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        """A queue of another size brings its newest pairs, the oldest of them first."""
        for name in COLUMNS:
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if len(self.image_id) != self.size:
            for name in COLUMNS:
                setattr(self, name, getattr(self, name).roll(-int(self.place), 0)[-self.size :])
            self.place.zero_()
