"""One attack on one batch: what is added to the inputs, and the answers under it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossvit.distributed import global_mean, pad_to_longest, world_size
from crossvit.objectives.answers import Answers
from crossvit.objectives.ascent import Norm, ascend, direction, fosc, radius, row_norm
from crossvit.objectives.gradients import gradients
from crossvit.objectives.imitation import divergence
from crossvit.objectives.randomness import Replay
from crossvit.objectives.term import PairState, Perturbation

STREAM = 100  # of the step's random numbers
PROBE = 0.1  # VAT compares answers at this share of the radius before it goes there


class Gradients(NamedTuple):
    """Of one loss: by the perturbation of each space, and by each parameter (None where it has no part)."""

    inputs: dict[str, Tensor]
    parameters: list[Tensor | None]


class Ball(NamedTuple):
    """Where a perturbation may go: eps, its radius (None: anywhere), and step_size; `relative` to the row's own size, or absolute."""

    norm: Norm = "l2"
    eps: float | None = 0.02
    step_size: float = 0.02
    relative: bool = True


class Attack:
    """A perturbation of a state's inputs, which is moved step by step.

    ask: (state) -> its answers, of the clean state and of a perturbed one. spaces: of `Perturbation`. target: the right answers, as
    distributions, one for each of the answers; None takes the labels. kl_weight: of the symmetric divergence from the clean answers, which
    is added to the loss; kl_detach: these have no gradient there. through_cnn: see `AdversarialLoss`.
    """

    def __init__(
        self,
        state: PairState,
        ask: Callable[[PairState], list[Answers]],
        spaces: Sequence[str],
        ball: Ball,
        target: list[Tensor] | None = None,
        kl_weight: float = 0.0,
        kl_detach: bool = True,
        through_cnn: bool = False,
    ) -> None:
        self.state, self.ball, self.target = state, ball, target
        self.kl_weight, self.kl_detach, self.through_cnn = kl_weight, kl_detach, through_cnn
        self._ask = ask
        self.clean = ask(state)
        self._has_dropout = state.before is None or state.before.moved()
        self._replay = Replay(state.visual.device)
        self._inputs = {name: self._real(name, getattr(state.inputs, name).detach().float()) for name in spaces}
        self._bound = {name: radius(x, ball.eps, ball.relative, ball.norm) for name, x in self._inputs.items()}
        self._step = {name: radius(x, ball.step_size, ball.relative, ball.norm) for name, x in self._inputs.items()}
        self.delta = {name: torch.zeros_like(x) for name, x in self._inputs.items()}
        self._last: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def start_uniform(self) -> None:
        """A random point: each element uniform, at most the radius (`linf`) or its share of it (`l2`), as FreeLB does."""
        for name, noise in self.noise(-1).items():
            size = self._step[name] if self._bound[name] is None else self._bound[name]
            if self.ball.norm == "l2":
                size = size / (self._inputs[name] != 0).flatten(1).sum(dim=1).clamp(min=1).sqrt()
            self.delta[name] = noise * size.view(-1, *[1] * (noise.dim() - 1))

    def answers(self) -> list[Answers]:
        """The answers on the perturbed inputs; dropout and drawn negatives are the same at every call."""
        with self._replay.again():
            return self._ask(self.state.perturb(Perturbation(**self.delta), self.through_cnn))

    def loss(self, answers: list[Answers] | None = None) -> Tensor:
        """What the adversary raises and the model lowers, over the global batch."""
        found = self.answers() if answers is None else answers
        targets = self.target or [None] * len(found)
        total = sum(a.loss(target) for a, target in zip(found, targets, strict=True))
        if self.kl_weight:
            for clean, attacked in zip(self.clean, found, strict=True):
                reference = clean.logits.detach() if self.kl_detach else clean.logits
                both = divergence(reference, attacked.logits) + divergence(attacked.logits, reference)
                total = total + self.kl_weight * clean.share * global_mean(both, clean.counted)[0]
        return total

    def watch(self) -> None:
        """From here on the loss can be differentiated by the perturbation."""
        self.delta = {name: delta.detach().requires_grad_() for name, delta in self.delta.items()}

    def gradient(self, loss: Tensor, parameters: Sequence[Tensor] = (), share: float = 1.0) -> Gradients:
        """Of `loss`, computed since `watch`; that of the inputs is 0 on padding, that of the parameters is of `share` times the loss, and
        this process's part of it. Under fp16 the loss is scaled as in training."""
        deltas, scale = list(self.delta.values()), self.state.loss_scale
        keep = bool(parameters)  # the clean pass, whose graph is shared, is still to be trained on
        found = gradients(scale * loss, [*deltas, *parameters], retain_graph=keep)
        of_parameters = found[len(deltas) :]
        parameter_grads = [None if grad is None else grad * (share / scale) for grad in of_parameters]
        return Gradients(self._of_inputs(found[: len(deltas)]), parameter_grads)

    def clean_gradient(self) -> dict[str, Tensor] | None:
        """`gradient` of the inputs where nothing is added, for the price of a backward pass through the clean one. None where that pass
        cannot tell: a space is not part of its graph (pixels, patches of a frozen encoder), or it drew a dropout of its own."""
        inputs = [getattr(self.state.inputs, name) for name in self.delta]
        if self._has_dropout or not all(x.requires_grad for x in inputs):
            return None
        loss = self.state.loss_scale * self.loss(self.clean)
        grads = gradients(loss, inputs, retain_graph=True)
        return None if any(grad is None for grad in grads) else self._of_inputs(grads)

    def move(self, grads: dict[str, Tensor]) -> None:
        """One step of ascent along `grads`."""
        for name, grad in grads.items():
            delta, step, bound = self.delta[name].detach(), self._step[name], self._bound[name]
            self.delta[name] = ascend(delta, grad, step, bound, self.ball.norm)

    def place(self, grads: dict[str, Tensor], share: float = 1.0) -> None:
        """To the point in the direction of `grads` at that share of the radius."""
        for name, grad in grads.items():
            way = direction(grad, self.ball.norm)
            self.delta[name] = share * self._bound[name].view(-1, *[1] * (way.dim() - 1)) * way

    def noise(self, step: int) -> dict[str, Tensor]:
        """Uniform numbers in [-1, 1) for each space, 0 on padding; the same for a row whatever the number of processes."""
        found = {}
        for place, (name, x) in enumerate(self._inputs.items()):
            rows = len(x) // len(self.state.rows)  # two pictures of one text lie side by side
            longest = pad_to_longest(x[:1], 1).shape[1] if name == "text" else x.shape[1]
            shape = (len(self.state.all_ids[0]), rows, longest, *x.shape[2:])
            draw = self.state.uniform(torch.Size(shape).numel(), STREAM + 10 * (step + 1) + place).view(shape)
            local = draw[self.state.rows.to(draw.device)].flatten(0, 1)[:, : x.shape[1]].to(x.device)
            found[name] = self._real(name, 2 * local - 1)
        return found

    def figures(self) -> dict[str, Tensor]:
        """Norms of the perturbation, absolute and as a share of the input's; `fosc`, of the loss times the pairs, at its last gradient."""
        found = {}
        for name, delta in self.delta.items():
            length = row_norm(delta.detach())
            found[f"{name}_norm"] = length.mean()
            found[f"{name}_share"] = (length / row_norm(self._inputs[name]).clamp(min=1e-12)).mean()
            if self._last is not None and self._bound[name] is not None:
                before, grads = self._last
                summed = len(self.state.all_ids[0]) * grads[name]
                found[f"{name}_fosc"] = fosc(before[name], summed, self._bound[name], self.ball.norm).mean()
        return found

    def _of_inputs(self, grads: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Gradients of a scaled loss as the ascent takes them; they are those of its last point."""
        # the global mean is scaled for an average over the processes, and here they are summed
        ranks = self.state.loss_scale * world_size()
        inputs = {
            name: torch.zeros_like(delta) if grad is None else self._real(name, grad.float() / ranks)
            for (name, delta), grad in zip(self.delta.items(), grads, strict=True)
        }
        self._last = ({name: delta.detach() for name, delta in self.delta.items()}, inputs)
        return inputs

    def _real(self, name: str, x: Tensor) -> Tensor:
        """0 on the padding of a text."""
        return x * self.state.text_mask[..., None] if name == "text" else x
