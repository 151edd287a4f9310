"""How far a match decision stands up to small changes of its inputs, and whether the attack that says so was strong enough."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossvit.data.batches import PairBatch
from crossvit.errors import UserError
from crossvit.evaluation.subject import Measurement, Subject, check_fitted_elsewhere, check_statements
from crossvit.metrics import best_threshold, estimate, verification_accuracy
from crossvit.models.crossvit import CrossViT
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.answers import matching_answers
from crossvit.objectives.term import Perturbation
from crossvit.tasks.pair_state import pair_state

STEP = 2.5  # the steps of an attack can cross the ball more than once: each is 2.5 eps / steps (Madry et al. 2018)


class Outcome(NamedTuple):
    """What an attack has left: the scores of the pairs, how much more true than false, their labels and pictures, (n,) each, and the mean
    loss."""

    score: Tensor
    label: Tensor
    picture: Tensor
    loss: float

    def right(self, threshold: float) -> Tensor:
        """(n,): which pairs are still judged right."""
        return verification_accuracy(self.score, self.label, threshold)


class Robustness:
    """True/false accuracy under PGD over a range of eps, beside random changes of that size, and the checks against masked gradients.

    space: what is changed, `text`, `patch` (shares of each sample's own norm, l2) or `pixel` (linf, in 255ths; changes are not clipped to
        the range of pixels).
    eps: radii in ascending order. steps: of the ascent. restarts: random starts of the strongest of several attacks.
    limit: the first so many pairs of a split. fit_split: true is what scores above the threshold that is best on this split, unattacked;
        None: above 0. surrogate: a model trained apart, whose pixel attacks are tried on this one.

    Checks (Athalye et al. 2018), all at the middle eps unless they say otherwise: the loss rises with eps and with the number of steps;
    restarts do not find what one start misses by far; an attack without a bound leaves nothing; one made on the surrogate is no stronger
    than one made on the model. They stay with the stage as `evaluations/robustness_<space>.json`.
    """

    def __init__(
        self,
        data,
        split: str = "test",
        task: str = "robustness",
        space: str = "patch",
        eps: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
        steps: int = 10,
        restarts: int = 5,
        limit: int = 256,
        fit_split: str | None = None,
        surrogate: CrossViT | None = None,
    ) -> None:
        if space not in ("text", "patch", "pixel"):
            raise UserError(f"space={space}: choose text, patch or pixel")
        if not eps or not all(isinstance(e, int | float) and e > 0 for e in eps) or list(eps) != sorted(set(eps)):
            raise UserError(f"eps={list(eps)}: give numbers greater than 0 in ascending order")
        for name, value, least in (("steps", steps, 1), ("limit", limit, 1), ("restarts", restarts, 0)):
            if value < least:
                raise UserError(f"{name}={value}: give at least {least}")
        if surrogate is not None and space != "pixel":
            raise UserError(f"surrogate: an attack on {space} means nothing to another model; give it with space=pixel")
        self.data, self.split, self.task, self.space = data, split, task, space
        self.eps, self.steps, self.restarts, self.limit = list(eps), steps, restarts, limit
        self.fit_split = fit_split
        self.surrogate = surrogate
        check_fitted_elsewhere(fit_split, split)
        self.splits = (split,) if fit_split is None else (split, fit_split)
        check_statements(data, self.splits, "an attack")

    def __call__(self, subject: Subject) -> list[Measurement]:
        if not subject.scores_fused:
            return []
        with torch.no_grad():
            model, batches = subject.model, self._batches(subject, self.split)
            clean = self._outcome(model, batches, None)
            threshold = 0.0
            if self.fit_split is not None:
                fit = self._outcome(model, self._batches(subject, self.fit_split), None)
                threshold = best_threshold(fit.score, fit.label)
            curve = {eps: self._attack(model, batches, eps) for eps in self.eps}
            random = {eps: self._attack(model, batches, eps, 1, direction="random") for eps in self.eps}
            others = self._others(model, batches)
        task, middle = f"{self.task}_{self.space}", self._middle
        checks = self._checks(clean, curve, others, threshold)
        subject.kept[task] = {"eps": self.eps, "steps": self.steps, "checks": checks}
        found = [("eps 0", clean)]
        found += [(f"eps {eps:g}", outcome) for eps, outcome in curve.items()]
        found += [(f"random {eps:g}", outcome) for eps, outcome in random.items()]
        found += [
            (name if name == "unbounded" else f"eps {middle:g} {name}", outcome) for name, outcome in others.items()
        ]
        chance = {"eps 0": 0.5}  # under attack there is none
        return [
            Measurement(task, None, name, estimate(one.right(threshold), one.picture), 2, chance.get(name))
            for name, one in found
        ]

    @property
    def _middle(self) -> float:
        return self.eps[len(self.eps) // 2]

    def _batches(self, subject: Subject, split: str) -> list[PairBatch]:
        found, left = [], self.limit
        for batch in subject.batches(self.data, self.data.pair_loader(split)):
            rows = {name: value[:left] for name, value in batch._asdict().items() if value is not None}
            found.append(batch._replace(**rows | {"negatives": None, "negatives_mask": None}))
            left -= len(rows["index"])
            if left <= 0:
                break
        return found

    def _others(self, model: CrossViT, batches: list[PairBatch]) -> dict[str, Outcome]:
        """The attacks at the middle eps that the checks compare, and the one without a bound."""
        found = {f"{k} steps": self._attack(model, batches, self._middle, k) for k in (1, 3) if k < self.steps}
        if self.restarts:
            starts = [self._attack(model, batches, self._middle, init="uniform", seed=s) for s in range(self.restarts)]
            found[f"{self.restarts} starts"] = _worst(starts)
        if self.surrogate is not None:
            self.surrogate.to(next(model.parameters()).device).eval()
            found["transfer"] = self._attack(model, batches, self._middle, source=self.surrogate)
        return found | {"unbounded": self._attack(model, batches, None, 2 * self.steps)}

    def _checks(
        self, clean: Outcome, curve: dict[float, Outcome], others: dict[str, Outcome], threshold: float
    ) -> dict[str, bool]:
        """Which of the signs of a masked gradient are absent."""
        rising = [clean.loss, *(outcome.loss for outcome in curve.values())]
        whole = curve[self._middle]

        def left(name: str) -> float:
            return float(others[name].right(threshold).mean())

        fewer = [others[name].loss for name in ("1 steps", "3 steps") if name in others]
        found = {
            "loss rises with eps": all(a <= b for a, b in pairwise(rising)),
            "loss rises with steps": all(a <= b for a, b in pairwise([*fewer, whole.loss])),
            "unbounded attack leaves next to nothing": left("unbounded") < 0.05,
        }
        if self.restarts:
            one = float(whole.right(threshold).mean())
            found["restarts find little more"] = one - left(f"{self.restarts} starts") < 0.05
        if self.surrogate is not None:
            found["transfer is no stronger"] = others["transfer"].loss <= whole.loss
        return found

    def _attack(
        self,
        model: CrossViT,
        batches: list[PairBatch],
        eps: float | None,
        steps: int | None = None,
        seed: int = 0,
        source: CrossViT | None = None,
        **settings,
    ) -> Outcome:
        """PGD of radius eps (None: without a bound, in steps as long as the greatest eps), made on `source`, by default on the model."""
        steps = steps or self.steps
        unit = 1 / (255 * max(self.data.normalize.std)) if self.space == "pixel" else 1.0
        adversary = AdversarialLoss(
            spaces=[self.space],
            norm="linf" if self.space == "pixel" else "l2",
            relative=self.space != "pixel",
            eps=None if eps is None else eps * unit,
            step_size=unit * (max(self.eps) if eps is None else min(eps, STEP * eps / steps)),
            steps=steps,
            hard_negatives=False,
            generated_negatives=False,
            **settings,
        )
        return self._outcome(model, batches, adversary, source or model, seed)

    @staticmethod
    def _outcome(
        model: CrossViT,
        batches: list[PairBatch],
        adversary: AdversarialLoss | None,
        source: CrossViT | None = None,
        seed: int = 0,
    ) -> Outcome:
        scores, labels, pictures, total = [], [], [], 0.0
        for number, batch in enumerate(batches):
            uniform = partial(_uniform, [seed, number])
            state = pair_state(model, batch, uniform)
            if adversary is not None:
                attack = adversary.on(state if source is model else pair_state(source, batch, uniform))
                adversary.climb(attack)
                state = state.perturb(Perturbation(**attack.delta), False)
            (answers,) = matching_answers(state, hard_negatives=False, generated_negatives=False)
            logits = answers.logits.double().cpu()
            scores.append(logits[:, 1] - logits[:, 0])
            labels.append(batch.label.cpu())
            pictures.append(batch.image_id.cpu())
            total += float(answers.loss()) * len(batch.label)
        return Outcome(torch.cat(scores), torch.cat(labels), torch.cat(pictures), total / sum(map(len, labels)))


def _worst(starts: Sequence[Outcome]) -> Outcome:
    """Of each pair the start that has hurt most."""
    scores, first = torch.stack([start.score for start in starts]), starts[0]
    worst = torch.where(first.label.bool(), scores.amin(dim=0), scores.amax(dim=0))
    return first._replace(score=worst, loss=max(start.loss for start in starts))


def _uniform(seed: list[int], n: int, stream: int = 0) -> Tensor:
    """(n,) numbers in [0, 1), the same for the same seed and stream."""
    state = np.random.SeedSequence([*seed, stream]).generate_state(1)[0]
    return torch.rand(n, generator=torch.Generator().manual_seed(int(state)))
