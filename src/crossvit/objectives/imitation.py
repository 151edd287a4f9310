"""Mutual imitation: the two modalities, a model and its own past, the fused scorer and the towers learn from each other's answers.

Four readings of "mutual imitation", each a term: deep mutual learning of the two directions (`dml`), consistent geometry (`cyclip`), a
momentum teacher (`distill`), and cross-encoder against dual encoder (`crossdual`). Logits are fp32, losses are over the global batch.
"""

import torch
from torch import Tensor

from crossvit.distributed import global_mean
from crossvit.objectives.answers import contrastive_answers, matching_answers
from crossvit.objectives.contrastive import contrastive_logits
from crossvit.objectives.matching import Hard, draw_negatives, match
from crossvit.objectives.term import PairState, Term, TermOutput

NEVER = -1e4  # logit of what is no candidate: its probability is 0, and a row of nothing else stays finite
ENCODERS = ("patch_encoder", "vision", "text_encoder")
CONTRASTIVE = ("itc_image", "itc_text", "logit_scale")
TOWERS = (*ENCODERS, *CONTRASTIVE)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """(n,) KL(softmax(target) || softmax(logits)) in nats, of logits (n, C) both."""
    log_p, log_q = torch.log_softmax(target.float(), dim=1), torch.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def mutual_divergence(
    first: Tensor, second: Tensor, temperature: float = 1.0, first_learns: bool = True, second_learns: bool = True
) -> Tensor:
    """(n,) T^2 times the mean of KL(second || first) and KL(first || second), the one that teaches without a gradient (Zhang et al. 2018).

    first, second: logits (n, C). first_learns, second_learns: which side is changed by it; a side that does not learn is the teacher alone.
    """
    first, second = first / temperature, second / temperature
    loss = first.new_zeros(len(first), dtype=torch.float32)
    if first_learns:
        loss = loss + divergence(second.detach(), first)
    if second_learns:
        loss = loss + divergence(first.detach(), second)
    return temperature**2 * loss / 2


def positive(temperature: float) -> float:
    """The temperature, if it is one. Raises ValueError."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: give a number greater than 0")
    return temperature


class MutualLearningLoss(Term):
    """Deep mutual learning of the two directions (`dml`): pair i's distribution over the batch's captions and its distribution over the
    batch's images, which are the same pairs, imitate each other.

    temperature softens both. images_learn, texts_learn: one-way imitation where one is false: what the pictures answer (image->text) learns
    from what the captions do, or the other way round; both towers have a part in either. Only true pairs are anchors and columns.
    """

    modules_used = TOWERS
    needs_terms = (("itc", "sigmoid"),)

    def __init__(
        self, weight: float = 1.0, temperature: float = 1.0, images_learn: bool = True, texts_learn: bool = True
    ) -> None:
        super().__init__(weight)
        if not (images_learn or texts_learn):
            raise ValueError("images_learn and texts_learn are both false: nobody would learn")
        self.temperature = positive(temperature)
        self.images_learn, self.texts_learn = images_learn, texts_learn

    def forward(self, state: PairState) -> TermOutput:
        by_image, by_text = directions(state)
        loss = mutual_divergence(by_image, by_text, self.temperature, self.images_learn, self.texts_learn)
        mean, _ = global_mean(loss, state.true)
        return TermOutput(mean)


def directions(state: PairState) -> tuple[Tensor, Tensor]:
    """Logits (b, B) of the local images over the batch's captions and of the local captions over its images; `NEVER` for false pairs."""
    scale, true = state.logit_scale.exp(), state.all_ids[2]
    by_image = contrastive_logits(state.image_embedding, state.all_text_embedding, scale)
    by_text = contrastive_logits(state.text_embedding, state.all_image_embedding, scale)
    return by_image.masked_fill(~true, NEVER), by_text.masked_fill(~true, NEVER)


