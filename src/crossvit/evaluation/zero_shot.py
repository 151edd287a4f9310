"""Image classification by prompts: the class whose sentences are nearest to the picture, no classifier trained."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.evaluation.classification import class_accuracies
from crossvit.evaluation.subject import PAIRS_PER_CALL, Measurement, Subject
from crossvit.metrics import ExactDot


class ZeroShot:
    """Acc@1 and Acc@5 by the dual encoder on a split of an ImageNet-style module (Radford et al. 2021, section 3.1).

    A class is the mean of the unit embeddings of its name in every template, normalised. Its name is the first of its readable names
    ("tench, Tinca tinca": tench). A stage that has not trained both towers gives no measurement.

    templates: sentences with {} in the place of the name, or `openai` for CLIP's eighty as open_clip ships them.
    """

    def __init__(
        self, data, split: str = "val", task: str = "zero_shot", templates: str | Sequence[str] = "openai"
    ) -> None:
        self.data = data
        self.split = split
        self.task = task
        self.templates = templates
        self.splits = (split,)
        if templates != "openai":
            listed = [] if isinstance(templates, str) else list(templates)
            if not listed or not all(isinstance(text, str) and "{}" in text for text in listed):
                raise UserError(
                    f"templates={templates}: give openai, or a list of sentences that hold {{}} for the class's name"
                )

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if not subject.scores_dual:
            return []
        classes = self._classes(subject)
        batches = subject.batches(self.data, self.data.image_loader(self.split))
        rows = [(subject.model.encode_image(batch.image, normalize=True), batch.label) for batch in batches]
        image, label = (torch.cat(column) for column in zip(*rows, strict=True))
        scores = ExactDot(image, classes)(slice(None), slice(None))
        return class_accuracies(self.task, "image->class", scores.cpu(), label.cpu())

    def _classes(self, subject: Subject) -> Tensor:
        """(K, E), every row of length 1."""
        templates, tokenizer = self._sentences(), self.data.tokenizer
        names = [name.split(",")[0].strip() for _, name in self.data.classes]
        texts = [template(name) for name in names for template in templates]
        sentences = embed_sentences(subject, tokenizer, texts).unflatten(0, (len(names), len(templates)))
        return nn.functional.normalize(sentences.mean(dim=1), dim=-1)

    def _sentences(self) -> list[Callable[[str], str]]:
        if self.templates == "openai":
            from open_clip import OPENAI_IMAGENET_TEMPLATES  # slow to import

            return list(OPENAI_IMAGENET_TEMPLATES)
        return [lambda name, text=text: text.replace("{}", name) for text in self.templates]


def embed_sentences(subject: Subject, tokenizer, texts: Sequence[str]) -> Tensor:
    """The unit embeddings (T, E) of texts, on the device."""
    parts = []
    for start in range(0, len(texts), PAIRS_PER_CALL):
        tokens, mask = tokenizer.encode(texts[start : start + PAIRS_PER_CALL])
        features = subject.model.text_features(tokens.to(subject.device), mask.to(subject.device))
        parts.append(subject.model.embed_text(features))
    return torch.cat(parts)
