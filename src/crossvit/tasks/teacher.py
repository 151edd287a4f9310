"""The momentum teacher: a model's own running average."""

import copy

import torch
from torch import nn


class MomentumTeacher(nn.Module):
    """An exponential moving average of a model's weights (Tarvainen and Valpola 2017; He et al. 2020), always in eval mode.

    momentum: m of teacher <- m teacher + (1 - m) student, once an optimiser step. Buffers are copied: BatchNorm's running statistics
    are no parameters, and a teacher without them answers otherwise than its student even with the same weights.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"teacher momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.train(False)

    @torch.no_grad()
    def follow(self, model: nn.Module, momentum: float | None = None) -> None:
        """One step towards the model; momentum 0 makes an exact copy."""
        share = 1 - (self.momentum if momentum is None else momentum)
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, share) if share < 1 else mine.copy_(theirs)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def train(self, mode: bool = True) -> "MomentumTeacher":
        return super().train(False)
