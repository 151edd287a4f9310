"""Retrieval by class: are the first reports found for a film of its class, and the first films for a report?"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from crossvit.errors import UserError
from crossvit.evaluation.report_matching import PatientsOf, merged
from crossvit.evaluation.subject import Measurement, Subject, encode_corpus
from crossvit.metrics import ExactDot, estimate, precision_at_k
from crossvit.metrics.pairs import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from crossvit.metrics.ranking import query_chunks

log = logging.getLogger(__name__)


class ClassPrecision:
    """Prec@k by class on a `ReportDataModule`, by the dual encoder (ConVIRT, Zhang et al. 2020; GLoRIA, Huang et al. 2021).

    A query is a film, or a report, whose label of a class is 1; the candidates of this class are right. Identical reports are merged, with
    the labels of any of their studies. A label that is uncertain counts as not of the class. A class that no query or every candidate
    belongs to is not measured, and the log says so.

    ks: the k of Prec@k; those above the number of candidates are left out.
    """

    def __init__(
        self, data, split: str = "test", task: str = "mimic_precision", ks: Sequence[int] = (5, 10, 100)
    ) -> None:
        self.data = data
        self.split = split
        self.task = task
        self.ks = tuple(ks)
        self.splits = (split,)
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"ks={list(self.ks)}: give one or more whole numbers of at least 1")
        if not data.index(split).classes:
            raise UserError(f"split={split}: the studies have no labels (data.labels)")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if not subject.scores_dual:
            return []
        corpus = encode_corpus(subject, self.data, self.split)
        reports, text_study = merged(corpus)
        index = self.data.index(self.split)
        place = {study: row for row, study in enumerate(index.study_ids.tolist())}
        present = torch.from_numpy(index.study_labels == 1)
        film = present[[place[study] for study in corpus.image_id.tolist()]]
        text = _any_of(
            corpus.text_id, present[[place[study] for study in corpus.text_image_id.tolist()]], reports.text_id
        )
        patients, score = PatientsOf(index), ExactDot(reports.image, reports.caption)
        sides = {
            IMAGE_TO_TEXT: (score, film, text, patients(corpus.image_id)),
            TEXT_TO_IMAGE: (lambda texts, images: score(images, texts).T, text, film, patients(text_study)),
        }
        return [m for direction, side in sides.items() for m in self._figures(direction, index.classes, *side)]

    def _figures(self, direction: str, classes, score, query: Tensor, candidate: Tensor, patient: Tensor):
        """Of every class, and of all (query, class) pairs where there are several."""
        count = len(candidate)
        ks = [k for k in self.ks if k <= count]
        measured = [c for c in range(len(classes)) if query[:, c].any() and not candidate[:, c].all()]
        if len(measured) < len(classes):
            others = ", ".join(name for c, name in enumerate(classes) if c not in measured)
            log.info(
                "%s, %s: all or none are of these classes, which are not measured: %s", self.task, direction, others
            )
        rows = {c: query[:, c].nonzero().flatten() for c in measured}
        values: dict[tuple[int, int], list[Tensor]] = {(c, k): [] for c in measured for k in ks}
        for chunk in query_chunks(range(len(query)), count):
            block = score(chunk, slice(0, count)).cpu()
            for c in measured:
                asked = rows[c][(rows[c] >= chunk.start) & (rows[c] < chunk.stop)] - chunk.start
                right = candidate[:, c].expand(len(asked), -1)
                for k in ks:
                    values[c, k].append(precision_at_k(block[asked], right, k))
        found = {key: torch.cat(parts) for key, parts in values.items()}
        chance = {c: candidate[:, c].double().mean().item() for c in measured}
        lines = []
        if len(measured) > 1:
            clusters = torch.cat([patient[rows[c]] for c in measured])
            mean = sum(chance[c] * len(rows[c]) for c in measured) / len(clusters)
            for k in ks:
                whole = estimate(torch.cat([found[c, k] for c in measured]), clusters)
                lines.append(Measurement(self.task, direction, f"Prec@{k}", whole, count, mean))
        for c in measured:
            for k in ks:
                own = estimate(found[c, k], patient[rows[c]])
                lines.append(Measurement(self.task, f"{direction}, {classes[c]}", f"Prec@{k}", own, count, chance[c]))
        return lines


def _any_of(text_id: Tensor, present: Tensor, merged_id: Tensor) -> Tensor:
    """(T, C) bool of single reports -> (T', C) of merged ones: whether any of the reports with that text id has it."""
    distinct, group = text_id.unique(return_inverse=True)
    found = torch.zeros(len(distinct), present.shape[1], dtype=torch.int64)
    found.index_add_(0, group, present.long())
    return (found > 0)[torch.searchsorted(distinct, merged_id)]
