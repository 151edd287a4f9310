"""Is the statement true of the picture (or of the two pictures)? With the blind baselines that see only one side."""

import torch
from torch import Tensor

from crossvit.data.batches import PairBatch
from crossvit.evaluation.subject import Measurement, Subject
from crossvit.metrics import (
    consistency,
    consistency_chance,
    downsample,
    estimate,
    image_only_logits,
    text_only_logits,
    verification_accuracy,
)
from crossvit.tasks.cross_modal import pair_logits


class Verification:
    """True/false accuracy on a labelled split; a score of exactly 0 counts one half.

    On pairs of pictures the head for two pictures answers. On one picture it is the matching head or the relation head of two classes, of
    two that are trained the one that the last stage has trained. Where the head is not trained there is no measurement of the model, nor
    for the matching head of a model without fusion, whose answer does not depend on which picture meets which text.

    blind: also train a text-only and an image-only baseline on the `train` split and report them. groups: also report consistency, the
    share of sentences right on all their pictures.
    """

    def __init__(self, data, split: str = "test", task: str = "vlr", blind: bool = False, groups: bool = False) -> None:
        self.data = data
        self.split = split
        self.task = task
        self.blind = blind
        self.groups = groups
        self.splits = (split, "train") if blind else (split,)

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        found, rows = [], []
        for batch in subject.batches(self.data, self.data.pair_loader(self.split)):
            head = answering_head(subject, two_images=batch.image.dim() == 5)
            if head is None:
                break
            logits = pair_logits(subject.model, batch, relation=head == "relation")
            rows.append((logits.float().cpu(), batch.label.cpu(), batch.index.cpu()))
        if rows:
            logits, label, index = (torch.cat(column) for column in zip(*rows, strict=True))
            right = verification_accuracy(logits, label)
            found.append(Measurement(self.task, None, "Acc@1", estimate(right), 2, 0.5))
            if self.groups:
                sentence = torch.from_numpy(self.data.sentences(self.split))[index]
                whole = estimate(consistency(right, sentence))
                found.append(Measurement(self.task, None, "consistency", whole, 2, consistency_chance(sentence)))
        return found + (self._baselines() if self.blind and found else [])

    def _baselines(self) -> list[Measurement]:
        train, test = self._columns("train"), self._columns(self.split)
        text = text_only_logits(train[0], train[1], train[3], test[0], test[1])
        image = image_only_logits(train[2], train[3], test[2])
        return [
            Measurement(f"blind_{side}", None, "Acc@1", estimate(verification_accuracy(logits, test[3])), 2, 0.5)
            for side, logits in (("text", text), ("image", image))
        ]

    def _columns(self, split: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens and mask (n, M), downsampled pixels (n, D) and labels (n,) of a split."""
        batches: list[PairBatch] = []
        small = []  # the pictures of a whole split at full size may not fit into memory
        for batch in self.data.pair_loader(split):
            small.append(downsample(batch.image))
            batches.append(batch._replace(image=batch.image.new_empty(0)))
        longest = max(batch.tokens.shape[1] for batch in batches)
        pad = torch.nn.functional.pad
        return (
            torch.cat([pad(batch.tokens, (0, longest - batch.tokens.shape[1])) for batch in batches]),
            torch.cat([pad(batch.token_mask, (0, longest - batch.tokens.shape[1])) for batch in batches]),
            torch.cat(small),
            torch.cat([batch.label for batch in batches]),
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
