"""What is evaluated, and what an evaluator answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.metrics.intervals import Estimate
from crossvit.models.crossvit import CrossViT
from crossvit.models.text_encoder import TextFeatures

PAIRS_PER_CALL = 512


class Measurement(NamedTuple):
    """One figure on one test set, as a cell of the table has it; fractions, with the interval of `estimate`.

    candidates, chance: None where the figure has none (a calibration error, what a shortlist can reach).
    """

    task: str
    direction: str | None
    metric: str
    estimate: Estimate
    candidates: int | None
    chance: float | None

    def to_json(self) -> list:
        """As plain data."""
        return [*self._replace(estimate=list(self.estimate))]

    @classmethod
    def from_json(cls, row: list) -> "Measurement":
        """The inverse of `to_json`."""
        task, direction, metric, estimate, candidates, chance = row
        return cls(task, direction, metric, Estimate(*estimate), candidates, chance)


@dataclass
class Subject:
    """A trained stage as evaluators see it.

    trained: names of the model's parts that some stage of the chain has trained; the others are as initialised.
    trained_last: those that the last stage has trained itself.
    classifier: the classification head with its forward function, in the stages that train one.
    kept: name -> content (json) of what an evaluator leaves with the stage beside its figures.
    """

    model: CrossViT
    trained: frozenset[str]
    device: torch.device
    classifier: nn.Module | None = None
    seed: int = 0
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained_last: frozenset[str] = frozenset()

    @property
    def scores_dual(self) -> bool:
        """Both towers are trained up to the joint space."""
        return {"itc_image", "itc_text"} <= self.trained

    @property
    def scores_fused(self) -> bool:
        """The matching head and a fusion in which both sides meet are trained."""
        return {"fusion", "itm"} <= self.trained and self.model.fusion.is_joint

    def batches(self, data, loader) -> Iterator:
        """The loader's batches on the device, images normalised, the model in eval mode, no gradient."""
        self.model.eval()
        for batch in loader:
            moved = type(batch)(*(x.to(self.device) if isinstance(x, Tensor) else x for x in batch))
            yield moved._replace(image=data.normalize(moved.image)) if "image" in moved._fields else moved


def check_statements(data, splits: Iterable[str], what: str) -> None:
    """Raises UserError, saying what needs them, where a split has no statements of one picture that are labelled 0 or 1."""
    for name in splits:
        index = data.index(name)
        if index.labels is None or index.labels.max() > 1 or index.rows.ndim > 1:
            raise UserError(f"split={name}: {what} needs statements of one picture that are labelled 0 or 1")


def check_fitted_elsewhere(fit_split: str | None, split: str) -> None:
    """Raises UserError where a threshold would be fitted on the very statements that it is tested on."""
    if fit_split == split:
        raise UserError(
            f"fit_split={fit_split}: the test itself, on which a fitted threshold flatters: choose another split, or null"
        )


class Pictures(NamedTuple):
    """The pictures of a split after the vision tower, on the device."""

    visual: Tensor  # (I, N, d)
    image: Tensor  # (I, E), L2-normalised
    row: dict[int, int]  # label of a picture (its id, or its place) -> row; a damaged one is missing


def encode_pictures(subject: Subject, data, split: str) -> Pictures:
    """Runs the vision tower once over every image of a split."""
    batches = subject.batches(data, data.image_loader(split))
    pictures = [(subject.model.visual_features(batch.image), batch.label) for batch in batches]
    visual, label = (torch.cat(column) for column in zip(*pictures, strict=True))
    return Pictures(visual, subject.model.embed_visual(visual), {name: i for i, name in enumerate(label.tolist())})


class Corpus(NamedTuple):
    """Both sides of a retrieval corpus after the towers: rows in dataset order, on the device.

    The tokens of every picture and text are many times larger than their embeddings, and None where no fused score asks for them.
    """

    visual: Tensor | None  # (I, N, d)
    image: Tensor  # (I, E), L2-normalised
    image_id: Tensor  # (I,)
    text: TextFeatures | None  # tokens (T, M, d_t), pooled (T, d_t), mask (T, M)
    caption: Tensor  # (T, E), L2-normalised
    text_image_id: Tensor  # (T,)
    text_id: Tensor  # (T,)


@torch.inference_mode()
def encode_corpus(subject: Subject, data, split: str) -> Corpus:
    """Runs each tower once over every image and every caption of a split."""
    model, fused = subject.model, subject.scores_fused
    images, texts, visuals, features = [], [], [], []
    for batch in subject.batches(data, data.image_loader(split)):
        visual = model.visual_features(batch.image)
        images.append((model.embed_visual(visual), batch.label))
        visuals += [visual] if fused else []
    for batch in subject.batches(data, data.text_loader(split)):
        text = model.text_features(batch.tokens, batch.token_mask)
        texts.append((model.embed_text(text), batch.image_id, batch.text_id))
        features += [text] if fused else []
    image, image_id = (torch.cat(column) for column in zip(*images, strict=True))
    caption, text_image_id, text_id = (torch.cat(column) for column in zip(*texts, strict=True))
    return Corpus(
        visual=torch.cat(visuals) if fused else None,
        image=image,
        image_id=image_id.cpu(),
        text=join_features(features) if fused else None,
        caption=caption,
        text_image_id=text_image_id.cpu(),
        text_id=text_id.cpu(),
    )


def join_features(parts: list[TextFeatures]) -> TextFeatures:
    """Features of several batches as one, padded to the longest."""
    longest = max(part.mask.shape[1] for part in parts)
    tokens = [nn.functional.pad(p.tokens, (0, 0, 0, longest - p.mask.shape[1])) for p in parts]
    masks = [nn.functional.pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]
    return TextFeatures(torch.cat(tokens), torch.cat([p.pooled for p in parts]), torch.cat(masks))


def take(features: TextFeatures, rows: Tensor) -> TextFeatures:
    """The features of some rows, cut to the longest among them."""
    mask = features.mask[rows]
    longest = int(mask.sum(1).max()) if len(rows) else 0
    return TextFeatures(features.tokens[rows, :longest], features.pooled[rows], mask[:, :longest])
