"""Labels of films by prompts: is a film nearer to the sentence that names a finding, or to the one that denies it?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.evaluation.report_matching import PatientsOf
from crossvit.evaluation.subject import Measurement, Subject
from crossvit.evaluation.zero_shot import embed_sentences
from crossvit.metrics import (
    ExactDot,
    classification_accuracy,
    estimate,
    estimate_auroc,
    estimate_statistic,
    f1_chance,
    f1_score,
    macro_f1,
    verification_accuracy,
)


class LabelPrompts:
    """Accuracy, F1 and AUROC of each label of a `ReportDataModule` by the dual encoder, no label seen in training.

    The score of a label is the cosine with its positive prompt less that with its negative one, each the mean of the unit embeddings of
    all templates (Tiu et al. 2022, CheXzero; Boecking et al. 2022, BioViL), above 0 for true. Labels that are all alike are not measured.
    Where several labels are the only one of some film, also accuracy and macro F1 of choosing among these by the positive prompt alone
    (Huang et al. 2021, GLoRIA). Intervals take the films of a patient for one cluster.

    positive, negative: templates with {} in the place of the label's name. sentences: [positive, negative] of labels that they do not fit.
    """

    def __init__(
        self,
        data,
        split: str = "test",
        task: str = "mimic_zero_shot",
        positive: Sequence[str] = ("{}",),
        negative: Sequence[str] = ("no {}",),
        sentences: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.data = data
        self.split = split
        self.task = task
        self.positive = list(positive)
        self.negative = list(negative)
        self.sentences = dict(sentences or {})
        self.splits = (split,)
        for key, templates in (("positive", self.positive), ("negative", self.negative)):
            if not templates or not all("{}" in template for template in templates):
                raise UserError(f"{key}={templates}: give sentences that hold {{}} for the label's name")
        for name, pair in self.sentences.items():
            if isinstance(pair, str) or len(pair) != 2:
                raise UserError(
                    f"sentences.{name}={pair}: give two, the one that affirms it and the one that denies it"
                )
        if not data.index(split).classes:
            raise UserError(f"split={split}: the studies have no labels (data.labels)")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if not subject.scores_dual:
            return []
        index = self.data.index(self.split)
        batches = subject.batches(self.data, self.data.image_loader(self.split))
        rows = [(subject.model.encode_image(batch.image, normalize=True), batch.label.cpu()) for batch in batches]
        image, study = (torch.cat(column) for column in zip(*rows, strict=True))
        place = {number: row for row, number in enumerate(index.study_ids.tolist())}
        labels = torch.from_numpy(index.study_labels[[place[number] for number in study.tolist()]])
        patient = PatientsOf(index)(study)
        names = index.classes
        true, false = (
            ExactDot(image, self._prompts(subject, names, side))(slice(None), slice(None)).cpu() for side in (0, 1)
        )
        found = [
            measurement
            for c, name in enumerate(names)
            for measurement in self._binary(name, true[:, c] - false[:, c], labels[:, c], patient)
        ]
        return found + self._choice(true, labels, patient)

    def _binary(self, name: str, score: Tensor, label: Tensor, patient: Tensor) -> list[Measurement]:
        known = ~label.isnan()
        score, label, patient = score[known], label[known].long(), patient[known]
        if label.unique().numel() < 2:
            return []
        return [
            Measurement(self.task, name, "Acc@1", estimate(verification_accuracy(score, label), patient), 2, 0.5),
            Measurement(
                self.task, name, "F1", estimate_statistic(f1_score, score, label, clusters=patient), 2, f1_chance(label)
            ),
            Measurement(self.task, name, "AUROC", estimate_auroc(score, label, patient), 2, 0.5),
        ]

    def _choice(self, score: Tensor, labels: Tensor, patient: Tensor) -> list[Measurement]:
        single = (labels == 1).sum(dim=1) == 1
        own = (labels[single] == 1).long().argmax(dim=1)
        classes, label = own.unique(return_inverse=True)
        if len(classes) < 2:
            return []
        score, patient, count = score[single][:, classes], patient[single], len(classes)
        right = estimate(classification_accuracy(score, label), patient)
        f1 = estimate_statistic(macro_f1, score, label, clusters=patient)
        direction = "one of the labels"
        return [
            Measurement(self.task, direction, "Acc@1", right, count, 1 / count),
            Measurement(self.task, direction, "macro F1", f1, count, macro_f1(torch.zeros_like(score), label)),
        ]

    def _prompts(self, subject: Subject, names: Sequence[str], side: int) -> Tensor:
        """(K, E), every row of length 1: of side 0 the positive prompts, of side 1 the negative ones."""
        templates = (self.positive, self.negative)[side]
        texts = [
            [self.sentences[name][side]]
            if name in self.sentences
            else [t.replace("{}", name.lower()) for t in templates]
            for name in names
        ]
        embedded = embed_sentences(subject, self.data.tokenizer, [text for group in texts for text in group])
        groups = embedded.split([len(group) for group in texts])
        return nn.functional.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=-1)
