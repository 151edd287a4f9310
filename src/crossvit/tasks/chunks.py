"""A large batch through the towers in parts, with the loss of the whole (GradCache, Gao et al. 2021).

The towers run without a graph, part by part; the loss is computed on all of their output at once, so every pair meets every negative; then
each part runs once more and takes its share of the gradient. Memory is that of one part's towers and of the whole batch's loss, the price
one forward pass. What a term runs by itself (the fusion, an attack, masked words, the teacher) sees the whole batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossvit.data.batches import PairBatch
from crossvit.models.crossvit import CrossViT
from crossvit.models.text_encoder import TextFeatures
from crossvit.objectives.gradients import gradients
from crossvit.objectives.randomness import Replay
from crossvit.tasks.pair_state import Towers, run_towers, unchanged_statistics


class ChunkedTowers:
    """The towers' output on a batch, `size` rows at a time: `towers`, whose tensors the loss can be differentiated by."""

    def __init__(self, model: CrossViT, batch: PairBatch, size: int) -> None:
        self._model = model
        self._parts = [_rows(batch, slice(start, start + size)) for start in range(0, len(batch.tokens), size)]
        self._replays, found = [], []
        with torch.no_grad(), unchanged_statistics(model.patch_encoder):
            for part in self._parts:
                self._replays.append(Replay(batch.image.device))
                found.append(run_towers(model, part))
        self.towers = _join(found)
        self.leaves = [tensor.requires_grad_() for tensor in _trained(self.towers)]

    def gradients(self, loss: Tensor, parameters: Sequence[Tensor], loss_scale: float = 1.0) -> dict[Tensor, Tensor]:
        """Of `loss`, a function of `towers` and of the parameters, by the parameters that it depends on."""
        found = gradients(loss_scale * loss, [*self.leaves, *parameters])
        of_towers, direct = found[: len(self.leaves)], found[len(self.leaves) :]
        total = {p: grad for p, grad in zip(parameters, direct, strict=True) if grad is not None}
        start = [0] * len(self.leaves)
        for part, replay in zip(self._parts, self._replays, strict=True):
            with replay.again(), torch.enable_grad():
                outputs = _trained(run_towers(self._model, part))
            wanted = []
            for place, (output, grad) in enumerate(zip(outputs, of_towers, strict=True)):
                end = start[place] + len(output)
                if grad is not None and output.requires_grad:
                    wanted.append((output, grad[start[place] : end]))
                start[place] = end
            outputs, grads = zip(*wanted, strict=True) if wanted else ((), ())
            shares = gradients(outputs, parameters, grads) if outputs else []
            for parameter, share in zip(parameters, shares, strict=bool(outputs)):
                if share is not None:
                    total[parameter] = total[parameter] + share if parameter in total else share
        return {parameter: grad / loss_scale for parameter, grad in total.items()}


def _rows(batch: PairBatch, rows: slice) -> PairBatch:
    return PairBatch(*(None if column is None else column[rows] for column in batch))


def _join(parts: list[Towers]) -> Towers:
    def text(name: str) -> TextFeatures | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else TextFeatures(*(torch.cat(column) for column in zip(*found, strict=True)))

    patches, words, visual = (torch.cat([getattr(part, name) for part in parts]) for name in Towers._fields[:3])
    return Towers(patches, words, visual, text("text"), text("negatives"))


def _trained(towers: Towers) -> list[Tensor]:
    """What the terms read: the towers' tokens and the texts' pooled vectors."""
    texts = [towers.text, *([] if towers.negatives is None else [towers.negatives])]
    return [towers.visual, *(tensor for text in texts for tensor in (text.tokens, text.pooled))]