def cyclic_loss(
    image: Tensor, text: Tensor, all_image: Tensor, all_text: Tensor, true: Tensor
) -> tuple[Tensor, Tensor]:
    """CyCLIP's two terms, each (b,): sum over j of (v_i.t_j - t_i.v_j)^2, and of (v_i.v_j - t_i.t_j)^2 (Goel et al. 2022).

    image, text (b, E) and all_image, all_text (B, E), L2-normalised; true (B,) says which j count. The published code means over all pairs
    and multiplies by the batch size, which is the mean over i of these sums.
    """
    counts = true.to(image.dtype)
    cross = ((image @ all_text.t() - text @ all_image.t()).square() * counts).sum(dim=1)
    within = ((image @ all_image.t() - text @ all_text.t()).square() * counts).sum(dim=1)
    return cross, within


class CyclicLoss(Term):
    """Consistent geometry of the two modalities (`cyclip`): cosines do not depend on which side is picture and which is text, nor on the
    modality that both are of."""

    modules_used = TOWERS[:-1]
    needs_terms = (("itc", "sigmoid"),)

    def __init__(self, weight: float = 1.0, cross_modal: float = 0.25, in_modal: float = 0.25) -> None:
        super().__init__(weight)
        if cross_modal < 0 or in_modal < 0 or cross_modal + in_modal == 0:
            raise ValueError(f"cross_modal={cross_modal} and in_modal={in_modal}: give shares >= 0, one of them > 0")
        self.cross_modal, self.in_modal = cross_modal, in_modal

    def forward(self, state: PairState) -> TermOutput:
        embeddings = (state.image_embedding, state.text_embedding, state.all_image_embedding, state.all_text_embedding)
        with torch.autocast(embeddings[0].device.type, enabled=False):
            cross, within = cyclic_loss(*(x.float() for x in embeddings), state.all_ids[2])
        cross, within = (global_mean(loss, state.true)[0] for loss in (cross, within))
        return TermOutput(
            self.cross_modal * cross + self.in_modal * within, {"cross": cross.detach(), "within": within.detach()}
        )


class DistillationLoss(Term):
    """A momentum teacher's answers as soft targets (`distill`; momentum distillation, Li et al. 2021).

    Cross-entropy is linear in its target, so ALBEF's target a x teacher + (1 - a) x label is weight a here and weight 1 - a of the hard
    term, where both have the same candidates: the teacher is asked about the batch, without generated captions and queue. Logged is the
    entropy of that target, in nats and without the ramp: what a control that only softens has to match. contrastive, matching: which
    answers are imitated. ramp: steps over which the weight grows from 0.
    """

    needs_teacher = True

    def __init__(
        self,
        weight: float = 1.0,
        contrastive: bool = True,
        matching: bool = False,
        ramp: int = 0,
        hard_negatives: Hard = True,
        generated_negatives: bool = True,
    ) -> None:
        super().__init__(weight)
        if not (contrastive or matching):
            raise ValueError("contrastive and matching are both false: there is nothing to imitate")
        self.contrastive, self.matching, self.ramp = contrastive, matching, ramp
        self.hard_negatives = hard_negatives
        self.reads_negatives = generated_negatives and matching
        if ramp < 0:
            raise ValueError(f"ramp={ramp}: give a number of steps, or 0 for the whole weight from the start")
        parts, needed = (CONTRASTIVE if contrastive else ()), ((("itc", "sigmoid"),) if contrastive else ())
        self.modules_used = (*ENCODERS, *parts, *(("fusion", "itm") if matching else ()))
        self.needs_terms = (*needed, *((("itm",),) if matching else ()))

    def forward(self, state: PairState) -> TermOutput:
        asked = [contrastive_answers] if self.contrastive else []
        if self.matching:
            asked.append(lambda s: matching_answers(s, self.hard_negatives, self.reads_negatives))
        total, entropy = 0.0, []
        for ask in asked:
            for mine, theirs in zip(ask(state), ask(state.teacher), strict=True):
                teacher = theirs.logits.detach().float().softmax(dim=1)
                total = total + mine.loss(teacher) / len(asked)
                whole = torch.lerp(theirs.target.float(), teacher, min(self.weight, 1.0))[theirs.counted]
                entropy.append(entropy_of(whole).sum() / max(len(whole), 1))
        share = min(1.0, (state.step + 1) / self.ramp) if self.ramp else 1.0
        return TermOutput(share * total, {"target_entropy": torch.stack(entropy).mean(), "share": torch.tensor(share)})


