"""Films and reports as retrieval, with identical reports as one candidate."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from crossvit.data.reading.annotations import text_id
from crossvit.evaluation.matching import Matching
from crossvit.evaluation.subject import Corpus, Measurement, Subject, encode_corpus, take
from crossvit.metrics import ImageTextPairs, RetrievalResult
from crossvit.metrics.pairs import IMAGE_TO_TEXT, TEXT_TO_IMAGE


class ReportMatching(Matching):
    """Acc@k and mean rank on a `ReportDataModule`, twice.

    `<task>`: identical reports (equal text id) are merged into one candidate, the answer of all their films (You et al. 2023, CXR-CLIP).
    `<task>_strict`: every study's report is a candidate, and only that of the film's own study is right; identical reports tie.
    Intervals take the films and reports of one patient for one cluster.
    """

    @staticmethod
    def forms(data, split: str) -> list[ImageTextPairs]:
        films = [study for study, _ in data.images(split)]
        report_of = {study: text_id(text) for _, study, text in data.captions(split)}
        reports = torch.tensor(sorted(set(report_of.values())))
        return [
            ImageTextPairs(_mapped(report_of, films), reports, reports),
            ImageTextPairs(torch.tensor(films), torch.tensor(list(report_of))),
        ]

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        corpus = encode_corpus(subject, self.data, self.split)
        patients = PatientsOf(self.data.index(self.split))
        found = []
        for ending, (formed, text_study) in {"": merged(corpus), "_strict": strict(corpus)}.items():
            clusters = {IMAGE_TO_TEXT: patients(corpus.image_id), TEXT_TO_IMAGE: patients(text_study)}
            for task, directions in self.rankings(subject, formed).items():
                for direction, result in directions.items():
                    result = replace(result, cluster=clusters[direction][result.query])
                    found += self._figures(f"{task}{ending}", direction, result)
        return found

    def _figures(self, task: str, direction: str, result: RetrievalResult) -> list[Measurement]:
        rank = Measurement(
            task, direction, "mean rank", result.mean_rank(), result.num_candidates, result.mean_rank_chance
        )
        return [*super()._figures(task, direction, result), rank]


class PatientsOf:
    """Study ids -> patient ids, (n,) int64 -> (n,) int64, by a split's index."""

    def __init__(self, index) -> None:
        self._patient = dict(zip(index.study_ids.tolist(), index.patient_ids.tolist(), strict=True))

    def __call__(self, studies: Tensor) -> Tensor:
        return torch.tensor([self._patient[study] for study in studies.tolist()], dtype=torch.int64)


def merged(corpus: Corpus) -> tuple[Corpus, Tensor]:
    """The corpus with one text for each text id, the first, and the study (T',) it is of. An image's id is then its report's."""
    first: dict[int, int] = {}
    for row, text in enumerate(corpus.text_id.tolist()):
        first.setdefault(text, row)
    rows = torch.tensor(list(first.values()))
    report_of = dict(zip(corpus.text_image_id.tolist(), corpus.text_id.tolist(), strict=True))
    reports = corpus.text_id[rows]
    formed = corpus._replace(
        image_id=_mapped(report_of, corpus.image_id.tolist()),
        text=None if corpus.text is None else take(corpus.text, rows.to(corpus.caption.device)),
        caption=corpus.caption[rows.to(corpus.caption.device)],
        text_image_id=reports,
        text_id=reports,
    )
    return formed, corpus.text_image_id[rows]


def strict(corpus: Corpus) -> tuple[Corpus, Tensor]:
    """The corpus in which equal texts are told apart, and the study (T,) of each."""
    return corpus._replace(text_id=torch.arange(len(corpus.text_id))), corpus.text_image_id


def _mapped(table: dict[int, int], keys: Iterable[int]) -> Tensor:
    return torch.tensor([table[key] for key in keys], dtype=torch.int64)
