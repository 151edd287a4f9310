"""Is the statement true of the picture (or of the two pictures)? With the blind baselines that see only one side."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossvit.data.batches import PairBatch
from crossvit.errors import UserError
from crossvit.evaluation.subject import Measurement, Subject, check_fitted_elsewhere
from crossvit.metrics import (
    Estimate,
    best_threshold,
    consistency,
    consistency_chance,
    downsample,
    estimate,
    estimate_auroc,
    folds,
    image_only_logits,
    text_only_logits,
    verification_accuracy,
)
from crossvit.tasks.cross_modal import pair_logits


class Answers(NamedTuple):
    """What a head says of n statements: how much more true than false, (n,) float64, and which statements they are, (n,) each."""

    score: Tensor
    label: Tensor
    picture: Tensor
    index: Tensor


class Sides(NamedTuple):
    """What each side of n statements gives by itself: tokens and mask (n, M), downsampled pixels (n, D) and labels (n,); and which text,
    picture (or pair of pictures) and sample they are, (n,) each."""

    tokens: Tensor
    mask: Tensor
    pixels: Tensor
    label: Tensor
    text: Tensor
    picture: Tensor
    index: Tensor

    def where(self, rows: Tensor) -> "Sides":
        return Sides(*(column[rows] for column in self))


class Verification:
    """True/false accuracy on a labelled split, a score of exactly 0 counting one half, and the AUROC, which no threshold enters.

    On pairs of pictures the head for two pictures answers. On one picture it is the matching head or the relation head of two classes, of
    two that are trained the one that the last stage has trained. Where the head is not trained there is no measurement of the model, nor
    for the matching head of a model without fusion, whose answer does not depend on which picture meets which text.

    fit_split: also report the accuracy at the threshold that is best on this split (`Acc@1 fitted`): a head that was trained on another
    share of true pairs than the test's has its own in the wrong place. groups: also report consistency, the share of sentences right on all
    their pictures. blind: also train a text-only and an image-only baseline on the `train` split and report them; "folds", where there is
    no such split: on four of five parts of `split`, which share no text, sentence or picture, and test them on the last, in turn.

    Rows about one picture are no cases of their own, nor, with `groups`, those of one sentence: intervals count clusters of them.
    """

    def __init__(
        self,
        data,
        split: str = "test",
        task: str = "vlr",
        fit_split: str | None = None,
        blind: bool | Literal["folds"] = False,
        groups: bool = False,
    ) -> None:
        if not isinstance(blind, bool) and blind != "folds":
            raise UserError(f"blind={blind}: true, false, or folds where there is no training split")
        self.data = data
        self.split = split
        self.task = task
        self.fit_split = fit_split
        self.blind = blind
        self.groups = groups
        self.splits = tuple(dict.fromkeys(filter(None, (split, fit_split, "train" if blind is True else None))))
        for name in self.splits:
            labels = data.index(name).labels
            if labels is None or labels.max() > 1:
                raise UserError(f"split={name}: true/false needs pairs with a label, 0 or 1")
        check_fitted_elsewhere(fit_split, split)

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if (test := self._answers(subject, self.split)) is None:
            return []
        right = verification_accuracy(test.score, test.label)
        sentence = self._sentences(test.index) if self.groups else None
        cluster = test.picture if sentence is None else sentence
        found = [self._figure("Acc@1", estimate(right, cluster))]
        if self.fit_split is not None and (fit := self._answers(subject, self.fit_split)) is not None:
            threshold = best_threshold(fit.score, fit.label)
            fitted = verification_accuracy(test.score, test.label, threshold)
            found.append(self._figure("Acc@1 fitted", estimate(fitted, cluster)))
        found.append(self._figure("AUROC", estimate_auroc(test.score, test.label, cluster)))
        if sentence is not None:
            whole = estimate(consistency(right, sentence))
            found.append(self._figure("consistency", whole, consistency_chance(sentence)))
        return found + (self._baselines() if self.blind else [])

    def _sentences(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.data.sentences(self.split))[index]

    def _figure(self, metric: str, value: Estimate, chance: float = 0.5) -> Measurement:
        return Measurement(self.task, None, metric, value, 2, chance)

    def _answers(self, subject: Subject, split: str) -> Answers | None:
        """What the trained head says of a split; None without one."""
        rows = []
        for batch in subject.batches(self.data, self.data.pair_loader(split)):
            head = answering_head(subject, two_images=batch.image.dim() == 5)
            if head is None:
                return None
            logits = pair_logits(subject.model, batch, relation=head == "relation").double()
            score = logits[:, 1] - logits[:, 0]
            rows.append(tuple(x.cpu() for x in (score, batch.label, batch.image_id, batch.index)))
        return Answers(*(torch.cat(part) for part in zip(*rows, strict=True))) if rows else None

    def _baselines(self) -> list[Measurement]:
        right: dict[str, list[Tensor]] = {"text": [], "image": []}
        clusters: dict[str, list[Tensor]] = {"text": [], "image": []}
        for train, test in self._fitted_and_tested():
            text = text_only_logits(train.tokens, train.mask, train.label, test.tokens, test.mask)
            image = image_only_logits(train.pixels, train.label, test.pixels)
            for side, logits, same in (("text", text, test.text), ("image", image, test.picture)):
                right[side].append(verification_accuracy(logits, test.label))
                clusters[side].append(same)
        name = (
            "blind" if self.task == "vlr" else f"{self.task}_blind"
        )  # those of stage 3's own task came first, without its name
        return [
            Measurement(f"{name}_{side}", None, "Acc@1", estimate(torch.cat(right[side]), torch.cat(same)), 2, 0.5)
            for side, same in clusters.items()
        ]

    def _fitted_and_tested(self) -> Iterator[tuple[Sides, Sides]]:
        test = self._sides(self.split)
        if self.blind != "folds":
            yield self._sides("train"), test
            return
        part = folds(test.text, self._sentences(test.index), test.picture)
        if not part.any():
            raise UserError(
                "blind=folds: the statements hold together by text, sentence or picture; there is no rest to fit on"
            )
        for one in part.unique():
            yield test.where(part != one), test.where(part == one)

    def _sides(self, split: str) -> Sides:
        batches: list[PairBatch] = []
        small = []  # the pictures of a whole split at full size may not fit into memory
        for batch in self.data.pair_loader(split):
            small.append(downsample(batch.image))
            batches.append(batch._replace(image=batch.image.new_empty(0)))
        longest = max(batch.tokens.shape[1] for batch in batches)
        pad = torch.nn.functional.pad
        label, *which = (
            torch.cat([getattr(batch, name) for batch in batches]) for name in ("label", "text_id", "image_id", "index")
        )
        return Sides(
            torch.cat([pad(batch.tokens, (0, longest - batch.tokens.shape[1])) for batch in batches]),
            torch.cat([pad(batch.token_mask, (0, longest - batch.tokens.shape[1])) for batch in batches]),
            torch.cat(small),
            label,
            *which,
        )


def answering_head(subject: Subject, two_images: bool) -> str | None:
    """The trained head that answers for statements about one picture or two: of several that of the last stage; None without any."""
    if two_images:
        heads = ["two_image"]
    else:
        heads = ["itm"] if subject.scores_fused else []
        heads += ["relation"] if subject.model.relation[-1].out_features == 2 else []
    trained = [head for head in heads if {head, "fusion"} <= subject.trained]
    return next((head for head in trained if head in subject.trained_last), trained[0] if trained else None)
