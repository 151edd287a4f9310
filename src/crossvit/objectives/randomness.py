"""Forward passes that draw the same random numbers: dropout stays as it was."""

import contextlib
from collections.abc import Iterator

import torch


class Replay:
    """Remembers torch's random state; inside `again()` a pass draws what every other such pass draws."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._state = self._read()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """The numbers from the remembered state on; what follows goes on from where the pass ends."""
        self._write(self._state)
        yield

    def moved(self) -> bool:
        """Has anything been drawn since?"""
        return any(a is not None and not torch.equal(a, b) for a, b in zip(self._state, self._read(), strict=True))

    def _read(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if self._device else None

    def _write(self, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if self._device:
            torch.cuda.set_rng_state(state[1], self._device)
