"""Adversarial training of the cross-modal model: inputs are moved in the direction that deceives it, and it has to answer all the same.

`pgd` trains on the point that K steps of ascent reach (Madry et al. 2018). `freelb` trains on every point of the way, the gradient of the
parameters being a by-product of the ascent (Zhu et al. 2020). `villa` adds the symmetric KL divergence between clean and attacked answers
(Gan et al. 2020). `vat` needs no label: it looks for the direction in which the answer changes most (Miyato et al. 2018).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from crossvit.objectives.answers import answers
from crossvit.objectives.ascent import Norm
from crossvit.objectives.attack import PROBE, Attack, Ball
from crossvit.objectives.gradients import KnownGradient
from crossvit.objectives.matching import Hard
from crossvit.objectives.term import PairState, Perturbation, Term, TermOutput

TOWERS = ("patch_encoder", "vision", "text_encoder")
ATTACKED = {
    "itm": (*TOWERS, "fusion", "itm"),
    "itc": (*TOWERS, "itc_image", "itc_text", "logit_scale"),
    "relation": (*TOWERS, "fusion", "relation"),
    "two_image": (*TOWERS, "fusion", "two_image"),
}
"""The terms that can be attacked, and the parts of the model that answer for them."""


class AdversarialLoss(Term):
    """The loss under attack.

    attack: the term whose questions are made hard; it has to be active too. target: what is right, the `label`, the model's own clean
    answer (`pseudo`) or that of its momentum teacher (`teacher`). `vat` has no use for a label: it takes the clean answer instead.
    spaces: what is moved, `text` (word embeddings, before positions), `patch` (patches, after the CNN) and `pixel`.
    eps, step_size: radius of the ball (null: none) and length of a step, for each row of each space. relative: they are shares of the row's
    own norm (`l2`) or root mean square (`linf`), so that growing embeddings buys no safety.
    steps: K. init: `zero`, or `uniform`, a random point. direction: `gradient`, or the controls `random` (K steps of the same length, each
    anywhere) and `none` (the inputs stay where init puts them).
    kl_weight, kl_detach: of `villa`; whether the clean answer is left as it is. through_cnn: attacked patches train the CNN too.
    hard_negatives, generated_negatives: of attack `itm`; the pairs are those of the matching term, drawn once.

    The attacked loss is that of the global batch, so one row's perturbation may act through another's; steps are normalised row by row.
    Negatives and dropout stay as they are during the ascent, and no BatchNorm statistic moves.
    """

    def __init__(
        self,
        weight: float = 1.0,
        algorithm: Literal["pgd", "freelb", "villa", "vat"] = "pgd",
        attack: Literal["itm", "itc", "relation", "two_image"] = "itm",
        target: Literal["label", "pseudo", "teacher"] = "label",
        spaces: Sequence[str] = ("text", "patch"),
        norm: Norm = "l2",
        eps: float | None = 0.02,
        step_size: float = 0.02,
        relative: bool = True,
        steps: int = 1,
        init: Literal["zero", "uniform"] = "zero",
        direction: Literal["gradient", "random", "none"] = "gradient",
        kl_weight: float = 1.5,
        kl_detach: bool = True,
        through_cnn: bool = False,
        hard_negatives: Hard = True,
        generated_negatives: bool = True,
    ) -> None:
        super().__init__(weight)
        for name, value, options in (
            ("algorithm", algorithm, ("pgd", "freelb", "villa", "vat")),
            ("attack", attack, tuple(ATTACKED)),
            ("target", target, ("label", "pseudo", "teacher")),
            ("norm", norm, ("l2", "linf")),
            ("init", init, ("zero", "uniform")),
            ("direction", direction, ("gradient", "random", "none")),
        ):
            if value not in options:
                raise ValueError(f"{name}={value!r}: choose {', '.join(options)}")
        if not spaces or len(set(spaces)) != len(spaces) or not set(spaces) <= set(Perturbation._fields):
            raise ValueError(f"spaces={list(spaces)}: choose some of {', '.join(Perturbation._fields)}")
        if steps < 1 or step_size <= 0 or (eps is not None and eps <= 0):
            raise ValueError(f"steps={steps}, step_size={step_size}, eps={eps}: give numbers greater than 0")
        if kl_weight < 0:
            raise ValueError(f"kl_weight={kl_weight}: give a number of at least 0")
        if algorithm == "vat" and eps is None:
            raise ValueError("algorithm=vat needs eps, the radius at which the answers are compared")
        if target == "pseudo" and init == "zero" and algorithm != "vat":
            raise ValueError(
                "target=pseudo with init=zero starts where the loss is least: set init=uniform or algorithm=vat"
            )
        self.algorithm, self.attack, self.steps = algorithm, attack, steps
        self.target = "pseudo" if algorithm == "vat" and target == "label" else target
        self.spaces, self.ball = tuple(spaces), Ball(norm, eps, step_size, relative)
        self.init, self.direction, self.through_cnn = init, direction, through_cnn
        self.kl_weight, self.kl_detach = (kl_weight if algorithm == "villa" else 0.0), kl_detach
        self.hard_negatives = hard_negatives
        self.reads_negatives = generated_negatives and attack == "itm"
        self.modules_used = ATTACKED[attack]
        self.needs_terms = (("itc", "sigmoid") if attack == "itc" else (attack,),)
        self.needs_teacher = target == "teacher"
        self.needs_label = attack in ("relation", "two_image")
        self.needs_two_images = attack == "two_image"
        self.reads_truth = attack != "relation"

    @property
    def trains_on_the_way(self) -> bool:
        """Whether the gradient of the weights is computed within the step."""
        return self.algorithm in ("freelb", "villa")

    def forward(self, state: PairState) -> TermOutput:
        attack = self.on(state)
        if self.trains_on_the_way:
            loss = self._train_on_the_way(attack)
        else:
            self.climb(attack)
            loss = attack.loss()
        return TermOutput(loss, attack.figures())

    def on(self, state: PairState) -> Attack:
        """The attack on this state, before its first step."""
        ask = partial(
            answers, term=self.attack, hard_negatives=self.hard_negatives, generated_negatives=self.reads_negatives
        )
        target = None
        if self.target != "label":
            target = [
                a.logits.detach().float().softmax(dim=1) for a in ask(state.teacher if self.needs_teacher else state)
            ]
        attack = Attack(state, ask, self.spaces, self.ball, target, self.kl_weight, self.kl_detach, self.through_cnn)
        if self.init == "uniform":
            attack.start_uniform()
        return attack

    def climb(self, attack: Attack) -> None:
        """K steps; nothing is trained."""
        if self.algorithm == "vat" and self.direction != "none":
            attack.place(attack.noise(0), PROBE)
        for step in range(self.steps if self.direction != "none" else 0):
            way = attack.noise(step) if self.direction == "random" else None
            if way is None and step == 0 and self.algorithm == "pgd" and self.init == "zero":
                way = attack.clean_gradient()
            if way is None:
                attack.watch()
                with torch.enable_grad():
                    way = attack.gradient(attack.loss()).inputs
            if self.algorithm == "vat":
                attack.place(way, 1.0 if step + 1 == self.steps else PROBE)
            else:
                attack.move(way)

    def _train_on_the_way(self, attack: Attack) -> Tensor:
        """The mean loss of K points, with the gradient of the parameters that the ascent has computed."""
        values, total = [], {}
        parameters = [p for p in attack.state.parameters if p.requires_grad]
        for step in range(self.steps):
            attack.watch()
            loss = attack.loss()
            grads = attack.gradient(loss, parameters, share=1 / self.steps)
            for parameter, grad in zip(parameters, grads.parameters, strict=True):
                if grad is not None:
                    total[parameter] = total[parameter] + grad if parameter in total else grad
            values.append(loss.detach())
            if step + 1 < self.steps and self.direction != "none":
                attack.move(grads.inputs if self.direction == "gradient" else attack.noise(step))
        return KnownGradient.apply(torch.stack(values).mean(), list(total.values()), *total)
