"""When two inputs are alike enough to be called related: a threshold and a probability, fitted on one part and tested on another."""

import torch
from torch import Tensor

from crossvit.evaluation.subject import Measurement, Subject, check_fitted_elsewhere, check_statements
from crossvit.metrics import (
    Decision,
    best_threshold,
    estimate,
    estimate_auroc,
    estimate_statistic,
    expected_calibration_error,
    platt_scaling,
    reliability,
    verification_accuracy,
)

RELIABILITY = "reliability-"
"""What the bins of a task are kept as begins so: {task: [(mean p(match), share that is true, rows), ...]}."""


class Calibration:
    """Accuracy at a fitted threshold, AUROC and expected calibration error of p(match) on labelled pairs.

    Of the dual encoder's cosine p is sigmoid(scale x cosine + offset), both fitted (Platt 1999); of the fused scorer it is the matching
    head's own. What is fitted stays with the stage as `evaluations/decision-<task>.json`, where `crossvit.load_decision` finds it, and how
    often it is true where p(match) is so much as `reliability-<task>.json`. Scores that the chain has not trained give no measurement.

    fit_split: where threshold and scaling are fitted; None: on every second picture of `split`, and the others are the test.
    """

    def __init__(self, data, split: str = "test", fit_split: str | None = "dev", task: str = "calibration") -> None:
        self.data = data
        self.split = split
        self.fit_split = fit_split
        self.task = task
        self.splits = (split,) if fit_split is None else (split, fit_split)
        check_fitted_elsewhere(fit_split, split)
        check_statements(data, self.splits, "a threshold")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if not (subject.scores_dual or subject.scores_fused):
            return []
        test, label, picture = self._scores(subject, self.split)
        if self.fit_split is None:
            fitting = picture.unique(return_inverse=True)[1] % 2 == 0
            fit, fit_label = {name: score[fitting] for name, score in test.items()}, label[fitting]
            test = {name: score[~fitting] for name, score in test.items()}
            label, picture = label[~fitting], picture[~fitting]
        else:
            fit, fit_label, _ = self._scores(subject, self.fit_split)
        found, decision, bins = [], {}, {}
        for name, score in test.items():
            threshold = best_threshold(fit[name], fit_label)
            scaling = (1.0, 0.0) if name == "fused" else platt_scaling(fit[name], fit_label)
            decision[name] = Decision(threshold, *scaling)
            task = f"{self.task}_fused" if name == "fused" else self.task
            right = verification_accuracy(score, label, threshold)
            area = estimate_auroc(score, label, picture)
            probability = decision[name].probability(score)
            error = estimate_statistic(expected_calibration_error, probability, label, clusters=picture)
            bins[task] = reliability(probability, label)
            found += [
                Measurement(task, None, "Acc@1", estimate(right, picture), 2, 0.5),
                Measurement(task, None, "AUROC", area, 2, 0.5),
                Measurement(task, None, "ECE", error, None, None),
            ]
        data = self.data.manifest(self.splits)
        subject.kept[f"decision-{self.task}"] = {
            "scores": {name: one._asdict() for name, one in decision.items()},
            "fitted_on": self.fit_split,
            "split": self.split,
            "data": data,
        }
        subject.kept[f"{RELIABILITY}{self.task}"] = bins
        return found

    def _scores(self, subject: Subject, split: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """{"dual": cosines, "fused": logit differences} as trained, labels and pictures, all (n,) on the CPU in float64."""
        model, columns, labels, pictures = subject.model, {}, [], []
        for batch in subject.batches(self.data, self.data.pair_loader(split)):
            visual, text = model.visual_features(batch.image), model.text_features(batch.tokens, batch.token_mask)
            if subject.scores_dual:
                cosine = (model.embed_visual(visual) * model.embed_text(text)).sum(dim=1)
                columns.setdefault("dual", []).append(cosine.double().cpu())
            if subject.scores_fused:
                columns.setdefault("fused", []).append(model.match_score(visual, text).double().cpu())
            labels.append(batch.label.cpu())
            pictures.append(batch.image_id.cpu())
        return {name: torch.cat(parts) for name, parts in columns.items()}, torch.cat(labels), torch.cat(pictures)