def entropy_of(target: Tensor) -> Tensor:
    """(n,) entropy in nats of distributions (n, C)."""
    return -torch.special.xlogy(target, target).sum(dim=1)


class CrossDualLoss(Term):
    """The fused scorer and the towers teach each other (`crossdual`): for a true pair's image, which of its caption and the false ones is
    right, and for its caption, which of its image and the false one.

    Both sides give a distribution over the same candidates: the matching head's logit differences and the scaled cosines. towers_learn,
    fusion_learns: one-way distillation where one is false. The candidates are those of the matching term with the same two switches.
    """

    needs_terms = (("itc", "sigmoid"), ("itm",))

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        towers_learn: bool = True,
        fusion_learns: bool = True,
        hard_negatives: Hard = True,
        generated_negatives: bool = True,
    ) -> None:
        super().__init__(weight)
        if not (towers_learn or fusion_learns):
            raise ValueError("towers_learn and fusion_learns are both false: nobody would learn")
        self.temperature = positive(temperature)
        self.towers_learn, self.fusion_learns = towers_learn, fusion_learns
        self.hard_negatives, self.reads_negatives = hard_negatives, generated_negatives
        self.modules_used = (
            *ENCODERS,
            *(CONTRASTIVE if towers_learn else ()),
            *(("fusion", "itm") if fusion_learns else ()),
        )

    def can_learn(self, labelled: bool, generated: bool) -> bool:
        """Not where a true pair stands alone: a pair's label is no second candidate."""
        return bool(self.hard_negatives) or (self.reads_negatives and generated)

    def forward(self, state: PairState) -> TermOutput:
        total = torch.zeros((), device=state.visual.device)
        groups = choices(state, self.hard_negatives, self.reads_negatives)
        for fused, dual, counted in groups:
            loss = mutual_divergence(fused, dual, self.temperature, self.fusion_learns, self.towers_learn)
            total = total + global_mean(loss, counted)[0] / len(groups)
        return TermOutput(total)


def choices(state: PairState, hard_negatives: Hard, generated_negatives: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For images and, with hard negatives, for captions: fused logits and scaled cosines (b, C) over the true pair and the false ones, and
    which rows (b,) have a choice. A candidate that is none has logit `NEVER` in both."""
    matching = match(state, hard_negatives, generated_negatives)
    scale, size = state.logit_scale.exp(), len(state.true)
    fused, dual, open_ = ({} for _ in range(3))
    for name, pairs in matching.parts.items():
        logits = matching.logits_of(name).float()
        fused[name], dual[name], open_[name] = logits[:, 1] - logits[:, 0], scale * pairs.cosine.float(), pairs.counted

    def spread(values: Tensor, name: str) -> Tensor:
        """(m,) of the rows that drew a negative -> (b, 1); the generated ones -> (b, K)."""
        if name == "generated":
            return values.view(size, -1)
        if name == "given":
            return values[:, None]
        own = draw_negatives(state, random=hard_negatives == "random").own
        return values.new_zeros(size, 1).index_put((own,), values[:, None])

    groups = []
    for parts in (("given", "by_text", "generated"), ("given", "by_image")):
        names = [name for name in parts if name in matching.parts]
        if len(names) > 1:
            candidate = torch.cat([spread(open_[name], name) for name in names], dim=1)
            sides = [torch.cat([spread(side[name], name) for name in names], dim=1) for side in (fused, dual)]
            counted = state.true & candidate[:, 1:].any(dim=1)
            groups.append((*(side.masked_fill(~candidate, NEVER) for side in sides), counted))
    return groups
